"""What a step of the encoder is made of, and the embeddings of all examples at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbroken.base.stopping import poll
from unbroken.models.arena import Arena
from unbroken.models.encoder import Encoder
from unbroken.models.inference import evaluating, token_batches
from unbroken.models.ragged import Ragged

TOKENS = 4096  # encoded at once; the same texts together every time, since bits depend on it


@dataclass(frozen=True)
class Batch:
    """The texts of one step in chunks, and the targets of all of them; `ids` are the examples."""

    chunks: list[Ragged]
    targets: Tensor
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Encoding:
    """Makes batches from example ids; nothing about a text is drawn, so the epoch makes no difference."""

    arena: Arena
    targets: NDArray[np.int64]
    chunk_size: int

    def __call__(self, ids: NDArray[np.int64], epoch: int) -> Batch:
        """Return the batch of the given examples, in their order."""
        chunks = [self.arena.rows(ids[i : i + self.chunk_size]) for i in range(0, len(ids), self.chunk_size)]
        return Batch(chunks, torch.from_numpy(self.targets[ids]), ids)


class Features:
    """The embeddings of all examples, as the finished model makes them: without dropout.

    A function of the encoder's weights alone, so nothing of it is saved.
    """

    def __init__(self, encoder: Encoder, arena: Arena) -> None:
        self.encoder, self.arena = encoder, arena
        self._kept: Tensor | None = None
        self._kept_of = -1

    @torch.no_grad()
    def make(self) -> Tensor:
        """Return them [n, D], on the encoder's device, by the weights of now."""
        made = torch.empty(len(self.arena), self.encoder.dimension, device=self.encoder.device)
        with evaluating(self.encoder):
            for rows in token_batches(self.arena.lengths, TOKENS):
                poll()
                made[torch.from_numpy(rows)] = self.encoder.embed(self.arena.rows(rows))
        return made

    def kept(self) -> Tensor:
        """Return them as they were made since the weights were last put in place: for a phase that leaves them so."""
        version = sum(parameter._version for parameter in self.encoder.parameters())  # a restore raises it
        if self._kept is None or self._kept_of != version:
            self._kept, self._kept_of = self.make(), version
        return self._kept
