"""`unbroken train`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from unbroken.run.report import Ended
    from unbroken.tasks.request import Request


def train(
    config: Path,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    resume_from_checkpoint: Annotated[
        str | None, Parameter(name=("--resume_from_checkpoint", "--resume-from-checkpoint"))
    ] = None,
    restart: Annotated[bool, Parameter(negative=())] = False,
    accept_drift: Annotated[bool, Parameter(negative=())] = False,
    stop_at: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Start a run, continue it, or say that it is finished: always the right one of the three.

    **Examples**

        unbroken train debian.yaml                                  start; killed, the same command continues
        unbroken train debian.yaml --set batch_size=64 --set output_dir=runs/b64
        unbroken train runs/debian                                  continue a run without its configuration file
        unbroken train debian.yaml --resume_from_checkpoint True    the same as without
        unbroken train debian.yaml --stop-at +3h50m                 stopped and committed when a job of 4 h ends

    SIGTERM, SIGUSR1 and a closed terminal stop the run after the step in progress, committed (75), Ctrl-C too (130);
    a second signal ends it at once. SIGUSR2 commits and goes on. Nothing is lost in any case.

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
    stop_at
        Stop in time to have committed by then (75): 17:30, 2026-11-22T17:30, +3h50m, or Unix seconds.
    json
        Print the outcome as one JSON object.
    """
    from unbroken.cli.output import notices
    from unbroken.cli.start import stop_request
    from unbroken.run.deadline import Deadline
    from unbroken.run.report import Notice
    from unbroken.tasks.request import Request
    from unbroken.tasks.train import carry_out
    from unbroken.views.terminal import Terminal

    stop, terminal = stop_request(), Terminal(sys.stderr)
    stop.deadline = Deadline.of(stop_at)
    how: Any = {"resume_from_checkpoint": resume_from_checkpoint, "restart": restart, "accept_drift": accept_drift}
    request = overridden(Request.of(config, **how), set_ or [])
    with notices(lambda text: terminal(Notice(text))):
        ended = carry_out(request, terminal, stop, terminal.progress)
    tell(ended, command(config, set_ or [], again(ended, how, stop_at, json=json)), json=json)
    return 0 if ended.finished else stop.exit_code


def overridden(request: Request, overrides: Sequence[str]) -> Request:
    """Return the request with the values of `--set`."""
    from unbroken.base.config import merge, parse_overrides

    values = parse_overrides(overrides)
    return request.with_values(merge(request.values, values), dict.fromkeys(values, "--set"))


def again(
    ended: Ended, once: Mapping[str, str | bool | None], stop_at: str | None, *, json: bool
) -> dict[str, str | bool | None]:
    """Return the options to be given next time: what was to be done `once` is done when steps were made."""
    options = {} if ended.proof else {"--" + key.replace("_", "-"): value for key, value in once.items()}
    return options | {"--stop-at": stop_at if stop_at and stop_at.startswith("+") else None, "--json": json}


def tell(ended: Ended, run_again: str, *, json: bool) -> None:
    """Say how the run ended; that does not hang on who listens."""
    from unbroken.cli.output import print_json

    if not ended.finished:
        with suppress(OSError):
            print(f"run again: {run_again}", file=sys.stderr)
    with suppress(OSError):
        if json:
            print_json(
                {"finished": ended.finished, "step": ended.step, "model": ended.model, "reason": ended.reason}
                | {f"proof.{key}": value for key, value in ended.proof.items()}
            )
        elif ended.finished:
            print(ended.model)


def command(config: Path, overrides: Sequence[str], options: Mapping[str, str | bool | None]) -> str:
    """Return the command line that trains `config`, with the options that were given."""
    words = ["unbroken", "train", str(config)]
    for override in overrides:
        words += ["--set", override]
    for name, value in options.items():
        words += [name] if value is True else [name, value] if value else []
    return shlex.join(words)
