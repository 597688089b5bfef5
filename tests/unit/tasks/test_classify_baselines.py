"""Baselines, suspected mistakes and the curve on embeddings of which the right answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unbroken.models.classifying import ClassifierSettings
from unbroken.models.logistic import fit_logistic
from unbroken.tasks.classify import mislabelled
from unbroken.tasks.classify.baselines import (
    ON_TEXTS,
    HeadFitter,
    Texts,
    majority,
    nearest_neighbour,
    on_embeddings,
    tfidf_regression,
)
from unbroken.tasks.classify.learning_curve import learning_curve, num_draws, num_fits, sizes
from unbroken.tasks.classify.mislabelled import folds, held_out_probabilities, num_folds, suspects

LABELS, DIMENSION = 4, 16


def clusters(per_class: int, seed: int, spread: float = 0.15) -> tuple[torch.Tensor, Any]:
    """Embeddings of length 1 around a direction for each class, the classes mixed."""
    random = np.random.default_rng(seed)
    targets = random.permutation(np.repeat(np.arange(LABELS), per_class))
    points = np.eye(LABELS, DIMENSION)[targets] + spread * random.standard_normal((len(targets), DIMENSION))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return torch.from_numpy(points.astype(np.float32)), targets


def fitter(several: bool = False) -> HeadFitter:
    names = tuple("abcd")[:LABELS]
    return HeadFitter(ClassifierSettings("logistic_regression", names, DIMENSION, multi_label=several), None)


def texts_of(targets: Any) -> list[str]:
    words = ["play a song", "rain tomorrow", "book a table", "rate this novel"]
    return [f"{words[target]} number {place}" for place, target in enumerate(targets)]


def test_majority() -> None:
    training = Texts(["x"] * 5, np.array([2, 0, 2, 0, 1]))
    assert (
        majority(training, Texts(["y"] * 3, np.zeros(3, dtype=np.int64)), 4).tolist()
        == [[True, False, False, False]] * 3
    )
    several = Texts(["x"] * 3, np.array([[1, 0, 1], [1, 0, 0], [0, 1, 0]]))
    assert majority(several, Texts(["y"], np.zeros((1, 3), dtype=np.int64)), 3).tolist() == [[True, False, False]]


def test_words_and_letters_tell_classes_apart() -> None:
    """Also words of one letter, and none that was in training."""
    targets = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    held_out = Texts(["a rainy day", "novels", "songs play", "tables"], np.array([1, 3, 0, 2]))
    found = tfidf_regression(Texts(texts_of(targets), targets), held_out, LABELS)
    assert found.argmax(axis=1).tolist() == [1, 3, 0, 2]


def test_every_baseline_finds_clear_classes_and_chance_none() -> None:
    """The controls: targets that say nothing about the text."""
    embeddings, targets = clusters(8, 1)
    others, truth = clusters(25, 2)
    random = np.random.default_rng(0).integers(0, LABELS, len(targets))
    for name, baseline in {**ON_TEXTS, **on_embeddings(fitter())}.items():
        accuracies = []
        for learned in (targets, random):
            held_out = Texts(texts_of(truth), truth, others)
            found = baseline(Texts(texts_of(targets), learned, embeddings), held_out, LABELS)
            assert (found.sum(axis=1) == 1).all()
            accuracies.append((found.argmax(axis=1) == truth).mean())
        assert accuracies[0] > 0.95 or name == "majority", name
        assert accuracies[1] < 0.6, name


def test_every_baseline_takes_several_labels() -> None:
    """Among them one that no text has, and one that all have."""
    embeddings, classes = clusters(8, 1)
    targets = np.eye(LABELS, dtype=np.int64)[classes]
    targets[:, 2], targets[:, 3] = 0, 1
    for name, baseline in {**ON_TEXTS, **on_embeddings(fitter(several=True))}.items():
        texts = Texts(texts_of(classes), targets, embeddings)
        found = baseline(texts, texts, LABELS)
        assert found.dtype == bool
        assert not found[:, 2].any()
        assert found[:, 3].all()
        assert name == "majority" or (found == targets).mean() > 0.75, name


def test_the_neighbour_is_by_cosine() -> None:
    training = Texts(["x"] * 2, np.array([0, 1]), torch.tensor([[10.0, 0.0], [0.1, 0.1]]))
    held_out = Texts(["y"], np.array([1]), torch.tensor([[3.0, 2.9]]))
    assert nearest_neighbour(training, held_out, 2).tolist() == [[False, True]]


@pytest.mark.parametrize("sizes_of_classes", [[2, 2], [3, 10, 41], [1, 2, 3, 4]])
def test_folds_spread_each_class(sizes_of_classes: list[int]) -> None:
    classes = np.repeat(np.arange(len(sizes_of_classes)), sizes_of_classes)
    found = folds(classes, 10, seed=5)
    for label, size in enumerate(sizes_of_classes):
        counts = np.bincount(found[classes == label], minlength=10)
        assert counts.max() - counts.min() <= 1
        assert size < 2 or counts.max() < size, "a class would be missing from training"
    counts = np.bincount(found, minlength=10)
    assert counts.max() - counts.min() <= 1
    assert found.tolist() == folds(classes, 10, seed=5).tolist()
    assert len(classes) < 10 or found.tolist() != folds(classes, 10, seed=6).tolist()


def test_planted_mistakes_are_found() -> None:
    embeddings, truth = clusters(16, 4, spread=0.2)
    given = truth.copy()
    planted = np.random.default_rng(1).permutation(len(truth))[:6]
    given[planted] = (truth[planted] + 1) % LABELS
    done: list[int] = []
    probabilities = held_out_probabilities(embeddings, given, fitter(), 0, done.append)
    assert sum(done) == num_folds(len(given))
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(given)))
    found = suspects(probabilities, given)
    assert {one.row for one in found[:6]} == set(planted.tolist())
    assert all(one.suggested == truth[one.row] and one.label == given[one.row] for one in found[:6])
    assert all(one.stands_out for one in found[:6])
    assert not suspects(held_out_probabilities(embeddings, truth, fitter(), 0, done.append), truth)


def test_each_text_is_judged_once_and_by_all_others_but_its_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(HeadFitter):
        def __call__(self, embeddings: Any, targets: Any) -> Any:
            assert embeddings[:, 1].tolist() == targets.tolist()
            return set(embeddings[:, 0].tolist())

    judged: list[float] = []

    def judge(fitted_to: Any, embeddings: Any) -> Any:
        inside = embeddings[:, 0].tolist()
        judged.extend(inside)
        assert not fitted_to & set(inside)
        assert len(fitted_to) + len(inside) == 41
        return np.tile(embeddings[:, :1].double().numpy(), (1, LABELS))

    monkeypatch.setattr(mislabelled, "head_probabilities", judge)
    targets = np.arange(41) % 3
    embeddings = torch.tensor([[row, target] for row, target in enumerate(targets.tolist())])
    watched = Watched(fitter().settings, None)
    found = mislabelled.held_out_probabilities(embeddings, targets, watched, 0, lambda more: None)
    assert sorted(judged) == list(range(41))
    assert found[:, 0].tolist() == list(range(41)), "each text has its own probabilities"


def test_a_probability_counts_relative_to_what_its_label_usually_gets() -> None:
    """Label 0 is hard and gets 0.3 on average, so 0.29 of it is no reason for doubt; 0.4 of label 1 is, which gets 0.8.

    A star: the suggested label has as much as texts that have it.
    """
    probabilities = np.array(
        [[0.29, 0.31, 0.40], [0.31, 0.30, 0.39], [0, 0.95, 0.05], [0.6, 0.4, 0], [0, 0.95, 0.05], [0.9, 0.9, 0.91]]
    )
    given = np.array([0, 0, 1, 1, 1, 2])
    found = suspects(probabilities, given)
    assert [one.row for one in found] == [3, 0, 1]
    assert [one.suggested for one in found] == [0, 2, 2]
    assert [one.stands_out for one in found] == [True, False, False]
    assert found[0].relative == pytest.approx(0.4 / np.mean([0.95, 0.4, 0.95]))
    assert (found[0].probability, found[0].suggested_probability) == (0.4, 0.6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weight", [None, {0: 3.0}])
def test_heads_are_fitted_like_the_run_s_own(normalize: bool, weight: Any) -> None:
    embeddings, targets = clusters(5, 1, spread=0.5)
    embeddings *= torch.arange(1, len(targets) + 1)[:, None]
    settings = ClassifierSettings("differentiable", tuple("abcd"), DIMENSION, normalize_embeddings=normalize)
    head = HeadFitter(settings, weight)(embeddings, targets)
    expected = fit_logistic(
        embeddings.numpy(), targets, num_labels=LABELS, class_weight=weight, normalize_embeddings=normalize
    )
    assert torch.equal(head.weight, expected.weight)
    assert torch.equal(head.bias, expected.bias)
    assert head.normalize_embeddings == normalize
    others = {
        torch.sum(HeadFitter(settings, other)(embeddings, targets).weight.abs()).item() for other in (None, {0: 3.0})
    }
    assert len(others) == 2, "a control: the weight makes a difference"


def test_sizes_of_the_curve() -> None:
    assert [sizes(most) for most in (1, 2, 3, 8, 9)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 9]]


def test_large_sizes_are_drawn_once() -> None:
    assert [num_draws([6000, 3, 1], shots) for shots in (1, 4096, 6000)] == [5, 5, 1]
    assert [num_draws([6000, 3000], shots) for shots in (2048, 4096)] == [5, 1]
    assert num_fits([6000, 3000]) == 5 * 12 + 2


def test_the_curve_rises_and_ends_at_all_examples() -> None:
    embeddings, targets = clusters(6, 1, spread=0.35)
    others, truth = clusters(50, 2, spread=0.35)
    training, held_out = Texts(texts_of(targets), targets, embeddings), Texts(texts_of(truth), truth, others)
    done: list[int] = []
    points = learning_curve(training, held_out, fitter(), 3, done.append)
    assert sum(done) == num_fits([6] * LABELS)
    assert [(one.shots, one.examples, one.draws) for one in points] == [(1, 4, 5), (2, 8, 5), (4, 16, 5), (6, 24, 1)]
    assert points[0].accuracy < points[-1].accuracy
    assert points[0].lowest < points[0].accuracy < points[0].highest
    whole = on_embeddings(fitter())["untuned_regression"](training, held_out, LABELS)
    assert points[-1].accuracy == (whole.argmax(axis=1) == truth).mean()
    assert points == learning_curve(training, held_out, fitter(), 3, done.append)
    assert points != learning_curve(training, held_out, fitter(), 4, done.append)
