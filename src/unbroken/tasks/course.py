"""What a configuration makes of a number of rows: which examples each step takes, how many steps, at which rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from unbroken.plan.plan import Draws, Plan, steps_for
from unbroken.step.schedule import learning_rate, warmup
from unbroken.tasks.common import TrainingConfig

PHASES = "phases"  # the kind of a course whose phases each have their own


@dataclass(frozen=True)
class Course:
    """The plan of a run, its number of steps, and the learning rate as a function of the step, counted from 0.

    `kind` names the course of the rate and `peak` its highest value, for people; so does `warmup_steps`. Of two phases
    the first ends after step `boundary`, and what it does does not depend on the keys in `later`.
    """

    plan: Draws
    total_steps: int
    warmup_steps: int
    rate: Callable[[int], float]
    kind: str
    peak: float
    boundary: int | None = None
    later: frozenset[str] = frozenset()


def course_of(config: TrainingConfig, num_examples: int) -> Course:
    """Return the course of a run of one phase. Raises `DataError` where there is no batch."""
    return course_along(config, Plan(num_examples, config.batch_size, config.seed, config.drop_last, config.shuffle))


def course_along(config: TrainingConfig, plan: Draws) -> Course:
    """Return the course of a run of one phase along a plan."""
    total = steps_for(plan, config.num_train_epochs, config.max_steps)
    rising = warmup(total, config.warmup_steps, config.warmup_ratio)
    kind, peak = config.lr_scheduler_type, config.learning_rate
    return Course(plan, total, rising, learning_rate(kind, peak, rising, total), kind, peak)
