"""Batches of an even number of tokens: examples of uneven length share a bin, and a step takes so many bins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unbroken.base.errors import DataError
from unbroken.base.seeds import derive
from unbroken.plan.permutation import permute
from unbroken.plan.plan import Draw

# Part of every contract, as `plan.ORDER` is: draws changed on purpose get a new name.
ORDER = "bins-1"


@dataclass(frozen=True, eq=False)
class Bins:
    """Every example in exactly one bin: bin k holds `members[starts[k] : starts[k + 1]]`."""

    members: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """The bin of each example: [examples]."""
        numbers = np.empty(len(self.members), dtype=np.int64)
        numbers[self.members] = np.repeat(np.arange(len(self)), np.diff(self.starts))
        return numbers

    def of(self, bins: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the examples of some bins, bin by bin."""
        return [self.members[self.starts[k] : self.starts[k + 1]] for k in bins.tolist()]


def fill_bins(lengths: NDArray[np.int64], capacity: int) -> Bins:
    """Return bins of at most `capacity` tokens, by best-fit decreasing: the longest first, each where least is left.

    At most 11/9 of the smallest possible number of bins, plus one (Johnson 1973; Dosa 2007). A longer example has a
    bin of its own. A pure function of the lengths. Takes n log n time: the bins with room are found in a bit mask.
    """
    order = np.argsort(-lengths, kind="stable")
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that is left
    rooms = 0  # bit r is set where a bin has room for r
    bin_of = np.empty(len(lengths), dtype=np.int64)
    count = 0
    for example, length in zip(order.tolist(), np.minimum(lengths[order], capacity).tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = open_bins[room].pop()
            if not open_bins[room]:
                rooms ^= 1 << room
        else:
            room, number = capacity, count
            count += 1
        bin_of[example] = number
        left = room - length
        if left:
            open_bins[left].append(number)
            rooms |= 1 << left
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(bin_of, minlength=count))])
    return Bins(np.argsort(bin_of, kind="stable"), starts)


@dataclass(frozen=True, eq=False)
class Packed:
    """Every bin once per epoch, in batches of `batch_size` bins that never cross epochs; else as `Plan`.

    What `bins` hold is the same in every epoch, which others they meet in a batch is not. Without `bins` it tells how
    many steps there are, and draws nothing. Raises `DataError` when `drop_last` leaves no batch at all.
    """

    num_bins: int
    batch_size: int
    seed: int
    drop_last: bool = False
    shuffle: bool = True
    bins: Bins | None = None

    def __post_init__(self) -> None:
        if self.steps_per_epoch == 0:
            raise DataError(
                f"the examples fill {self.num_bins} bins, fewer than one batch of {self.batch_size}",
                why="with drop_last an epoch would have no step",
                next_step=f"set batch_size to {self.num_bins} or less, or drop_last to false",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(self.num_bins, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def draw(self, step: int) -> Draw:
        """Return the examples of `step` (counted from 0, without end), bin by bin."""
        assert self.bins is not None, "a plan without its bins draws nothing"
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.batch_size
        turns = np.arange(start, min(start + self.batch_size, self.num_bins), dtype=np.int64)
        if self.shuffle:
            turns = permute(derive(self.seed, "bins", epoch), turns, self.num_bins)
        return Draw(epoch, np.concatenate(self.bins.of(turns)))
