"""A time by which a run must have stopped and committed: `--stop-at`, for schedulers that kill at a known time."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from unbroken.base.errors import ConfigError

FORMS = "give a time to come, as 17:30, 2026-11-22T17:30, +3h50m or in Unix seconds"
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
SPAN = re.compile(r"\+(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
UNIX = re.compile(r"\d{9,11}(\.\d+)?", re.ASCII)
# The next step may take longer than the last ones, and a commit may have to wait for the one before it.
MARGIN = 2.0
SPARE_SECONDS = 1.0
RECENT = 8
# Slower than most disks: what a commit is thought to take until one was measured.
ASSUMED_BYTES_PER_SECOND = 100e6
LONGEST_CANARY_SECONDS = 5.0  # a stop must fit into the grace time of a signal, 30 s with many schedulers


class Deadline:
    """How long there is until the last commit must be done, and whether what comes next fits in.

    The time that is left is taken once and counted by a clock that nobody sets. Without a time there is always enough.
    """

    def __init__(self, seconds: float = math.inf, name: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.reason = f"stop-at {name}"
        self._end = clock() + seconds
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._commits: deque[float] = deque(maxlen=RECENT)
        self._assumed_commit = 0.0

    @classmethod
    def of(cls, when: str | float | datetime | None) -> Deadline:
        """Return the deadline `when` names, None for none. Raises `ConfigError` if it cannot be read or is past."""
        if when is None:
            return cls()
        now = datetime.now().astimezone()
        seconds = _unix_time(when, now) - now.timestamp()
        if seconds <= 0:
            raise ConfigError(f"stop-at {when} is past: now it is {now:%Y-%m-%d %H:%M:%S}", next_step=FORMS)
        return cls(seconds, str(when))

    def step_took(self, seconds: float) -> None:
        """Note how long a step took, batch and all."""
        self._steps.append(seconds)

    def commit_took(self, seconds: float) -> None:
        """Note how long a commit took from its beginning until it was durable."""
        self._commits.append(seconds)

    def commit_has(self, num_bytes: float) -> None:
        """Note how much a commit writes: until one was measured, that tells how long it takes."""
        self._assumed_commit = num_bytes / ASSUMED_BYTES_PER_SECOND

    @property
    def seconds_left(self) -> float:
        """How long there is, less a second to end the process in; never below zero."""
        return max(0.0, self._end - self.clock() - SPARE_SECONDS)

    @property
    def leaves_a_step(self) -> bool:
        """Whether one more step and the commit after it would be done in time."""
        return self._leaves(MARGIN * (self._step + self._commit))

    @property
    def leaves_a_commit(self) -> bool:
        """Whether a commit that begins now would be done in time."""
        return self._leaves(MARGIN * self._commit)

    @property
    def leaves_a_canary(self) -> bool:
        """Whether a step's gradients can be computed in time, and without a deadline in usual grace times."""
        return self._step <= LONGEST_CANARY_SECONDS and self._leaves(MARGIN * self._step)

    @property
    def _step(self) -> float:
        return max(self._steps, default=0.0)

    @property
    def _commit(self) -> float:
        return max(self._commits, default=self._assumed_commit)

    def _leaves(self, seconds: float) -> bool:
        return self._end - self.clock() >= SPARE_SECONDS + seconds


def _unix_time(when: str | float | datetime, now: datetime) -> float:
    """Return the time meant, in Unix seconds; a date or time without a zone is local, a time alone the next such."""
    try:
        if isinstance(when, datetime):
            return when.timestamp()
        if isinstance(when, int | float):
            return float(when) if math.isfinite(when) else 0.0
        text = when.strip()
        if UNIX.fullmatch(text):
            return float(text)
        if text != "+" and (span := SPAN.fullmatch(text)):
            parts = zip(span.groups(), UNITS.values(), strict=True)
            return now.timestamp() + sum(int(count) * unit for count, unit in parts if count)
        if time_of_day := CLOCK.fullmatch(text):
            return _next(now, *(int(part or 0) for part in time_of_day.groups()))
        if "-" in text[1:]:
            return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    raise ConfigError(f"stop-at {when!r} is no time", next_step=FORMS)


def _next(now: datetime, hour: int, minute: int, second: int) -> float:
    """Return the next local time of day after `now`; each day has its own offset from UTC."""
    today = now.replace(tzinfo=None, hour=hour, minute=minute, second=second, microsecond=0)
    found = today.timestamp()
    return found if found > now.timestamp() else (today + timedelta(days=1)).timestamp()
