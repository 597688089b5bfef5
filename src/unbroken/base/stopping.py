"""Long work by whose end nothing is lost asks now and then whether to end: reading, tokenising, evaluating."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# A context variable is its own in each thread: the thread that writes a commit is never asked to leave it.
_check: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


class StopNow(BaseException):
    """The work in progress is to be left. No `Exception`: what goes on after errors must not go on after this."""


@contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Have every `poll` inside the block call `check`, which raises `StopNow` when the work is to be left."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def poll() -> None:
    """Raise `StopNow` if someone asked for a stop and this is work that may be left anywhere; else do nothing."""
    check = _check.get()
    if check is not None:
        check()
