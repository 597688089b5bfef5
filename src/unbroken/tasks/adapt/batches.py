"""From the numbers of examples to token ids and what of them is to be learned, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbroken.models.chat import ChatFormat, Tokens
from unbroken.plan.packing import Bins
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.conversation import Rows
from unbroken.tasks.adapt.encoding import encoded


@dataclass(frozen=True)
class Chunk:
    """Texts in memory at once, one after the other: `ids` and `targets` are [T], `lengths` [N]."""

    ids: Tensor
    lengths: NDArray[np.int64]
    targets: Tensor

    @classmethod
    def of(cls, texts: list[Tokens]) -> Chunk:
        """Return some texts as a chunk."""
        return cls(
            torch.from_numpy(np.concatenate([text.ids for text in texts])),
            np.array([len(text.ids) for text in texts], dtype=np.int64),
            torch.from_numpy(np.concatenate([text.targets for text in texts])),
        )

    @property
    def num_targets(self) -> int:
        """The number of tokens to be learned."""
        return int(self.targets.sum())


@dataclass(frozen=True)
class Batch:
    """The chunks of one step, and the share of the batch's target tokens that each holds."""

    chunks: list[Chunk]
    weights: list[float]

    @classmethod
    def of(cls, chunks: list[Chunk]) -> Batch:
        """Return chunks as a batch: its loss is the mean over all target tokens, whichever chunk they are in."""
        total = sum(chunk.num_targets for chunk in chunks)
        return cls(chunks, [chunk.num_targets / total for chunk in chunks])


@dataclass(frozen=True)
class Encoding:
    """Makes batches from example ids and the epoch. A chunk has `chunk_size` examples, or bins where there are any."""

    rows: Rows
    chat: ChatFormat
    config: AdaptConfig
    chunk_size: int
    bins: Bins | None = None

    def __call__(self, ids: NDArray[np.int64], epoch: int) -> Batch:
        """Return the batch of the given examples, in their order."""
        return Batch.of(
            [
                Chunk.of([encoded(self.rows, self.chat, self.config, example, epoch) for example in part])
                for part in self.split(ids)
            ]
        )

    def split(self, ids: NDArray[np.int64]) -> list[list[int]]:
        """Return the examples of each chunk."""
        starts = np.arange(len(ids)) if self.bins is None else bin_starts(ids, self.bins)
        cuts = starts[:: self.chunk_size][1:]
        return [part.tolist() for part in np.split(ids, cuts)]


def bin_starts(ids: NDArray[np.int64], bins: Bins) -> NDArray[np.int64]:
    """Return where in a batch drawn bin by bin each bin begins."""
    numbers = bins.numbers[ids]
    return np.flatnonzero(np.concatenate([np.ones(1, bool), numbers[1:] != numbers[:-1]]))
