"""How a segment of a run goes about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from unbroken.run.cadence import Cadence

MOMENTS_AND_WEIGHTS = 3  # what a commit holds of each trained tensor


@dataclass(frozen=True)
class Settings:
    """What may change from segment to segment without changing a bit of the result."""

    cadence: Cadence = field(default_factory=Cadence)
    eval_steps: int | None = None
    best_metric: str | None = None
    greater_is_better: bool = True
    commit_first: bool = False
    accept_drift: bool = False
    restore_step: int | None = None
