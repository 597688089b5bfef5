"""Waiting for what may never answer, on a thread of its own, so that a stop or a limit ends the wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

from unbroken.base.errors import StorageError
from unbroken.base.stopping import StopNow, interruptible, poll

T = TypeVar("T")

LOOK_SECONDS = 30.0  # a place that has not answered by then counts as out of reach
STALL_SECONDS = 600.0  # so does one from which nothing has come for so long; a sync of many files takes minutes
LEAVE_SECONDS = 2.0  # for work that was told to stop, to tidy up
PULSE_SECONDS = 0.05


def patiently(work: Callable[[], T], name: str, seconds: float) -> T:
    """Return what `work` returns, or raise what it raises; it is done on another thread, and may be left hanging.

    A stop, asked for as by `poll`, raises `StopNow` in the work at its next `poll`, and here even if it never comes
    to that. Raises `StorageError` once `seconds` have passed without a `poll` in the work, which ends at its next.
    """
    found: list[Any] = []
    failed: list[BaseException] = []
    done, left = threading.Event(), threading.Event()
    asking, moved = copy_context(), [time.monotonic()]

    def check() -> None:
        if left.is_set():
            raise StopNow
        moved[0] = time.monotonic()
        asking.run(poll)

    def carry_out() -> None:
        try:
            with interruptible(check):
                found.append(work())
        except BaseException as failure:  # noqa: BLE001 - raised again by who waits
            failed.append(failure)
        finally:
            done.set()

    threading.Thread(target=carry_out, name="unbroken-waiting", daemon=True).start()
    while not done.wait(PULSE_SECONDS):
        try:
            poll()
        except StopNow:
            left.set()
            done.wait(LEAVE_SECONDS)
            raise
        if time.monotonic() - moved[0] > seconds:
            left.set()
            raise StorageError(
                f"the mirror {name} has not answered for {seconds:.0f} seconds",
                next_step="check the network, or the disk it lies on",
            )
    if failed:
        raise failed[0]
    result: T = found[0]
    return result
