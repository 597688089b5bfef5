"""`unbroken verify`."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter


def verify(
    run: str,
    *,
    steps: int | None = None,
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Compare every digest of a run, then make recorded steps again and compare them, and the tensors, to the bit.

    Without a step, the steps from the oldest checkpoint to the next one (20 at most) are made again; where no step
    follows a checkpoint, those from the beginning. Where a checkpoint's step is reached, each of its tensors and
    the optimizer's is compared, and at the last step the finished model. Nothing in the run is written, locked or
    moved; it may be training meanwhile. Ends with 0 if all is as recorded, 5 if something is not, 4 if not replayed.

    **Examples**

        unbroken verify runs/debian             all digests, and the steps between two checkpoints
        unbroken verify runs/debian --all       every recorded step, from the base model on
        unbroken verify runs/debian@500 --steps 5
        unbroken verify runs/debian --set model=elsewhere/minilm    the base model was moved
        unbroken verify runs/debian --json | jq .first_difference

    Parameters
    ----------
    run
        A run, RUN@STEP, or one of its checkpoints.
    steps
        How many steps to make again.
    all_
        Make every recorded step again.
    set_
        Say where model, train_data, eval_data or teacher are now.
    json
        Print one JSON object.
    """
    from unbroken.base.config import parse_overrides
    from unbroken.cli.output import print_json
    from unbroken.run.report import Notice
    from unbroken.tasks.origin import parse_run_at
    from unbroken.tasks.verify import verify as look
    from unbroken.views.terminal import Terminal
    from unbroken.views.verify import verification_text

    root, step = parse_run_at(run)
    require_sensible(step, steps, everything=all_)
    terminal = Terminal(sys.stderr)
    found = look(
        root,
        step=step,
        steps=steps,
        everything=all_,
        inputs=parse_overrides(set_ or []),
        say=lambda text: terminal(Notice(text)),
        progress=terminal.progress if terminal.live else lambda *args: None,
    )
    print_json(found.flat()) if json else print(verification_text(found))
    if found.failure is None:
        return 0
    raise found.failure


def require_sensible(step: int | None, steps: int | None, *, everything: bool) -> None:
    """Raise `ConfigError` for options that contradict each other, or ask for nothing."""
    from unbroken.base.errors import ConfigError

    if everything and (step is not None or steps is not None):
        raise ConfigError("--all makes every recorded step again", next_step="leave out the step and --steps, or --all")
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps {steps}: no step would be made again", next_step="give 1 or more")
