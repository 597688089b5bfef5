"""Losses against their formulas, written out by hand, and at their edges."""

from __future__ import annotations

import math

import pytest
import torch

from unbroken.step.losses import classification_loss, cosent, multiple_negatives_ranking, pairwise_cosine, triplet

torch.set_num_threads(1)

EAST, NORTH = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def test_ranking_by_hand():
    anchors, candidates = torch.cat([EAST, NORTH]), torch.cat([2 * EAST, 3 * NORTH, EAST])
    first = math.log(1 + math.exp(-20) + 1)  # its positive and the hard negative are equal, the other orthogonal
    second = math.log(1 + 2 * math.exp(-20))
    assert multiple_negatives_ranking(anchors, candidates).item() == pytest.approx((first + second) / 2)


def test_dot_products_keep_the_lengths():
    anchors, candidates = torch.cat([EAST, NORTH]), torch.cat([2 * EAST, 3 * NORTH])
    loss = multiple_negatives_ranking(anchors, candidates, scale=1.0, similarity="dot")
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-3))) / 2)


def test_the_symmetric_half_leaves_hard_negatives_out():
    anchors, candidates = torch.cat([EAST, NORTH]), torch.cat([EAST, NORTH, EAST])
    forward = multiple_negatives_ranking(anchors, candidates)
    backward = multiple_negatives_ranking(candidates[:2], anchors)
    both = multiple_negatives_ranking(anchors, candidates, symmetric=True)
    assert both.item() == pytest.approx((forward.item() + backward.item()) / 2)


def test_one_pair_alone_has_no_loss():
    assert multiple_negatives_ranking(EAST, NORTH).item() == 0.0


def test_cosent_by_hand():
    first, second = torch.cat([EAST, EAST, EAST]), torch.cat([EAST, NORTH, -EAST])
    scores = torch.tensor([0.1, 0.9, 0.9])  # the two of equal score ask nothing of each other
    expected = math.log(1 + math.exp(1.0 - 0.0) + math.exp(1.0 - -1.0))
    assert cosent(first, second, scores, scale=1.0).item() == pytest.approx(expected)


def test_cosent_without_any_order_is_zero_with_zero_gradient():
    first = torch.randn(4, 3, requires_grad=True)
    loss = cosent(first, torch.randn(4, 3), torch.ones(4))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(first.grad, torch.zeros(4, 3))


def test_cosent_stays_finite_where_the_exponential_would_not():
    first, second = torch.cat([EAST, EAST]), torch.cat([EAST, -EAST])
    assert cosent(first, second, torch.tensor([0.0, 1.0]), scale=1000.0).item() == pytest.approx(2000.0)


@pytest.mark.parametrize(
    ("distance", "expected"), [("euclidean", 5 - math.sqrt(2)), ("manhattan", 5 - 2), ("cosine", 5 - 1)]
)
def test_triplet_by_hand(distance, expected):
    assert triplet(EAST, EAST, NORTH, distance=distance).item() == pytest.approx(expected)
    assert triplet(EAST, EAST, NORTH, margin=0.0, distance=distance).item() == 0.0


def test_a_text_that_is_its_own_positive_has_a_finite_gradient():
    anchor = EAST.clone().requires_grad_()
    triplet(anchor, anchor, NORTH).backward()
    assert anchor.grad.isfinite().all()


def test_a_zero_embedding_has_cosine_zero():
    assert pairwise_cosine(torch.zeros(1, 2), EAST).item() == 0.0


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.25, -3.0]])


def test_classification_by_hand():
    targets = torch.tensor([0, 2])
    each = [-row.log_softmax(dim=0)[target].item() for row, target in zip(LOGITS, targets, strict=True)]
    assert classification_loss(LOGITS, targets).item() == pytest.approx(sum(each) / 2)
    weights = torch.tensor([3.0, 1.0, 0.5])
    weighted = (3.0 * each[0] + 0.5 * each[1]) / 3.5
    assert classification_loss(LOGITS, targets, class_weights=weights).item() == pytest.approx(weighted)


def test_classification_with_several_labels_by_hand():
    targets = torch.tensor([[1, 0, 1], [0, 0, 1]])
    weights = torch.tensor([1.0, 1.0, 4.0])
    probabilities = LOGITS.sigmoid()
    terms = torch.where(targets > 0, -probabilities.log(), -(1 - probabilities).log())
    assert classification_loss(LOGITS, targets, True).item() == pytest.approx(terms.mean().item())
    weighted = torch.where(targets > 0, terms * weights, terms)
    loss = classification_loss(LOGITS, targets, True, class_weights=weights)
    assert loss.item() == pytest.approx(weighted.mean().item())


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_temperature_divides_the_logits(multi_label: bool):
    targets = torch.tensor([[1, 0, 1], [0, 0, 1]]) if multi_label else torch.tensor([0, 2])
    warm = classification_loss(LOGITS, targets, multi_label, temperature=4.0)
    assert torch.equal(warm, classification_loss(LOGITS / 4, targets, multi_label))
    assert not torch.equal(warm, classification_loss(LOGITS, targets, multi_label))
