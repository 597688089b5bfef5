"""Agreement with graded pairs and triplets: by hand, with ties, and where nothing can be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unbroken.base.errors import DataError
from unbroken.tasks.similarity import graded, triplet_accuracy

torch.set_num_threads(1)

EAST = np.array([[1.0, 0.0]], dtype=np.float32)


def at_angles(*degrees):
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_the_right_order_has_spearman_one_but_not_pearson():
    found = graded(np.repeat(EAST, 4, 0), at_angles(170, 60, 40, 0), [0.0, 1.0, 2.0, 50.0])
    assert found["spearman_cosine"] == pytest.approx(1.0)
    assert 0.4 < found["pearson_cosine"] < 0.9
    assert list(found) == ["spearman_cosine", "pearson_cosine"]


def test_equal_values_share_their_average_rank():
    # Ranks of the scores 1, 2.5, 2.5, 4; of the cosines 1, 2, 3, 4: correlation sqrt(0.9).
    found = graded(np.repeat(EAST, 4, 0), at_angles(90, 60, 40, 0), [1, 3, 3, 7])
    assert found["spearman_cosine"] == pytest.approx(math.sqrt(0.9))


def test_reversed_order_is_minus_one():
    assert graded(np.repeat(EAST, 3, 0), at_angles(0, 40, 80), [1, 2, 3])["spearman_cosine"] == pytest.approx(-1)


def test_a_collapsed_model_orders_nothing():
    found = graded(np.repeat(EAST, 3, 0), np.repeat(EAST, 3, 0), [1, 2, 3])
    assert found == {"spearman_cosine": 0.0, "pearson_cosine": 0.0}


@pytest.mark.parametrize("scores", [[], [2.0, 2.0, 2.0]])
def test_scores_without_an_order_are_refused(scores):
    vectors = np.ones((len(scores), 2))
    with pytest.raises(DataError, match="scores of the evaluation data are all equal"):
        graded(vectors, vectors, scores)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_triplets(similarity):
    anchors, positives, negatives = np.repeat(EAST, 4, 0), at_angles(10, 90, 5, 0), at_angles(80, 20, 120, 0)
    expected = {f"{similarity}_accuracy": 0.5}  # right, wrong, right, and a tie, which is wrong
    assert triplet_accuracy(anchors, positives, negatives, similarity) == expected
    tensors = (torch.from_numpy(array) for array in (anchors, positives, negatives))
    assert triplet_accuracy(*tensors, similarity) == expected
