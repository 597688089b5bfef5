"""Our few-shot losses against sentence-transformers 6.2's and SetFit 1.2's classes: value and gradient."""

from __future__ import annotations

import warnings
from types import ModuleType

import pytest
import torch

from unbroken.step.contrastive import (
    BASE_TEMPERATURE,
    batch_all_triplet,
    batch_hard_soft_margin_triplet,
    batch_hard_triplet,
    batch_semi_hard_triplet,
    cosine_similarity,
    distillation,
    supervised_contrastive,
)
from unbroken.step.generators import seeded

peers = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
metrics = peers.BatchHardTripletLossDistanceFunction

torch.set_num_threads(1)

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
MARGINS = {"cosine": 0.25, "euclidean": 5.0}
CLASSES = {
    "three of each": torch.arange(12) % 4,
    "a class with one": torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 0]),
    "sizes far apart": torch.tensor([0] * 20 + [1, 1, 2]),
    "two": torch.tensor([1, 0, 0, 1]),
    "batch of SetFit's": torch.arange(32) % 7,
}
TRIPLETS = {
    "all": (batch_all_triplet, peers.BatchAllTripletLoss),
    "hard": (batch_hard_triplet, peers.BatchHardTripletLoss),
    "semi-hard": (batch_semi_hard_triplet, peers.BatchSemiHardTripletLoss),
    "soft": (batch_hard_soft_margin_triplet, peers.BatchHardSoftMarginTripletLoss),
}


def setfit_losses() -> ModuleType:
    """SetFit is not among what the tests install: it pins older libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("setfit.losses", reason="SetFit is not installed", exc_type=ImportError)


def leaves(num, dtype, dim=16, ties=False, zero=False):
    """Twice the same embeddings; with ties some are equal, and some equally far from others."""
    with seeded(11):
        embeddings = torch.randn(num, dim, dtype=torch.float64)
    if ties:
        embeddings[1::3] = embeddings[0::3][: len(embeddings[1::3])]
        embeddings[2::3] = torch.eye(dim, dtype=torch.float64)[: len(embeddings[2::3])]
    if zero:
        embeddings[3] = 0
    return [embeddings.to(dtype).requires_grad_() for _ in range(2)]


def assert_same(mine, theirs, dtype, rows=slice(None)):
    """Compare value and gradient; `mine` and `theirs` are (loss, leaf).

    Rows of gradients are compared by their own length where that is above 1: a zero row's is 1e8 or 1e12.
    """
    torch.testing.assert_close(mine[0], theirs[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    gradients = [torch.autograd.grad(loss, leaf)[0][rows] for loss, leaf in (mine, theirs)]
    assert all(gradient.isfinite().all() for gradient in gradients)
    lengths = gradients[1].norm(dim=1, keepdim=True).clamp(min=1)
    assert ((gradients[0] - gradients[1]).abs() / lengths).max() < TOLERANCE[dtype]


def triplet_losses(name, distance, mine, theirs, classes):
    function, peer_class = TRIPLETS[name]
    margin = {} if name == "soft" else {"margin": MARGINS[distance]}
    peer = peer_class(model=None, distance_metric=getattr(metrics, f"{distance}_distance"), **margin)
    return function(mine, classes, distance=distance, **margin), peer.compute_loss_from_embeddings([theirs], classes)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.parametrize("distance", MARGINS)
@pytest.mark.parametrize("name", TRIPLETS)
@pytest.mark.parametrize("kind", ["random", "ties", "zero"])
def test_triplets(name, distance, case, kind, dtype):
    classes = CLASSES[case]
    mine, theirs = leaves(len(classes), dtype, ties=kind == "ties", zero=kind == "zero")
    losses = triplet_losses(name, distance, mine, theirs, classes)
    rows = slice(None)
    if (name, distance, kind) == ("semi-hard", "cosine", "zero"):
        # All distances from the zero row are equal, and then its class takes any example for the furthest negative.
        rows = torch.arange(len(classes)) != 3
    assert_same((losses[0], mine), (losses[1], theirs), dtype, rows)


@pytest.mark.parametrize("distance", MARGINS)
def test_of_one_class_the_hard_losses_have_the_peers_gradient(distance):
    """Their value there is the margin (log 2, for the soft one); ours is 0. All four have no triplet to learn from."""
    classes = torch.zeros(6, dtype=torch.long)
    for name in ("all", "hard", "soft"):
        mine, theirs = leaves(6, torch.float64)
        losses = triplet_losses(name, distance, mine, theirs, classes)
        for loss, leaf in zip(losses, (mine, theirs), strict=True):
            assert torch.autograd.grad(loss, leaf)[0].abs().max() < 1e-15
        assert losses[0].item() == 0


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_cosine_similarity(graded, zero, dtype):
    with seeded(12):
        targets = torch.rand(9) if graded else torch.arange(9) % 2
    mine, theirs = leaves(18, dtype, ties=True, zero=zero)
    loss = cosine_similarity(mine[:9], mine[9:], targets)
    peer = peers.CosineSimilarityLoss(model=None).compute_loss_from_embeddings(
        [theirs[:9], theirs[9:]], targets.to(dtype)
    )
    assert_same((loss, mine), (peer, theirs), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_distillation_is_cosine_similarity_over_all_pairs(dtype):
    mine, theirs = leaves(10, dtype)
    teacher = leaves(10, dtype, dim=7, ties=True)[0].detach()
    first, second = torch.triu_indices(10, 10, 1)
    targets = torch.cosine_similarity(teacher[first], teacher[second])
    peer = peers.CosineSimilarityLoss(model=None).compute_loss_from_embeddings([theirs[first], theirs[second]], targets)
    if dtype is torch.float32:  # CosineSimilarityLoss rounds targets to it
        assert_same((distillation(mine, teacher), mine), (peer, theirs), dtype)
    else:
        torch.testing.assert_close(distillation(mine, teacher), peer, rtol=1e-6, atol=1e-6)


def paper_supervised_contrastive(embeddings, classes, temperature):
    """Equation 2 of Khosla et al. 2020, anchor by anchor, over anchors that have positives."""
    units = embeddings / embeddings.norm(dim=1, keepdim=True)
    terms = []
    for i in range(len(classes)):
        others = [a for a in range(len(classes)) if a != i]
        positives = [p for p in others if classes[p] == classes[i]]
        total = sum(torch.exp(units[i] @ units[a] / temperature) for a in others)
        logs = [torch.log(torch.exp(units[i] @ units[p] / temperature) / total) for p in positives]
        terms += [-sum(logs) / len(positives)] if positives else []
    return temperature / BASE_TEMPERATURE * sum(terms) / len(terms)


@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("ties", [False, True])
def test_supervised_contrastive_is_the_papers(case, temperature, ties):
    classes = CLASSES[case]
    mine, theirs = leaves(len(classes), torch.float64, ties=ties)
    loss = supervised_contrastive(mine, classes, temperature)
    assert_same((loss, mine), (paper_supervised_contrastive(theirs, classes, temperature), theirs), torch.float64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", ["three of each", "sizes far apart", "two", "one class", "batch of SetFit's"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("kind", ["random", "ties", "zero"])
def test_supervised_contrastive_is_setfits(case, temperature, kind, dtype):
    classes = torch.zeros(6, dtype=torch.long) if case == "one class" else CLASSES[case]
    if case == "sizes far apart":
        classes = classes[:-1]  # SetFit's loss of a class with one example is not a number
    mine, theirs = leaves(len(classes), dtype, ties=kind == "ties", zero=kind == "zero")
    peer = setfit_losses().SupConLoss(model=lambda columns: {"sentence_embedding": columns}, temperature=temperature)
    loss = supervised_contrastive(mine, classes, temperature)
    assert_same((loss, mine), (peer([theirs], classes), theirs), dtype)


def test_setfits_loss_of_a_class_with_one_example_is_not_a_number():
    mine, theirs = leaves(9, torch.float64)
    peer = setfit_losses().SupConLoss(model=lambda columns: {"sentence_embedding": columns})
    assert peer([theirs], CLASSES["a class with one"]).isnan()
    assert supervised_contrastive(mine, CLASSES["a class with one"]).isfinite()
