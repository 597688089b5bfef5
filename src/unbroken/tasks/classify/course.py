"""The two phases of a run: which examples each step takes, how many steps, at which rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unbroken.plan.pairs import Pairs
from unbroken.plan.plan import Draws, Plan, steps_for
from unbroken.plan.strata import Strata
from unbroken.step.schedule import learning_rate, warmup
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.course import PHASES, Course

Targets = NDArray[np.int64]
# What only the second phase reads. Data to evaluate on identify a run only where the head is calibrated on them, or
# where they choose between heads.
HEAD_KEYS = frozenset(
    ("head", "head_learning_rate", "l2_weight", "end_to_end", "class_weight", "normalize_embeddings", "calibrate")
) | {"eval_data"}
HALVED_EVERY = 5  # epochs of the second phase after which its rates are halved, as in SetFit


@dataclass(frozen=True)
class Courses:
    """The plans of both phases, their numbers of steps, and each one's learning rate by the step within it."""

    body: Draws
    head: Plan
    body_steps: int
    head_steps: int
    body_rate: Callable[[int], float]
    head_rate: Callable[[int], float] | None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.body_steps + self.head_steps

    def joined(self, config: ClassifyConfig) -> Course:
        """Return the run as one course, for what describes runs of any task."""

        def rate(step: int) -> float:
            if step < self.body_steps:
                return self.body_rate(step)
            return self.head_rate(step - self.body_steps) if self.head_rate else 1.0

        rising = warmup(self.body_steps, None, config.warmup_ratio)
        peak = config.both("body_learning_rate")[0]
        return Course(self.body, self.total_steps, rising, rate, PHASES, peak, self.body_steps, HEAD_KEYS)


def courses_of(config: ClassifyConfig, targets: Targets) -> Courses:
    """Return the course over examples with these targets: [n] class indices, or [n, L] of 0 and 1."""
    (first_size, second_size), epochs = config.both("batch_size"), config.both("num_epochs")
    body = body_plan(config, targets, first_size)
    steps = config.max_steps or max(config.min_steps, steps_for(body, epochs[0], None))
    peak = config.both("body_learning_rate")[0]
    rate = learning_rate(config.lr_scheduler_type, peak, warmup(steps, None, config.warmup_ratio), steps)
    if config.head == "logistic_regression":
        return Courses(body, Plan(len(targets), len(targets), config.seed, shuffle=False), steps, 1, rate, None)
    head = Plan(len(targets), second_size, config.seed)

    def halved(step: int) -> float:
        """PyTorch's StepLR(5, 0.5) by epochs."""
        return float(config.head_learning_rate * 0.5 ** (step // head.steps_per_epoch // HALVED_EVERY))

    return Courses(body, head, steps, steps_for(head, epochs[1], None), rate, halved)


def body_plan(config: ClassifyConfig, targets: Targets, batch_size: int) -> Draws:
    """Return the plan of the first phase: stratified texts, or pairs; in any order with several labels or a teacher."""
    if config.pairs == "sampled":
        most = config.max_steps and config.max_steps * batch_size  # pairs, of which SetFit takes no more
        if config.teacher is not None:  # any two texts: what they are to be, the teacher says
            alike = np.zeros(len(targets), dtype=np.int64)
            return Pairs(alike, batch_size, config.seed, "unique", config.num_iterations, most)
        return Pairs(targets, batch_size, config.seed, config.sampling_strategy, config.num_iterations, most)
    if targets.ndim == 2 or config.teacher is not None:
        return Plan(len(targets), min(batch_size, len(targets)), config.seed, drop_last=True)
    return Strata(targets, batch_size, config.seed)
