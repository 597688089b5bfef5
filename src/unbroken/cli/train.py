"""`unbroken train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def train(
    config: Path,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    resume_from_checkpoint: Annotated[
        str | None, Parameter(name=("--resume_from_checkpoint", "--resume-from-checkpoint"))
    ] = None,
    restart: Annotated[bool, Parameter(negative=())] = False,
    accept_drift: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Start a run, continue it, or say that it is finished: always the right one of the three.

    **Examples**

        unbroken train debian.yaml                                  start; killed, the same command continues
        unbroken train debian.yaml --set batch_size=64 --set output_dir=runs/b64
        unbroken train runs/debian                                  continue a run without its configuration file
        unbroken train debian.yaml --resume_from_checkpoint True    the same as without

    Parameters
    ----------
    config
        YAML file, or the folder of a run.
    set_
        Change one key: `--set learning_rate=1e-5`; may be given several times.
    resume_from_checkpoint
        True, a run, its checkpoints folder, or one checkpoint. Never needed.
    restart
        Move a run that stands in output_dir aside and start over.
    accept_drift
        Go on where results no longer repeat to the bit; the run then says from which step on.
    json
        Print the outcome as one JSON object.
    """
    from unbroken.base.config import merge, parse_overrides
    from unbroken.cli.output import notices, print_json
    from unbroken.run.report import Notice
    from unbroken.run.stop import StopRequest
    from unbroken.tasks.train import Request, carry_out
    from unbroken.views.terminal import Terminal

    overrides = parse_overrides(set_ or [])
    request = Request.of(
        config, resume_from_checkpoint=resume_from_checkpoint, restart=restart, accept_drift=accept_drift
    )
    request = request.with_values(merge(request.values, overrides), dict.fromkeys(overrides, "--set"))
    terminal = Terminal(sys.stderr)
    stop = StopRequest()
    with notices(lambda text: terminal(Notice(text))):
        ended = carry_out(request, terminal, stop, terminal.progress)
    if json:
        print_json(
            {"finished": ended.finished, "step": ended.step, "model": ended.model, "reason": ended.reason}
            | {f"proof.{key}": value for key, value in ended.proof.items()}
        )
    elif ended.finished:
        print(ended.model)
    return 0 if ended.finished else stop.exit_code
