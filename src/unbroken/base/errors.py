"""Every error a user can meet: one line that says what happened, where, and what to do next."""

from __future__ import annotations


class UnbrokenError(Exception):
    """A failure explained to the user; `exit_code` is what the command line ends with.

    `what` names the thing and the place (file, row, key), `why` the consequence, `next_step` the way out.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", next_step: str = "") -> None:
        self.what = what
        self.why = why
        self.next_step = next_step
        super().__init__("; ".join(part for part in (what, why, next_step) if part))


class ConfigError(UnbrokenError):
    """The command or its configuration cannot be understood, or names something that is not there."""

    exit_code = 2


class DataError(UnbrokenError):
    """A data file holds something that cannot be trained or evaluated on."""

    exit_code = 3


class CannotContinueError(UnbrokenError):
    """The run exists but cannot go on as asked: contract broken, no valid checkpoint, results differ."""

    exit_code = 4


class FailsAgainError(CannotContinueError):
    """A step failed as it did before: it is a function of what precedes it, so it will not succeed by being tried."""


class VerificationError(UnbrokenError):
    """A check of recorded results against recomputed ones failed."""

    exit_code = 5


class BusyError(UnbrokenError):
    """Another process holds the run; the same command works once that process has ended."""

    exit_code = 75


class TrainingError(UnbrokenError):
    """Training itself went wrong (a loss that is not finite, say); the last commit stands."""

    exit_code = 1


class StorageError(UnbrokenError):
    """The disk refused: no space, no permission, an I/O error; what was committed before stands."""

    exit_code = 1
