"""`unbroken fork`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def fork(
    run: str,
    new: Path,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Begin a new run with the state of another, under a changed configuration, and say what the change means.

    The new run takes over weights, optimizer and step, and `unbroken train NEW` carries it on. The old run is only
    read; it may be finished, stopped, or training. What its state does not fit (another model) is refused.

    **Examples**

        unbroken fork runs/debian runs/longer --set max_steps=4000       train longer, on the schedule of 4000 steps
        unbroken fork runs/debian@500 runs/slower --set learning_rate=1e-5    go back to step 500 with another rate
        unbroken fork runs/debian runs/fits --set micro_batch_size=16    out of memory: smaller chunks
        unbroken fork runs/debian runs/cpu --set device=cpu              go on without the GPU
        unbroken fork runs/debian@500 runs/copy                          the same run again, from step 500

    Parameters
    ----------
    run
        The run: RUN for its newest checkpoint that verifies, RUN@STEP, or the folder of a checkpoint.
    new
        The new run's folder, which must be absent or empty.
    set_
        Change one key: `--set learning_rate=1e-5`; may be given several times. The others stay as they are in RUN.
    json
        Print the outcome as one JSON object.
    """
    from unbroken.base.config import parse_overrides
    from unbroken.cli.output import notices, print_json
    from unbroken.run.report import Notice
    from unbroken.tasks.fork import fork as make
    from unbroken.views.terminal import Terminal

    terminal = Terminal(sys.stderr)
    with notices(lambda text: terminal(Notice(text))):
        made = make(run, new, parse_overrides(set_ or []), report=terminal, progress=terminal.progress, origin="--set")
    if json:
        print_json(made.flat())
        return 0
    print(f"{made.root}: forked from {made.parent['run']} at step {made.step}")
    for line in made.meaning:
        print(f"  {line}")
    print(f"to train it: {made.command}")
    return 0
