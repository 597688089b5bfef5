"""Pairs of examples, told apart by whether they share a label: SetFit's own, by arithmetic instead of a list."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unbroken.base.errors import DataError
from unbroken.base.seeds import derive
from unbroken.plan.permutation import permute
from unbroken.plan.plan import Draw
from unbroken.plan.strata import Grouped, group

Strategy = Literal["oversampling", "undersampling", "unique"]
Integers = NDArray[np.int64]

# Part of every contract, as `plan.ORDER` is: draws changed on purpose get a new name.
ORDER = "pairs-1"
# Label sets compared at once, in values: 8 MB of them bound what counting pairs takes.
BLOCK = 1 << 20


def count_pairs(labels: Integers) -> tuple[int, int]:
    """Return how many pairs of examples share a label, and how many do not, both as SetFit counts them.

    `labels` are classes, [n], or 0/1 targets, [n, L]. SetFit pairs each example with itself, too: n of the pairs are
    such, and they are positive unless the example has no label. Takes memory linear in n.
    """
    positive, negative = both_kinds(labels)
    return positive.count, negative.count


def both_kinds(labels: Integers) -> tuple[Kind, Kind]:
    """Return the pairs that share a label and those that share none; `labels` as for `count_pairs`."""
    if labels.ndim != 2:
        groups, sets = group(labels), None
    else:  # floats, because numpy multiplies no other matrices fast; sums of ones are exact in them
        distinct, numbers = np.unique(labels.astype(bool), axis=0, return_inverse=True)
        groups, sets = group(numbers.reshape(-1)), distinct.astype(np.float32)
    return Kind(groups, sets, positive=True), Kind(groups, sets, positive=False)


class Kind:
    """All pairs i <= j of one kind, positive or negative, numbered from 0.

    First come the pairs within groups, group by group, then those of a group with later ones. A group is a class or,
    where `sets` are given, the examples with one set of labels. Only sizes are kept, never pairs.
    """

    def __init__(self, groups: Grouped, sets: NDArray[np.float32] | None, positive: bool) -> None:
        self.groups, self.sets, self.positive = groups, sets, positive
        sizes = groups.sizes
        alike = np.ones(len(sizes), bool) if sets is None else sets.any(axis=1)
        self.later = self._count_later()
        self.counts = np.concatenate([np.where(alike == positive, sizes * (sizes + 1) // 2, 0), sizes * self.later])
        self.ends = np.cumsum(self.counts)
        self.count = int(self.ends[-1])

    def pairs(self, numbers: Integers) -> Integers:
        """Return the pairs of these numbers as examples, [len(numbers), 2], the earlier row of each first."""
        block = np.searchsorted(self.ends, numbers, side="right")
        rank = numbers - (self.ends[block] - self.counts[block])
        num_groups = len(self.groups.sizes)
        own, across = block % num_groups, block >= num_groups
        high = _triangular_root(rank)
        first, second = rank - high * (high + 1) // 2, self.groups.starts[own] + high
        row, place = np.divmod(rank[across], self.later[own[across]])
        first[across], second[across] = row, self._later_example(own[across], place)
        places = np.stack([self.groups.starts[own] + first, second], axis=1)
        pairs: Integers = np.sort(self.groups.members[places], axis=1)
        return pairs

    def _count_later(self) -> Integers:
        """Count, for each group, the examples of later groups with which its examples make pairs of this kind."""
        sizes = self.groups.sizes
        if self.sets is None:
            return np.zeros_like(sizes) if self.positive else len(self.groups.members) - self.groups.starts - sizes
        groups = np.arange(len(sizes))
        blocks = np.array_split(groups, -(-(len(sizes) ** 2) // BLOCK))
        return np.concatenate([self._later(self.sets, block) @ sizes for block in blocks])

    def _later_example(self, own: Integers, place: Integers) -> Integers:
        """Return where example number `place`, of those counted for a group by `_count_later`, stands."""
        starts, sizes = self.groups.starts, self.groups.sizes
        if self.sets is None:
            return starts[own] + sizes[own] + place
        passed = np.cumsum(self._later(self.sets, own) * sizes, axis=1)
        other = (passed <= place[:, None]).sum(axis=1)
        before = np.take_along_axis(passed, other[:, None], axis=1)[:, 0] - sizes[other]
        example: Integers = starts[other] + place - before
        return example

    def _later(self, sets: NDArray[np.float32], own: Integers) -> NDArray[np.bool_]:
        """Return for each group of `own` which groups are later and make pairs of this kind with it."""
        share = (sets[own] @ sets.T > 0) == self.positive
        later: NDArray[np.bool_] = share & (np.arange(len(sets)) > own[:, None])
        return later


def _triangular_root(ranks: Integers) -> Integers:
    """Return the largest h with h(h+1)/2 <= rank: the larger index of pair number `rank` of a triangle."""
    root: Integers = ((np.sqrt(8.0 * ranks + 1) - 1) / 2).astype(np.int64)
    root -= root * (root + 1) // 2 > ranks  # floats hold 53 bits: beyond 2**50 the root may come out one too large
    return root


@dataclass(frozen=True, eq=False)
class Pairs:
    """SetFit 1.2's pairs and counts, `batch_size` pairs a step; the last batch of an epoch is short.

    With P positive and M negative pairs (each example's pair with itself among them, as in SetFit), an epoch has

        oversampling    max(P, M) of either kind, those of the rarer repeated in turn
        undersampling   min(P, M) of either kind
        unique          all P + M
        num_iterations  that many times n of either kind, whatever the strategy

    Where an epoch does not need all of a kind, which ones it takes depends on the seed alone, so that every epoch has
    the same pairs, in an order of its own. `max_pairs` stands for the steps that SetFit is to make: it never takes
    more than half as many different pairs of either kind. `labels` are classes, [n], or 0/1 targets, [n, L], where
    one label in common makes a pair positive. For the pairs of a teacher, which have no labels: one class, "unique".

    Raises `DataError` where pairs of a kind are needed and there are none.
    """

    labels: NDArray[np.int64]
    batch_size: int
    seed: int
    strategy: Strategy = "oversampling"
    num_iterations: int | None = None
    max_pairs: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.num_iterations is not None and self.num_iterations < 1):
            raise ValueError(f"a plan needs pairs: batches of {self.batch_size}, {self.num_iterations} iterations")
        lacking = (
            ("share a label", "give examples labels"),
            ("have no label in common", "give examples of two classes at least"),
        )
        for kind, (word, next_step) in zip(self.kinds, lacking, strict=True):
            if not kind.count and self.strategy != "unique":
                raise DataError(
                    f"no two of the {len(self.labels)} examples {word}",
                    why=f"{self.strategy} takes as many pairs that do as pairs that do not",
                    next_step=next_step,
                )
        if not self.num_pairs:
            raise DataError(
                f"max_pairs {self.max_pairs} leaves no pair", next_step="take a larger batch, or more steps"
            )

    @cached_property
    def kinds(self) -> tuple[Kind, Kind]:
        """All pairs that share a label, and all that share none."""
        return both_kinds(self.labels)

    @cached_property
    def nums(self) -> tuple[int, int]:
        """How many positive and how many negative pairs an epoch has, repeated ones included."""
        distinct = [self._distinct(kind) for kind in self.kinds]
        if self.num_iterations is not None:
            wanted = [self.num_iterations * len(self.labels)] * 2
        elif self.strategy == "unique":
            wanted = distinct
        else:
            wanted = [max(distinct) if self.strategy == "oversampling" else min(distinct)] * 2
        positive, negative = (num if some else 0 for num, some in zip(wanted, distinct, strict=True))
        return positive, negative

    @property
    def num_pairs(self) -> int:
        """Return how many pairs an epoch has."""
        return sum(self.nums)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-self.num_pairs // self.batch_size)

    def draw(self, step: int) -> Draw:
        """Return the examples of the pairs of `step` (counted from 0, without end), first, second, first, second, ...

        Takes time proportional to the batch (with targets, times the number of label sets), whatever the step.
        """
        if step < 0:
            raise ValueError(f"steps count from 0, not {step}")
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.batch_size
        turns = np.arange(start, min(start + self.batch_size, self.num_pairs), dtype=np.int64)
        listed = permute(derive(self.seed, "pairs", epoch), turns, self.num_pairs)
        pairs = np.empty((len(listed), 2), dtype=np.int64)
        alike = listed < self.nums[0]
        pairs[alike] = self._listed(self.kinds[0], listed[alike])
        pairs[~alike] = self._listed(self.kinds[1], listed[~alike] - self.nums[0])
        return Draw(epoch, pairs.reshape(-1))

    def _distinct(self, kind: Kind) -> int:
        return kind.count if self.max_pairs is None else min(kind.count, self.max_pairs // 2)

    def _listed(self, kind: Kind, places: Integers) -> Integers:
        """Return what stands at these places of an epoch's list of one kind: a fixed order of its pairs, repeated."""
        key = derive(self.seed, "pairs", "positive" if kind.positive else "negative")
        return kind.pairs(permute(key, places % max(1, self._distinct(kind)), kind.count))
