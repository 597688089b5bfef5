"""Calibration: temperatures that can be worked out by hand, and scikit-learn's own measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as their_log_loss

from unbroken.models.calibration import brier_score, expected_calibration_error, fit_temperature, log_loss
from unbroken.models.classifying import log_probabilities

torch.set_num_threads(1)


def draws(num_labels: int, sharpness: float, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `sharpness` times too sure, and targets drawn from the true probabilities."""
    generator = torch.Generator().manual_seed(num_labels)
    true = torch.randn(count, num_labels, generator=generator) * 1.5
    targets = torch.multinomial(true.softmax(dim=1), 1, generator=generator)[:, 0]
    return true * sharpness, targets


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 6.0])
def test_the_temperature_undoes_what_made_the_logits_too_sure(sharpness: float):
    logits, targets = draws(4, sharpness)
    temperature = fit_temperature(logits, targets)
    assert temperature == pytest.approx(sharpness, rel=0.06)
    before, after = logits.softmax(dim=1).numpy(), (logits / temperature).softmax(dim=1).numpy()
    assert log_loss(after, targets.numpy()) <= log_loss(before, targets.numpy()) + 1e-9
    assert expected_calibration_error(after, targets.numpy()) < 0.03
    if sharpness != 1.0:
        assert expected_calibration_error(before, targets.numpy()) > 0.1


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("one_vs_rest", [False, True])
def test_the_temperature_is_where_the_loss_is_least(multi_label: bool, one_vs_rest: bool):
    logits, targets = draws(3, 2.0, count=300)
    if multi_label:
        targets = torch.eye(3)[targets]

    def loss(logarithm: float) -> float:
        logs = log_probabilities(logits.double() / math.exp(logarithm), multi_label, one_vs_rest)
        return log_loss(logs.exp().numpy(), targets.numpy())

    least = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    found = fit_temperature(logits, targets, multi_label, one_vs_rest)
    assert math.log(found) == pytest.approx(least.x, abs=1e-4)
    assert found == fit_temperature(logits.clone(), targets.clone(), multi_label, one_vs_rest)


def test_logits_that_are_never_or_always_wrong_end_at_the_bounds():
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == pytest.approx(0.05)
    assert fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(20.0)


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.45, 0.55]])
    targets = np.array([0, 1, 1, 1])
    # bins of a tenth: (0.8, 0.9] is right half of the time, (0.5, 0.6] always
    expected = (2 * abs(0.9 - 0.5) + abs(0.6 + 0.55 - 2)) / 4
    assert expected_calibration_error(probabilities, targets, bins=10) == pytest.approx(expected)
    assert expected_calibration_error(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) == 0
    assert expected_calibration_error(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 0])) == 1


def test_calibration_error_of_several_labels_is_over_all_of_them():
    probabilities = np.array([[0.2, 0.8], [0.2, 0.0]])
    targets = np.array([[0, 1], [1, 0]])
    assert expected_calibration_error(probabilities, targets) == pytest.approx((2 * abs(0.2 - 0.5) + 0.2) / 4)


def test_brier_score_and_log_loss_are_scikit_learns():
    logits, targets = draws(4, 1.0, count=200)
    probabilities, targets = logits.double().softmax(dim=1).numpy(), targets.numpy()
    assert log_loss(probabilities, targets) == pytest.approx(their_log_loss(targets, probabilities))
    assert brier_score(probabilities, targets) == pytest.approx(
        np.mean([brier_score_loss(targets == k, probabilities[:, k]) for k in range(4)]) * 4
    )
    columns = np.eye(4)[targets]
    each = [their_log_loss(columns[:, k], probabilities[:, k]) for k in range(4)]
    assert log_loss(probabilities, columns) == pytest.approx(np.mean(each))
    each = [brier_score_loss(columns[:, k], probabilities[:, k]) for k in range(4)]
    assert brier_score(probabilities, columns) == pytest.approx(np.mean(each))


def test_a_certainty_that_was_wrong_has_a_finite_loss():
    assert 80 < log_loss(np.array([[1.0, 0.0]]), np.array([1])) < 100
