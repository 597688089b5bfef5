"""What training minimises: each loss is the formula of its paper, equal to sentence-transformers 6.2's class.

Shape suffixes: B examples of the batch, C candidates (C >= B), D dimensions of an embedding, L labels.
Embeddings come as the encoder made them; cosines are taken here. Arithmetic is in the embeddings' dtype, so under
autocast call these outside of it. No operation here sums by atomics: on CUDA, too, equal inputs give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Similarity = Literal["cosine", "dot"]
Distance = Literal["euclidean", "cosine", "manhattan"]


def multiple_negatives_ranking(
    anchors_BD: Tensor,
    candidates_CD: Tensor,
    scale: float = 20.0,
    similarity: Similarity = "cosine",
    symmetric: bool = False,
) -> Tensor:
    """Return the mean cross-entropy of finding each anchor's positive among all candidates: a scalar.

        loss = -1/B sum_i log( exp(scale s(a_i, c_i)) / sum_j exp(scale s(a_i, c_j)) )

    Candidate i is anchor i's positive; candidates from B on are hard negatives, shared by all anchors. `scale` is
    one over the temperature. With `symmetric` the loss is averaged with that of finding each positive's anchor
    among the anchors (hard negatives have no anchor, so they take no part in that half).

    InfoNCE, van den Oord et al. 2018 (arXiv 1807.03748); in-batch negatives, Henderson et al. 2017 (arXiv
    1705.00652); symmetric form, Günther et al. 2023 (arXiv 2310.19923).
    """
    if similarity == "cosine":
        anchors_BD, candidates_CD = F.normalize(anchors_BD, dim=-1), F.normalize(candidates_CD, dim=-1)
    scores_BC = (anchors_BD * scale) @ candidates_CD.T  # scaling B x D values instead of B x C
    num_anchors = len(anchors_BD)
    positives_B = torch.arange(num_anchors, device=scores_BC.device)
    loss = F.cross_entropy(scores_BC, positives_B)
    if not symmetric:
        return loss
    return (loss + F.cross_entropy(scores_BC[:, :num_anchors].T, positives_B)) / 2


def cosent(first_BD: Tensor, second_BD: Tensor, scores_B: Tensor, scale: float = 20.0) -> Tensor:
    """Return how badly the cosines of B pairs are ordered, compared with their graded scores: a scalar.

        loss = log( 1 + sum over i, j with score_i > score_j of exp(scale (cos_j - cos_i)) )

    Only the order of `scores_B` counts; pairs of equal score ask for nothing, and a batch of equal scores has loss
    0 and gradient 0. Takes B x B memory (64 MB at B = 4096), where the form in linear memory, a cumulative
    logsumexp over sorted scores, has no deterministic CUDA kernel.

    CoSENT, Huang et al. 2024 (doi 10.1109/TASLP.2024.3402087).
    """
    cosines_B = scale * pairwise_cosine(first_BD, second_BD)
    differences_BB = cosines_B[None, :] - cosines_B[:, None]  # [i, j] = cos_j - cos_i
    ordered_BB = scores_B[:, None] > scores_B[None, :]
    terms = differences_BB.masked_fill(~ordered_BB, -torch.inf).flatten()
    return torch.logsumexp(F.pad(terms, (1, 0)), dim=0)  # the padded 0 is the 1 in the logarithm


def triplet(
    anchors_BD: Tensor,
    positives_BD: Tensor,
    negatives_BD: Tensor,
    margin: float = 5.0,
    distance: Distance = "euclidean",
) -> Tensor:
    """Return by how much, on average, negatives fail to be `margin` further away than positives: a scalar.

        loss = 1/B sum_i max(0, d(a_i, p_i) - d(a_i, n_i) + margin)

    The default margin suits unnormalised euclidean embeddings; cosine distances never exceed 2.
    FaceNet, Schroff et al. 2015 (arXiv 1503.03832); Hermans et al. 2017 (arXiv 1703.07737).
    """
    apart = DISTANCES[distance]
    return F.relu(apart(anchors_BD, positives_BD) - apart(anchors_BD, negatives_BD) + margin).mean()


def classification_loss(
    logits_BL: Tensor,
    targets: Tensor,
    multi_label: bool = False,
    class_weights: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return how far a classifier's logits are from the labels: a scalar.

    One label an example, `targets` indices [B]: the mean cross-entropy of the softmax, weighted by `class_weights`
    [L] and divided by the weights' sum. Any number of labels, `targets` 0/1 [B, L]: the mean over all labels of all
    examples of the binary cross-entropy, where `class_weights` [L] weigh the labels that apply. The logits are
    divided by `temperature` first: above 1, what is learnt is less sure of itself.
    """
    logits_BL = logits_BL / temperature if temperature != 1.0 else logits_BL
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits_BL, targets.to(logits_BL.dtype), pos_weight=class_weights)
    return F.cross_entropy(logits_BL, targets, weight=class_weights)


def pairwise_cosine(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    """Return the cosine of each row of one with the same row of the other, shape [B]; a zero row has cosine 0."""
    return (F.normalize(first_BD, dim=-1) * F.normalize(second_BD, dim=-1)).sum(dim=-1)


DISTANCES: Mapping[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": lambda first_BD, second_BD: torch.linalg.vector_norm(first_BD - second_BD, dim=-1),
    "cosine": lambda first_BD, second_BD: 1 - pairwise_cosine(first_BD, second_BD),
    "manhattan": lambda first_BD, second_BD: (first_BD - second_BD).abs().sum(dim=-1),
}
