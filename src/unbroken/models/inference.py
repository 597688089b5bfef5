"""Encoding texts for use and for evaluation: each distinct text once, longest first, in batches of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unbroken.base.stopping import poll
from unbroken.models.progress import progress

if TYPE_CHECKING:
    from unbroken.models.encoder import Encoder

# `batch_size` is given in texts; what matters is tokens. A text is reckoned at this many.
TOKENS_PER_TEXT = 128


@torch.no_grad()
def encode_texts(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    prompt: str,
    batch_size: int,
    normalize: bool,
    truncate_dim: int | None,
    show_progress: bool | None,
) -> Tensor:
    """Return the embeddings [N, D] of `texts`, on the encoder's device, in the order given."""
    distinct: dict[str, int] = {}
    rows = np.fromiter((distinct.setdefault(text, len(distinct)) for text in texts), np.int64, count=len(texts))
    ragged = encoder.tokenize(list(distinct), prompt)
    batches = token_batches(ragged.lengths, batch_size * TOKENS_PER_TEXT)
    embeddings = torch.empty(len(distinct), encoder.dimension, device=encoder.device, dtype=encoder.dtype)
    with evaluating(encoder), progress("Encoding", len(distinct), show_progress) as advance:
        for batch in batches:
            poll()
            embeddings[torch.from_numpy(batch)] = encoder.embed(ragged.select(batch))
            advance(len(batch))
    if truncate_dim is not None:
        embeddings = embeddings[:, :truncate_dim]
    if normalize:
        embeddings = F.normalize(embeddings, p=2, dim=-1)
    return embeddings[torch.from_numpy(rows)]


def token_batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows, longest first, in batches of at most `budget` tokens (a longer row goes alone)."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + budget, side="right")))
        yield order[start:stop]
        start = stop


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every module in eval mode inside, and each back in its own mode after."""
    trained = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True
