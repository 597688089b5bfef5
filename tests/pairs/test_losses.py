"""Our losses against sentence-transformers 6.2's classes: value and gradient, on the same embeddings."""

from __future__ import annotations

import pytest
import torch

from unbroken.step.generators import seeded
from unbroken.step.losses import cosent, multiple_negatives_ranking, triplet

peers = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
peer_similarities = pytest.importorskip("sentence_transformers.util")

torch.set_num_threads(1)

SHAPES = [(1, 4), (2, 3), (5, 8), (32, 384), (128, 64)]
TOLERANCE = {
    torch.float32: 1e-5,
    torch.float64: 1e-13,
}  # the first is rounding, at scale 100; the second the formula
DTYPES = list(TOLERANCE)


def columns(count, shape, dtype):
    """Embeddings of `count` columns, of lengths well away from one."""
    with seeded(11):
        return [(3 * torch.randn(shape)).to(dtype).requires_grad_() for _ in range(count)]


def assert_same(mine, theirs, dtype):
    """Compare value and gradients; `mine` and `theirs` are (loss, leaves)."""
    mine[0].backward(), theirs[0].backward()
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(mine[0], theirs[0], **tolerance)
    for leaf, their_leaf in zip(mine[1], theirs[1], strict=True):
        torch.testing.assert_close(leaf.grad, their_leaf.grad, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_negatives", [0, 1, 3])
@pytest.mark.parametrize(("similarity", "scale"), [("cosine", 20.0), ("cosine", 100.0), ("dot", 0.05)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_multiple_negatives_ranking(shape, num_negatives, similarity, scale, symmetric, dtype):
    # MultipleNegativesSymmetricRankingLoss is deprecated in favour of these two settings, which it stands for.
    both_ways = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    peer_similarity = {"cosine": peer_similarities.cos_sim, "dot": peer_similarities.dot_score}[similarity]
    peer = peers.MultipleNegativesRankingLoss(
        model=None, scale=scale, similarity_fct=peer_similarity, **(both_ways if symmetric else {})
    )
    mine, theirs = columns(2 + num_negatives, shape, dtype), columns(2 + num_negatives, shape, dtype)
    loss = multiple_negatives_ranking(mine[0], torch.cat(mine[1:]), scale, similarity, symmetric)
    assert_same((loss, mine), (peer.compute_loss_from_embeddings(theirs, None), theirs), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [2, 6, 1000])
def test_cosent(shape, levels, dtype):
    with seeded(12):
        scores = torch.randint(0, levels, shape[:1]).to(dtype) / levels
    mine, theirs = columns(2, shape, dtype), columns(2, shape, dtype)
    loss = cosent(*mine, scores)
    peer = peers.CoSENTLoss(model=None)
    assert_same((loss, mine), (peer.compute_loss_from_embeddings(theirs, scores), theirs), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("distance", ["euclidean", "cosine", "manhattan"])
@pytest.mark.parametrize("margin", [0.1, 5.0])
def test_triplet(shape, distance, margin, dtype):
    metric = getattr(peers.TripletDistanceMetric, distance.upper())
    mine, theirs = columns(3, shape, dtype), columns(3, shape, dtype)
    loss = triplet(*mine, margin, distance)
    peer = peers.TripletLoss(model=None, distance_metric=metric, triplet_margin=margin)
    assert_same((loss, mine), (peer.compute_loss_from_embeddings(theirs, None), theirs), dtype)
