"""Where the command begins: from here on signals are heard, a few milliseconds after the interpreter started."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

from unbroken.run.stop import StopRequest

STOP = StopRequest()


def main() -> None:
    """Run the command line; `train` takes signals from before the first heavy import."""
    open_streams()
    with STOP.listening() if sys.argv[1:2] == ["train"] else nullcontext():
        from unbroken.cli.main import main as run

        run()


def stop_request() -> StopRequest:
    """Return the request that signals to this process are taken by already, or a new one."""
    return STOP if STOP.listening_now else StopRequest()


def open_streams() -> None:
    """Give stdin, stdout and stderr that came closed a descriptor that holds nothing.

    Otherwise the next file opened would be number 2, and what any library writes to stderr would go into a run.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
