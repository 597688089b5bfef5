"""Signals become a question asked once per step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STDERR = 2
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


class StopRequest:
    """Whether someone asked the run to end, and who.

    The first signal asks: the step in progress is finished and committed. A second one ends the process at
    once, which loses nothing that was committed.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.reason: str = ""

    @property
    def requested(self) -> bool:
        """True once a stop was asked for."""
        return bool(self.reason)

    @property
    def exit_code(self) -> int:
        """What the process should end with after this stop."""
        return EXIT_CODES.get(self.signal, 75) if self.signal else 0

    def ask(self, reason: str) -> None:
        """Ask for a stop after the step in progress; the first reason is kept."""
        self.reason = self.reason or reason

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take signals as requests while the block runs, saying so on stderr; nothing outside the main thread."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                os._exit(EXIT_CODES.get(signal.Signals(number), 75))
            self.signal = signal.Signals(number)
            self.ask(f"signal {self.signal.name}")
            line = f"\n{self.signal.name}: finishing this step and committing; once more ends at once\n"
            # Not print: a signal that arrives while a line is being printed would enter the stream twice and raise.
            with suppress(OSError):
                os.write(STDERR, line.encode())

        try:
            previous = {number: signal.signal(number, handle) for number in SIGNALS}
        except ValueError:  # only the main thread may set handlers
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
