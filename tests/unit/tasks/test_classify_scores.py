"""Figures of a report against scikit-learn's on random decisions, and intervals against what they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from unbroken.models.calibration import expected_calibration_error
from unbroken.tasks.classify.scores import (
    class_scores,
    confidence_bins,
    confusion_matrix,
    decide,
    largest_confusions,
    macro_f1_interval,
    one_hot,
    score,
    wilson,
)


@st.composite
def decisions(draw: st.DrawFn, several: bool) -> tuple[Any, Any]:
    """Probabilities [N, L] and targets, some classes never there and some never predicted."""
    texts, labels = draw(st.integers(1, 60)), draw(st.integers(2, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    probabilities = random.dirichlet(np.full(labels, 0.4), size=texts)
    if several:
        return random.random((texts, labels)), random.integers(0, 2, (texts, labels))
    return probabilities, random.integers(0, labels, texts)


@given(decisions(several=False))
@settings(max_examples=60, deadline=None)
def test_one_label_as_scikit_learn(case: tuple[Any, Any]) -> None:
    probabilities, targets = case
    labels = probabilities.shape[1]
    found, truth, predicted = decide(probabilities, False), one_hot(targets, labels), probabilities.argmax(axis=1)
    mine = score(found, truth, seed=0)
    assert mine.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert mine.f1_macro == pytest.approx(metrics.f1_score(targets, predicted, average="macro", zero_division=0))
    assert mine.f1_micro == pytest.approx(metrics.f1_score(targets, predicted, average="micro", zero_division=0))
    assert_classes(class_scores(found, truth, list(map(str, range(labels)))), targets, predicted, labels)
    matrix = confusion_matrix(found, truth)
    assert matrix.tolist() == metrics.confusion_matrix(targets, predicted, labels=range(labels)).tolist()


@given(decisions(several=True))
@settings(max_examples=60, deadline=None)
def test_several_labels_as_scikit_learn(case: tuple[Any, Any]) -> None:
    probabilities, targets = case
    labels = probabilities.shape[1]
    found, truth = decide(probabilities, True), one_hot(targets, labels)
    mine = score(found, truth, seed=0)
    seen = np.flatnonzero((found | truth).any(axis=0))
    assert mine.accuracy == pytest.approx(metrics.accuracy_score(truth, found))
    if len(seen):
        macro = metrics.f1_score(truth, found, labels=seen, average="macro", zero_division=0)
        assert mine.f1_macro == pytest.approx(macro)
    assert mine.f1_micro == pytest.approx(metrics.f1_score(truth, found, average="micro", zero_division=0))
    assert_classes(class_scores(found, truth, list(map(str, range(labels)))), truth, found, labels)


def assert_classes(mine: list[Any], truth: Any, found: Any, labels: int) -> None:
    theirs = metrics.precision_recall_fscore_support(truth, found, labels=range(labels), zero_division=0)
    for one, precision, recall, f1, support in zip(mine, *theirs, strict=True):
        assert (one.precision, one.recall, one.f1) == pytest.approx((precision, recall, f1))
        assert one.support == support


@pytest.mark.parametrize("several", [False, True])
def test_the_calibration_error_is_that_of_the_bins(several: bool) -> None:
    random = np.random.default_rng(1)
    probabilities = random.random((300, 4)) if several else random.dirichlet(np.ones(4), size=300)
    targets = random.integers(0, 2, (300, 4)) if several else random.integers(0, 4, 300)
    bins = confidence_bins(probabilities, one_hot(targets, 4), several)
    total = sum(one.count for one in bins)
    assert total == (1200 if several else 300)
    gaps = sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / total
    assert gaps == pytest.approx(expected_calibration_error(probabilities, targets))
    assert all(one.low < one.confidence <= one.high for one in bins)


def test_wilson_as_published() -> None:
    """Newcombe 1998 (doi 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3."""
    for (right, total), ends in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(right, total) == pytest.approx(ends, abs=5e-5)
    assert wilson(20, 20)[1] == 1.0


def test_intervals_hold_what_they_promise() -> None:
    """Of a classifier that is right in 80% of all cases: 95 of 100 samples' intervals hold 0.8, of each kind."""
    random = np.random.default_rng(3)
    inside = np.zeros(3)
    for trial in range(200):
        targets = random.integers(0, 3, 150)
        wrong = random.random(150) < 0.2
        found = one_hot(np.where(wrong, (targets + random.integers(1, 3, 150)) % 3, targets), 3)
        other = one_hot(np.where(random.random(150) < 0.4, (targets + 1) % 3, targets), 3)
        mine = score(found, one_hot(targets, 3), trial)
        theirs = score(other, one_hot(targets, 3), trial, best_NL=found)
        assert theirs.ahead_interval is not None
        ends = (mine.accuracy_interval, mine.f1_macro_interval, theirs.ahead_interval)
        inside += [low <= true <= high for true, (low, high) in zip((0.8, 0.8, 0.2), ends, strict=True)]
    assert (inside / 200 >= 0.90).all()
    assert (inside / 200 <= 0.99).all()


def test_the_difference_is_paired() -> None:
    """Two that err on the same texts differ by nothing, and surely so; two that err apart do not."""
    truth = one_hot(np.arange(100) % 2, 2)
    same, apart = truth.copy(), truth.copy()
    same[:20], apart[20:40] = ~truth[:20], ~truth[20:40]
    assert score(same, truth, 0, best_NL=same).ahead_interval == (0.0, 0.0)
    low, high = score(apart, truth, 0, best_NL=same).ahead_interval or (0, 0)
    assert low < -0.05 < 0.05 < high


def test_intervals_are_functions_of_the_seed_and_the_decisions() -> None:
    random = np.random.default_rng(0)
    truth = one_hot(random.integers(0, 5, 90), 5)
    found = one_hot(np.where(random.random(90) < 0.6, truth.argmax(axis=1), 0), 5)
    assert macro_f1_interval(found, truth, 1) == macro_f1_interval(found[::-1], truth[::-1], 1)
    assert macro_f1_interval(found, truth, 1) != macro_f1_interval(found, truth, 2)


def test_the_largest_confusions_come_first_with_the_surest_text() -> None:
    probabilities = np.array([[0.1, 0.9, 0], [0.3, 0.6, 0.1], [0.2, 0.1, 0.7], [0.4, 0.3, 0.3], [0, 0, 1]])
    truth = one_hot(np.array([0, 0, 0, 0, 2]), 3)
    matrix = confusion_matrix(decide(probabilities, False), truth)
    found = largest_confusions(matrix, probabilities, truth, list("vwxyz"), ["a", "b", "c"])
    assert [(one.true, one.predicted, one.count, one.text) for one in found] == [("a", "b", 2, "v"), ("a", "c", 1, "x")]
