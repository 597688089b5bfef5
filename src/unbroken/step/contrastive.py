"""What few-shot training minimises: losses over all pairs, or all triplets, of a batch of labelled examples.

Shape suffixes: N examples of the batch, D dimensions of an embedding, B pairs, L labels.
`targets` are classes, [N], or a matrix, [N, N], true where two examples share a label (`sharing` makes one).
As in `losses.py`: embeddings come as the encoder made them, arithmetic is in their dtype, and no operation here sums
by atomics. Where a batch has no pair or triplet of the kind needed, loss and gradients are 0; a zero row has finite
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["cosine", "euclidean"]

# The temperature at which SetFit's and the authors' supervised contrastive loss has the paper's scale.
BASE_TEMPERATURE = 0.07
# Triplets compared at once: 16 MB of them in float32.
BLOCK = 1 << 22


def sharing(targets_NL: Tensor) -> Tensor:
    """Return which examples share a label, bool [N, N], from 0/1 targets; one without labels shares none."""
    targets_NL = targets_NL.float()  # integer matrices have no product on CUDA; sums of ones are exact in floats
    return (targets_NL @ targets_NL.T) > 0


def cosine_similarity(first_BD: Tensor, second_BD: Tensor, targets_B: Tensor) -> Tensor:
    """Return the mean squared difference of the pairs' cosines from their targets: a scalar.

        loss = 1/B sum_i (cos(a_i, b_i) - y_i)^2

    SetFit's objective on its pairs, y = 1 where they share a label, else 0 (Tunstall et al. 2022, arXiv 2209.11055);
    with graded y that of Sentence-BERT, Reimers and Gurevych 2019 (arXiv 1908.10084).
    """
    return F.mse_loss(F.cosine_similarity(first_BD, second_BD), targets_B.to(first_BD.dtype))


def pair_cosine(embeddings_ND: Tensor, targets: Tensor, weights_NN: Tensor) -> Tensor:
    """Return the weighted sum over the batch's pairs of how far their cosines are from 1 (same label) or 0: a scalar.

        loss = sum_{i<j} w_ij (cos(x_i, x_j) - y_ij)^2

    With the weights of `pair_weights` its expectation over batches, and that of its gradient, is SetFit's objective
    over all pairs of different examples, while each example is encoded once a batch.
    """
    errors_NN = _cosines(embeddings_ND) - _same(targets).to(embeddings_ND.dtype)
    return (weights_NN.to(embeddings_ND.dtype) * errors_NN.square()).triu(1).sum()


def pair_weights(
    targets: Tensor, probabilities: Tensor | float, positives: int, negatives: int, balanced: bool = True
) -> Tensor:
    """Return the weights that make `pair_cosine` of a batch an unbiased estimate of SetFit's objective: [N, N].

        w_ij = omega_ij / pi_ij,   omega_ij = 1/(2P) or 1/(2M), by kind; not balanced: 1/(P + M)

    `positives` (P) and `negatives` (M) count all pairs of the data; with `plan.pairs.count_pairs`, as SetFit counts
    them, an example's pair with itself takes part in omega alone. `balanced` is every strategy but "unique".
    `probabilities` (pi) are those with which a batch holds both examples: `Strata.pair_probabilities`, or
    m(m-1) / (n(n-1)) for m of n examples drawn alike. float64, zero on the diagonal.

    Horvitz and Thompson 1952 (doi 10.1080/01621459.1952.10483446).
    """
    same_NN = _same(targets)
    counts = (2 * positives, 2 * negatives) if balanced else (positives + negatives,) * 2
    of_positive, of_negative = (1 / max(1, count) for count in counts)
    omega_NN = torch.full(same_NN.shape, of_negative, dtype=torch.float64, device=same_NN.device)
    omega_NN = omega_NN.masked_fill(same_NN, of_positive)
    return (omega_NN / probabilities).masked_fill(_diagonal(same_NN), 0.0)


def distillation(embeddings_ND: Tensor, teacher_NE: Tensor) -> Tensor:
    """Return the mean over the batch's pairs of the squared difference from the teacher's cosines: a scalar.

        loss = 2/(N(N-1)) sum_{i<j} (cos(x_i, x_j) - cos(t_i, t_j))^2

    The teacher's embeddings may have another width. SetFit means the same over its pairs, but in 1.2 the target of all
    of them is the teacher's cosine of the first example with itself.
    """
    errors_NN = _cosines(embeddings_ND) - _cosines(teacher_NE.detach()).to(embeddings_ND.dtype)
    count = len(embeddings_ND)
    return errors_NN.square().triu(1).sum() * (2 / max(1, count * (count - 1)))


def supervised_contrastive(embeddings_ND: Tensor, targets: Tensor, temperature: float = BASE_TEMPERATURE) -> Tensor:
    """Return the mean cross-entropy of finding an example's positives among all others of the batch: a scalar.

        loss = - t/0.07 mean_i 1/|P(i)| sum_{p in P(i)} log( exp(cos_ip / t) / sum_{a != i} exp(cos_ia / t) )

    P(i) are the other examples that share a label with i. The mean is over the i that have any; SetFit's class is
    not a number as soon as one has none. The factor t/0.07 is that of the authors' code, and of SetFit's.

    Khosla et al. 2020 (arXiv 2004.11362), their L_out.
    """
    positive_NN, _ = _kinds(targets)
    scores_NN = _cosines(embeddings_ND) / temperature
    others_NN = scores_NN.masked_fill(_diagonal(positive_NN), -torch.inf)
    logs_NN = F.log_softmax(others_NN, dim=1).masked_fill(~positive_NN, 0.0)
    num_positives_N = positive_NN.sum(dim=1)
    means_N = logs_NN.sum(dim=1) / num_positives_N.clamp(min=1)
    return -(temperature / BASE_TEMPERATURE) * means_N.sum() / (num_positives_N > 0).sum().clamp(min=1)


def batch_all_triplet(
    embeddings_ND: Tensor, targets: Tensor, margin: float = 0.25, distance: Distance = "cosine"
) -> Tensor:
    """Return by how much, on average, negatives fail to be `margin` further away than positives: a scalar.

        loss = mean over a, p, n with d_ap - d_an + margin > 0 of (d_ap - d_an + margin)

    a and p share a label, a and n do not. Triplets that satisfy the margin do not count in the mean. Takes N x N
    memory and N^3 comparisons.

    Hermans et al. 2017 (arXiv 1703.07737), "batch all" without the zeros. The defaults are SetFit's.
    """
    distances_NN = DISTANCES[distance](embeddings_ND)
    positive_NN, negative_NN = _kinds(targets)
    with torch.no_grad():
        num_anchors = max(1, BLOCK // len(distances_NN) ** 2)
        blocks = [slice(a, a + num_anchors) for a in range(0, len(distances_NN), num_anchors)]
        counts_NN = torch.cat([_count_failing(distances_NN[a], positive_NN[a], negative_NN[a], margin) for a in blocks])
    failing = counts_NN.clamp(min=0).sum()
    return _sum_of_triplets(distances_NN, counts_NN, margin) / failing.clamp(min=1)


def batch_semi_hard_triplet(
    embeddings_ND: Tensor, targets: Tensor, margin: float = 0.25, distance: Distance = "cosine"
) -> Tensor:
    """Return the mean over pairs (a, p) of max(0, d_ap - d_an + margin), n the nearest beyond p: a scalar.

    n is the nearest negative of a that is further away than p or, where there is none, the furthest negative. In a
    batch of one class there is no n, and nothing to learn; sentence-transformers takes a itself for it there.

    FaceNet, Schroff et al. 2015 (arXiv 1503.03832). The defaults are SetFit's.
    """
    distances_NN = DISTANCES[distance](embeddings_ND)
    positive_NN, negative_NN = _kinds(targets)
    with torch.no_grad():
        positive_NN = positive_NN & negative_NN.any(dim=1, keepdim=True)
        furthest_N = distances_NN.masked_fill(~negative_NN, -torch.inf).argmax(dim=1)
        sorted_NN, order_NN = distances_NN.masked_fill(~negative_NN, torch.inf).sort(dim=1, stable=True)
        beyond_NN = torch.searchsorted(sorted_NN, distances_NN, right=True)  # [a, p]: negatives up to p's distance
        nearest_NN = order_NN.gather(1, beyond_NN.clamp(max=len(order_NN) - 1))
        chosen_NN = torch.where(beyond_NN < negative_NN.sum(dim=1, keepdim=True), nearest_NN, furthest_N[:, None])
        failing_NN = positive_NN & (distances_NN - distances_NN.gather(1, chosen_NN) + margin > 0)
        # Whole numbers: their sum does not depend on the order in which atomics add them.
        counts_NN = failing_NN.long() - torch.zeros_like(chosen_NN).scatter_add_(1, chosen_NN, failing_NN.long())
    return _sum_of_triplets(distances_NN, counts_NN, margin) / positive_NN.sum().clamp(min=1)


def batch_hard_triplet(
    embeddings_ND: Tensor, targets: Tensor, margin: float = 0.25, distance: Distance = "cosine"
) -> Tensor:
    """Return the mean of max(0, d(furthest positive) - d(nearest negative) + margin): a scalar.

    As in sentence-transformers, the furthest positive of an example that has none is at distance 0. Here a batch
    without any positive or any negative has the loss 0 and no gradient; there, one class has the loss `margin`.

    Hermans et al. 2017 (arXiv 1703.07737), "batch hard". The defaults are SetFit's.
    """
    return F.relu(_hardest(embeddings_ND, targets, distance) + margin).mean()


def batch_hard_soft_margin_triplet(embeddings_ND: Tensor, targets: Tensor, distance: Distance = "cosine") -> Tensor:
    """Return the mean of log(1 + exp(d(furthest positive) - d(nearest negative))): a scalar.

    As `batch_hard_triplet`, with the soft margin of the same paper.
    """
    return F.softplus(_hardest(embeddings_ND, targets, distance)).mean()


def _same(targets: Tensor) -> Tensor:
    return targets[:, None] == targets[None, :] if targets.dim() == 1 else targets.bool()


def _diagonal(matrix_NN: Tensor) -> Tensor:
    return torch.eye(len(matrix_NN), dtype=torch.bool, device=matrix_NN.device)


def _kinds(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return which other examples share a label with each, and which share none."""
    same_NN = _same(targets)
    diagonal_NN = _diagonal(same_NN)
    return same_NN & ~diagonal_NN, ~same_NN & ~diagonal_NN


def _cosines(embeddings_ND: Tensor) -> Tensor:
    units_ND = F.normalize(embeddings_ND, dim=-1)
    return units_ND @ units_ND.T


def _euclidean(embeddings_ND: Tensor) -> Tensor:
    """Return all distances, from products: N x N memory, not N x N x D."""
    products_NN = embeddings_ND @ embeddings_ND.T
    squares_N = products_NN.diagonal()
    squared_NN = squares_N[None, :] - 2 * products_NN + squares_N[:, None]
    zero_NN = squared_NN <= 0  # where the root has no finite derivative; rounding goes below, NaN stays NaN
    return squared_NN.masked_fill(zero_NN, 1.0).sqrt().masked_fill(zero_NN, 0.0)


DISTANCES: Mapping[Distance, Callable[[Tensor], Tensor]] = {
    "cosine": lambda embeddings_ND: 1 - _cosines(embeddings_ND),
    "euclidean": _euclidean,
}


def _hardest(embeddings_ND: Tensor, targets: Tensor, distance: Distance) -> Tensor:
    """Return how much further each example's furthest positive is than its nearest negative, -inf without one."""
    distances_NN = DISTANCES[distance](embeddings_ND)
    positive_NN, negative_NN = _kinds(targets)
    furthest_N = distances_NN.masked_fill(~positive_NN, 0.0).max(dim=1).values
    nearest_N = distances_NN.masked_fill(~negative_NN, torch.inf).min(dim=1).values
    return (furthest_N - nearest_N).masked_fill(~positive_NN.any(), -torch.inf)


def _count_failing(distances_AN: Tensor, positive_AN: Tensor, negative_AN: Tensor, margin: float) -> Tensor:
    """Count in how many failing triplets of each anchor an example is the positive, or (below 0) the negative."""
    failing_APN = distances_AN[:, :, None] - distances_AN[:, None, :] + margin > 0
    failing_APN &= positive_AN[:, :, None] & negative_AN[:, None, :]
    return failing_APN.sum(dim=2) - failing_APN.sum(dim=1)


def _sum_of_triplets(distances_NN: Tensor, counts_NN: Tensor, margin: float) -> Tensor:
    """Return the sum of d_ap - d_an + margin over triplets counted per (a, p), and below 0 per (a, n).

    Which triplets fail does not change with small changes of distances, so the sum is linear in them: counts take
    the place of N^3 terms kept for the backward pass.
    """
    return (counts_NN * distances_NN).sum() + margin * counts_NN.clamp(min=0).sum()
