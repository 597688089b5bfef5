"""A progress bar on stderr: when asked for, or when someone is watching and it takes a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PATIENCE_SECONDS = 2.0


@contextmanager
def progress(what: str, total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more are done.

    With `show` None a bar appears if stderr is a terminal and the work is not done after two seconds.
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield lambda more: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=show is None)
    task = bar.add_task(what, total=total)
    shown_from = time.monotonic() + (0.0 if show else PATIENCE_SECONDS)

    def advance(more: int) -> None:
        with suppress(OSError):  # a terminal that was closed stops no work
            bar.update(task, advance=more)
            if not bar.live.is_started and time.monotonic() >= shown_from:
                bar.start()

    try:
        if show:
            bar.start()
        yield advance
    finally:
        with suppress(OSError):
            bar.stop()
