"""Batches of a few examples from each of a few classes, as a pure function of the step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unbroken.base.errors import ConfigError
from unbroken.base.seeds import derive
from unbroken.plan.permutation import permute
from unbroken.plan.plan import Draw

# Part of every contract, as `plan.ORDER` is: draws changed on purpose get a new name.
ORDER = "strata-1"


@dataclass(frozen=True, eq=False)
class Grouped:
    """Examples sorted by class: those of class k are `members[starts[k] : starts[k] + sizes[k]]`, by row.

    Classes are numbered from 0 in the order of their values; `numbers[example]` is the class of an example.
    """

    numbers: NDArray[np.int64]
    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]


def group(classes: NDArray[np.int64]) -> Grouped:
    """Return the examples sorted by class. Raises `ValueError` unless there are some, with one class each."""
    if classes.ndim != 1 or not classes.size:
        raise ValueError(f"every example has one class, and there are some: {classes.shape}")
    _, numbers, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    return Grouped(numbers, np.argsort(numbers, kind="stable"), np.cumsum(sizes) - sizes, sizes)


@dataclass(frozen=True, eq=False)
class Strata:
    """Batches of `num_classes` classes, with up to `num_each` examples of each, that repeat no example.

    Examples of one class are what positive pairs are made of, so a batch holds two of each class at least (a class
    with a single example gives that one). `per_class` is `num_each`; without it a batch has room for every class if
    two of each fit, else for two of each of as many classes as fit. A smaller class gives all its examples.

    Every set of `num_classes` classes is equally likely in a batch, and so is every set of as many examples of each
    of them as it gives: `pair_probabilities` follow. Classes take turns (a cycle of batches holds each at most once)
    and so do the examples of a class, so that all occur about as often as their class allows.

    Raises `ConfigError` where a batch has no room for two examples of two classes, or of the only one.
    """

    classes: NDArray[np.int64]
    batch_size: int
    seed: int
    per_class: int | None = None

    def __post_init__(self) -> None:
        needed, word = (1, "class") if len(self.grouped.sizes) == 1 else (2, "classes")
        if self.num_each < 2:
            raise ConfigError(
                f"per_class is {self.per_class}",
                why="a pair of one class takes two of its examples",
                next_step="set per_class to 2 or more",
            )
        if self.num_classes < needed:
            raise ConfigError(
                f"batch_size {self.batch_size} has no room for {self.num_each} examples of {needed} {word}",
                why="a batch must hold pairs of one class, and pairs of two",
                next_step=f"set batch_size to {needed * self.num_each} or more",
            )

    @cached_property
    def grouped(self) -> Grouped:
        """The examples sorted by class."""
        return group(self.classes)

    @property
    def num_each(self) -> int:
        """Return how many examples a class gives to a batch, if it has as many."""
        return max(2, self.batch_size // len(self.grouped.sizes)) if self.per_class is None else self.per_class

    @property
    def num_classes(self) -> int:
        """Return how many classes a batch holds."""
        return min(len(self.grouped.sizes), self.batch_size // self.num_each)

    @cached_property
    def given(self) -> NDArray[np.int64]:
        """How many examples each class gives to a batch that holds it."""
        return np.minimum(self.grouped.sizes, self.num_each)

    @cached_property
    def steps_per_epoch(self) -> int:
        """The number of batches that hold, on average, as many examples as there are; rounded up."""
        all_classes, all_examples = len(self.grouped.sizes), len(self.classes)
        return -(-all_examples * all_classes // (self.num_classes * int(self.given.sum())))

    def draw(self, step: int) -> Draw:
        """Return the examples of `step` (counted from 0, without end), class by class.

        Takes time proportional to the batch, whatever the step and however many examples there are.
        """
        if step < 0:
            raise ValueError(f"steps count from 0, not {step}")
        all_classes = len(self.grouped.sizes)
        cycle, index = divmod(step, all_classes // self.num_classes)
        turns = np.arange(index * self.num_classes, (index + 1) * self.num_classes, dtype=np.int64)
        drawn = permute(derive(self.seed, "strata", cycle), turns, all_classes)
        ids = np.concatenate([self._examples(number, cycle) for number in drawn.tolist()])
        return Draw(step // self.steps_per_epoch, ids)

    def _examples(self, number: int, cycle: int) -> NDArray[np.int64]:
        """Return what a class gives in a cycle: the next piece of an order of its own, or the first of a new order."""
        start, size = int(self.grouped.starts[number]), int(self.grouped.sizes[number])
        given = int(self.given[number])
        order, piece = divmod(cycle, size // given)
        turns = np.arange(piece * given, (piece + 1) * given, dtype=np.int64)
        return self.grouped.members[start + permute(derive(self.seed, "stratum", number, order), turns, size)]

    def pair_probabilities(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the probability that a batch holds both examples, for each pair of `ids`: symmetric.

            one class k of n examples, r given:   c/K  r(r-1) / (n(n-1))
            classes k and l:                      c(c-1)/(K(K-1))  r_k/n_k  r_l/n_l

        for batches of c of the K classes. On the diagonal stands the probability that a batch holds the example.
        """
        all_classes = len(self.grouped.sizes)
        numbers = self.grouped.numbers[ids]
        sizes, given = self.grouped.sizes[numbers], self.given[numbers]
        held = self.num_classes / all_classes
        both_held = held * (self.num_classes - 1) / max(1, all_classes - 1)
        share = given / sizes
        within = held * share * (given - 1) / np.maximum(1, sizes - 1)
        same = numbers[:, None] == numbers[None, :]
        probabilities = np.where(same, within[:, None], both_held * np.outer(share, share))
        np.fill_diagonal(probabilities, held * share)
        return probabilities
