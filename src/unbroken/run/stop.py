"""Signals and deadlines become a question: asked once per step, and between the pieces of longer work."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from unbroken.base.stopping import StopNow

if TYPE_CHECKING:
    from unbroken.run.deadline import Deadline  # not needed yet when the command line begins to listen

# A platform need not have all of them. SIGHUP: the terminal was closed. SIGUSR1: what Slurm and others send ahead.
ASK = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
COMMIT = "SIGUSR2"
EVERYONES = ("SIGTERM", "SIGINT")  # taken over even from a handler of the program around us, and given back
STDERR = 2
STOPPED, INTERRUPTED = 75, 130
# `timeout`, some launchers and a terminal send one signal twice, to the process and to its group.
ECHO_SECONDS = 0.2


class StopRequest:
    """Whether someone asked the run to end, and who.

    The first signal asks: a step in progress is finished and committed, what changes nothing is left. A second one
    ends the process at once, which loses nothing that was committed. `promise` says what the first one brings about.
    """

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.promise = "a step in progress is finished and committed"
        self.signal: signal.Signals | None = None
        self.reason: str = ""
        self._deadline = deadline
        self._asked_at = 0.0
        self._commit_wanted = False
        self._listening = False

    @property
    def requested(self) -> bool:
        """True once a stop was asked for."""
        return bool(self.reason)

    @property
    def exit_code(self) -> int:
        """What the process should end with after this stop; 0 if the program itself asked for it."""
        if self.signal is not None:
            return code_of(self.signal)
        return STOPPED if self.requested and self.reason == self.deadline.reason else 0

    @property
    def deadline(self) -> Deadline:
        """The time to have stopped by; one that never comes if none was given."""
        if self._deadline is None:
            from unbroken.run.deadline import Deadline

            self._deadline = Deadline()
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: Deadline) -> None:
        self._deadline = deadline

    @property
    def listening_now(self) -> bool:
        """Whether signals are taken as requests now."""
        return self._listening

    def ask(self, reason: str) -> None:
        """Ask for a stop after the step in progress; the first reason is kept."""
        self.reason = self.reason or reason

    def before_step(self) -> bool:
        """Tell whether to stop instead of making one more step."""
        if not self.deadline.leaves_a_step:
            self.ask(self.deadline.reason)
        return self.requested

    def check(self) -> None:
        """Raise `StopNow` if a stop was asked for, or if what is left of the time is needed to commit."""
        if not self.deadline.leaves_a_commit:
            self.ask(self.deadline.reason)
        if self.requested:
            raise StopNow

    def take_commit(self) -> bool:
        """Tell, once for each time, whether someone asked for a commit without a stop."""
        wanted, self._commit_wanted = self._commit_wanted, False
        return wanted

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take signals as requests while the block runs, saying so on stderr; nothing outside the main thread.

        Signals that came ignored (`nohup`, a shell's `&`) stay so, and those of `ASK` and `COMMIT` beside SIGTERM and
        SIGINT are left to a program that handles them itself.
        """
        if self._listening:
            yield self
            return
        taken: dict[int, Any] = {}
        with suppress(ValueError):  # only the main thread may set handlers
            for name in (*ASK, COMMIT):
                number = getattr(signal, name, None)
                if number is not None and is_free(number):
                    taken[number] = signal.signal(number, self._handle)
        self._listening = bool(taken)
        try:
            yield self
        finally:
            for number, handler in taken.items():
                signal.signal(number, handler)
            self._listening = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received.name == COMMIT:
            self._commit_wanted = True
            say(f"{received.name}: committing after this step, and going on")
        elif self.signal is None:
            self.signal, self._asked_at = received, time.monotonic()
            self.ask(f"signal {received.name}")
            say(f"{received.name}: stopping; {self.promise}; once more ends at once")
        elif not self._is_echo(received):
            say(f"{received.name}: ended at once; what was committed stands")
            os._exit(code_of(received))

    def _is_echo(self, received: signal.Signals) -> bool:
        """A terminal is closed once, however many tell; and one signal may arrive twice."""
        hung_up = received.name == "SIGHUP"
        return received is self.signal and (hung_up or time.monotonic() - self._asked_at < ECHO_SECONDS)


def code_of(received: signal.Signals) -> int:
    """Return what a process ends with that this signal stopped."""
    return INTERRUPTED if received is signal.SIGINT else STOPPED


def is_free(number: signal.Signals) -> bool:
    """Tell whether a signal may be taken: not if it came ignored, or someone else has a use for it."""
    handler = signal.getsignal(number)
    if handler is None or handler == signal.SIG_IGN:
        return False  # None: set by a library in C, and could not be given back
    return number.name in EVERYONES or handler == signal.SIG_DFL


def say(line: str) -> None:
    """Write a line on stderr if it takes one now.

    Not print: a signal that arrives while a line is being printed would enter the stream twice and raise. Not to a
    stderr that was closed when Python began: the descriptor may be another file's by now.
    """
    if sys.__stderr__ is None:
        return
    with suppress(OSError, ValueError):
        if select.select((), (STDERR,), (), 0)[1]:
            os.write(STDERR, f"\n{line}\n".encode())
