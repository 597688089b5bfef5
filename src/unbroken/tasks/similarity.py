"""How well similarities of embeddings agree with people: graded pairs, and triplets.

Shape suffixes: B pairs or triplets, D dimensions. Definitions are those of sentence-transformers' evaluators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from unbroken.base.errors import DataError

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
Vectors = Tensor | NDArray[Any]


def graded(
    first_BD: Vectors, second_BD: Vectors, scores_B: ArrayLike, similarity: Similarity = "cosine"
) -> dict[str, float]:
    """Return how the similarities of B pairs correlate with the scores people gave them, in [-1, 1].

    Keys: `spearman_cosine` (Pearson correlation of the ranks, equal values sharing their average rank; Spearman
    1904) and `pearson_cosine`, with the similarity's name. Similarities that are all equal order nothing: both are
    0 then. Raises `DataError` when the scores are all equal, for then there is no order to agree with.
    """
    gold_B = np.asarray(scores_B, dtype=np.float64)
    if not len(gold_B) or (gold_B == gold_B[0]).all():
        raise DataError(
            f"the {len(gold_B)} scores of the evaluation data are all equal",
            why="a correlation with them is not defined",
            next_step="give pairs with at least two different scores",
        )
    predicted_B = _similarities(first_BD, second_BD, similarity).double().numpy()
    return {
        f"spearman_{similarity}": _correlation(_average_ranks(gold_B), _average_ranks(predicted_B)),
        f"pearson_{similarity}": _correlation(gold_B, predicted_B),
    }


def triplet_accuracy(
    anchors_BD: Vectors, positives_BD: Vectors, negatives_BD: Vectors, similarity: Similarity = "cosine"
) -> dict[str, float]:
    """Return the share of B triplets whose anchor is nearer to its positive than to its negative.

    Key: `cosine_accuracy`, with the similarity's name. A tie counts as wrong.
    """
    near_B = _similarities(anchors_BD, positives_BD, similarity)
    far_B = _similarities(anchors_BD, negatives_BD, similarity)
    return {f"{similarity}_accuracy": float((near_B > far_B).double().mean())}


def as_float32(vectors: Vectors) -> Tensor:
    """Return embeddings as a float32 tensor: a tensor on its own device, an array or memory map as a copy."""
    if isinstance(vectors, Tensor):
        return vectors.detach().float()
    return torch.tensor(vectors, dtype=torch.float32)


def _similarities(first_BD: Vectors, second_BD: Vectors, similarity: Similarity) -> Tensor:
    return SIMILARITIES[similarity](as_float32(first_BD), as_float32(second_BD)).cpu()


SIMILARITIES: Mapping[Similarity, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda first_BD, second_BD: (F.normalize(first_BD) * F.normalize(second_BD)).sum(dim=1),
    "dot": lambda first_BD, second_BD: (first_BD * second_BD).sum(dim=1),
    "euclidean": lambda first_BD, second_BD: -torch.linalg.vector_norm(first_BD - second_BD, dim=1),
    "manhattan": lambda first_BD, second_BD: -(first_BD - second_BD).abs().sum(dim=1),
}


def _correlation(first_B: NDArray[np.float64], second_B: NDArray[np.float64]) -> float:
    """Return the Pearson correlation; 0 where one of them is constant."""
    first_B = first_B - first_B.mean()
    second_B = second_B - second_B.mean()
    lengths = np.linalg.norm(first_B) * np.linalg.norm(second_B)
    return float(np.clip(first_B @ second_B / lengths, -1.0, 1.0)) if lengths > 0 else 0.0


def _average_ranks(values_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1; equal values share the average of the ranks they occupy together."""
    _, group_B, sizes = np.unique(values_B, return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(sizes)
    return np.asarray((last_ranks - (sizes - 1) / 2)[group_B], dtype=np.float64)
