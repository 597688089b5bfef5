"""From recorded events to figures with their spread: arithmetic alone, with nothing but the standard library."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]

ENOUGH_TO_RESAMPLE = 6  # of fewer values a bootstrap says no more than their range
RESAMPLES = 4000


@dataclass(frozen=True)
class Spread:
    """The median of some values and what lies about it; `kind` says what `low` and `high` are."""

    median: float
    low: float
    high: float
    count: int
    kind: str

    def text(self, digits: int = 2, unit: str = "") -> str:
        """Return "2.31 [2.25..2.40]"."""
        return f"{self.median:.{digits}f}{unit} [{self.low:.{digits}f}..{self.high:.{digits}f}]"


def spread(values: Sequence[float]) -> Spread:
    """Return the median with its 95 % bootstrap interval, or with the range if there are too few values for one."""
    if len(values) >= ENOUGH_TO_RESAMPLE:
        low, high = bootstrap(values)
        return Spread(statistics.median(values), low, high, len(values), "95 % bootstrap")
    return Spread(statistics.median(values), min(values), max(values), len(values), "min..max")


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic under resampling (Efron 1979); the same seed, the same interval."""
    draw = random.Random(seed)
    found = sorted(statistic(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = int((1 - level) / 2 * RESAMPLES)
    return found[tail], found[-1 - tail]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return theirs / ours, run by run: each pair ran one right after the other."""
    return [their / our for our, their in zip(ours, theirs, strict=True)]


def parse_events(text: str) -> list[Event]:
    """Return the events of a JSON-lines file; a killed process may leave half a line at the end, nowhere else."""
    lines = text.split("\n")
    if lines[-1]:
        lines = lines[:-1]
    return [json.loads(line) for line in lines if line]


def of_kind(events: Iterable[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


@dataclass(frozen=True)
class Window:
    """What the steps after the end of step `first` up to the end of step `last` took, all in all."""

    first: int
    last: int
    wall_seconds: float
    cpu_seconds: float

    @property
    def num_steps(self) -> int:
        return self.last - self.first

    @property
    def wall_per_step(self) -> float:
        return self.wall_seconds / self.num_steps

    @property
    def cpu_per_step(self) -> float:
        return self.cpu_seconds / self.num_steps


def window(events: Iterable[Event], warm: int, last: int | None = None) -> Window:
    """Return what the steps after the first `warm` ones took. Raises `ValueError` if they were not all recorded."""
    steps = {event["n"]: event for event in of_kind(events, "step")}
    last = max(steps, default=0) if last is None else last
    if warm not in steps or last not in steps or last <= warm:
        raise ValueError(f"steps {warm} to {last} were not recorded, only {sorted(steps)}")
    begin, end = steps[warm], steps[last]
    return Window(warm, last, end["at"] - begin["at"], end["cpu"] - begin["cpu"])


def commits_within(warm: int, last: int, every: int) -> list[int]:
    """Return after which steps a commit falls between the end of step `warm` and the end of step `last`."""
    return [step for step in range(every, last, every) if step >= warm]


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
