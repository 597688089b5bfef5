"""When to commit: decided by time and cost, so it may change freely without changing a bit of the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

SaveStrategy = Literal["auto", "steps", "epoch", "time"]

SHORTEST_AUTO_SECONDS = 10.0
# A commit may cost one percent of the time between commits.
COST_MULTIPLE = 100.0
MOST_HALVINGS = 30  # microseconds by then; 2**1024 is beyond floating point


@dataclass
class Cadence:
    """Says after which steps to commit, for one segment of a run.

    `auto` waits max(10 s, 100 x what a commit costs), halved for each of the last `fruitless` segments that ended
    without a commit, so that a run which keeps being killed still advances.
    """

    strategy: SaveStrategy = "auto"
    steps: int | None = None
    seconds: float | None = None
    fruitless: int = 0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._cost = 0.0
        self._last = self.clock()

    def due(self, step: int) -> bool:
        """Tell whether to commit after finished step `step`; the ends of epochs and phases are the loop's to see."""
        if self.strategy == "steps":
            return step % (self.steps or 1) == 0
        if self.strategy == "epoch":
            return False
        return self.clock() - self._last >= self.interval

    @property
    def interval(self) -> float:
        """Seconds between commits under `time` and `auto`."""
        if self.strategy == "time":
            return self.seconds or SHORTEST_AUTO_SECONDS
        return float(max(SHORTEST_AUTO_SECONDS, COST_MULTIPLE * self._cost) / 2 ** min(self.fruitless, MOST_HALVINGS))

    def began(self) -> None:
        """Note that a commit was begun now."""
        self._last = self.clock()

    def finished(self, cost_seconds: float) -> None:
        """Note what a commit cost: seconds training stood still or ran slower because of it."""
        self._cost = cost_seconds
