"""Rows of token ids of any length, kept flat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """N rows of token ids, one after the other, without padding.

    `ids` is flat: [T], int32 or int64. `lengths` gives each row's number of tokens: [N]. `prompt_lengths` gives
    how many of them, special tokens in front included, belong to a prompt: [N]; only a pooling that leaves prompts
    out looks at it.
    """

    ids: Tensor
    lengths: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]

    @classmethod
    def of(cls, ids: Tensor, lengths: NDArray[np.int64], prompt_length: int = 0) -> Ragged:
        """Return rows that all begin with the same prompt of `prompt_length` tokens."""
        return cls(ids, lengths, np.full(len(lengths), prompt_length, dtype=np.int64))

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]], prompt_length: int = 0) -> Ragged:
        """Return the rows given as lists of token ids."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        return cls.of(torch.from_numpy(flat), lengths, prompt_length)

    @classmethod
    def concat(cls, parts: Iterable[Ragged]) -> Ragged:
        """Return all rows of all `parts` (the columns of a batch, say), in order."""
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.ids for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.prompt_lengths for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all rows together."""
        return int(self.ids.shape[0])

    def select(self, rows: NDArray[np.int64] | Sequence[int]) -> Ragged:
        """Return the given rows in the given order; a row may be asked for more than once."""
        chosen = np.asarray(rows, dtype=np.int64)
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[chosen]
        places = torch.from_numpy(gather_places(starts[chosen], lengths)).to(self.ids.device)
        return Ragged(self.ids[places], lengths, self.prompt_lengths[chosen])

    def to_lists(self) -> list[list[int]]:
        """Return the rows as lists of token ids."""
        return [row.tolist() for row in torch.split(self.ids, self.lengths.tolist())]


def gather_places(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `[start, start + 1, ...]` of every span, one span after the other: [sum(lengths)]."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total, dtype=np.int64)
