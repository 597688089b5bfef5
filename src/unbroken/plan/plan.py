"""The examples of a step, as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unbroken.base.errors import DataError
from unbroken.base.seeds import derive
from unbroken.plan.permutation import permute

# Part of every contract: an order changed on purpose gets a new name, so old runs are refused, not altered.
ORDER = "feistel-8"


@dataclass(frozen=True, eq=False)
class Draw:
    """The examples of one step, in order, and the epoch they belong to (counted from 0)."""

    epoch: int
    ids: NDArray[np.int64]


class Draws(Protocol):
    """What a plan of any kind offers the loop."""

    @property
    def batch_size(self) -> int:
        """How many examples a full batch has."""

    @property
    def steps_per_epoch(self) -> int:
        """How many batches make one pass."""

    def draw(self, step: int) -> Draw:
        """Return the examples of `step` (counted from 0, without end), in time that does not depend on `step`."""


@dataclass(frozen=True)
class Plan:
    """Every example once per epoch, in batches of `batch_size` that never cross epochs.

    The last batch of an epoch is short, or left out with `drop_last`. Each epoch has an order of its own, or that
    of the file where `shuffle` is off. Raises `DataError` when `drop_last` leaves no batch at all.
    """

    num_examples: int
    batch_size: int
    seed: int
    drop_last: bool = False
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.num_examples < 1 or self.batch_size < 1:
            raise ValueError(f"a plan needs examples and a batch size: {self}")
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{self.num_examples} examples are fewer than one batch of {self.batch_size}",
                why="with drop_last an epoch would have no step",
                next_step=f"set batch_size to {self.num_examples} or less, or drop_last to false",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch, counted as in Hugging Face's Trainer."""
        whole, rest = divmod(self.num_examples, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def draw(self, step: int) -> Draw:
        """Return the examples of `step` (counted from 0, without end), in time that does not depend on `step`."""
        if step < 0:
            raise ValueError(f"steps count from 0, not {step}")
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.batch_size
        positions = np.arange(start, min(start + self.batch_size, self.num_examples), dtype=np.int64)
        if not self.shuffle:
            return Draw(epoch, positions)
        return Draw(epoch, permute(derive(self.seed, "plan", epoch), positions, self.num_examples))


def steps_for(plan: Draws, num_epochs: float | None, max_steps: int | None) -> int:
    """Return how many steps a run has, as in Hugging Face's Trainer: `max_steps` if given, else the epochs' steps.

    A part of an epoch counts as the steps it touches. Raises `ValueError` if neither is given or none is left.
    """
    if max_steps is None and num_epochs is None:
        raise ValueError("a run needs num_epochs or max_steps")
    steps = max_steps if max_steps is not None else math.ceil((num_epochs or 0) * plan.steps_per_epoch)
    if steps < 1:
        raise ValueError(f"a run needs at least one step, not {steps}")
    return steps
