"""How far a classifier's probabilities can be trusted: temperature scaling, calibration error, Brier score, log loss.

Targets are indices of labels [N], or 0/1 [N, L] where a text may have several labels; then every label of every text
is a case of its own. Shape suffixes: N texts, L labels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbroken.models.classifying import log_probabilities

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
GOLDEN = (math.sqrt(5) - 1) / 2
TOLERANCE = 1e-7  # of the logarithm: float32 tells no closer temperatures apart
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)


def fit_temperature(logits_NL: Tensor, targets: Tensor, multi_label: bool = False, one_vs_rest: bool = False) -> float:
    """Return the temperature under which the targets are likeliest, between 0.05 and 20.

    By golden section search of the logarithm of the temperature: the likelihood of softmax and sigmoid has one
    maximum. Logits that are never wrong have none: the lowest temperature is returned. The texts should not be those
    the head was fitted to. Guo et al. 2017 (arXiv 1706.04599).
    """
    logits_NL, targets = logits_NL.detach().double().cpu(), targets.cpu()

    def loss(logarithm: float) -> float:
        logs_NL = log_probabilities(logits_NL / math.exp(logarithm), multi_label, one_vs_rest)
        if multi_label:  # 1 - sigmoid(z) is sigmoid(-z)
            others_NL = log_probabilities(-logits_NL / math.exp(logarithm), multi_label)
            chosen = torch.where(targets > 0, logs_NL, others_NL)
        else:
            chosen = logs_NL.gather(1, targets.long()[:, None])
        return -float(np.mean(chosen.numpy()))

    low, high = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    first, second = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_first, at_second = loss(first), loss(second)
    while high - low > TOLERANCE:
        if at_first <= at_second:
            high, second, at_second = second, first, at_first
            first = high - GOLDEN * (high - low)
            at_first = loss(first)
        else:
            low, first, at_first = first, second, at_second
            second = low + GOLDEN * (high - low)
            at_second = loss(second)
    return math.exp((low + high) / 2)


def expected_calibration_error(probabilities_NL: NDArray[Any], targets: NDArray[Any], bins: int = 15) -> float:
    """Return by how much confidence and accuracy differ, on average over texts grouped by confidence: 0 to 1.

    Confidence is the probability of the predicted label; with several labels a text, that of each label, and
    accuracy how often it applies. Bins have equal widths. Naeini et al. 2015.
    """
    probabilities_NL, targets = np.asarray(probabilities_NL, dtype=np.float64), np.asarray(targets)
    if targets.ndim == 2:
        confidence, correct = probabilities_NL.ravel(), targets.ravel() > 0
    else:
        confidence, correct = probabilities_NL.max(axis=1), probabilities_NL.argmax(axis=1) == targets
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    surplus = np.bincount(bin_of, weights=confidence - correct, minlength=bins)
    return float(np.abs(surplus).sum() / len(confidence))


def brier_score(probabilities_NL: NDArray[Any], targets: NDArray[Any]) -> float:
    """Return the mean squared distance of probabilities and outcomes, from 0.

    Of one label a text it is the sum over labels, at most 2; of several labels their mean, at most 1. Brier 1950.
    """
    probabilities_NL, outcomes_NL = np.asarray(probabilities_NL, dtype=np.float64), outcomes(probabilities_NL, targets)
    squares_NL = np.square(probabilities_NL - outcomes_NL)
    return float(squares_NL.mean() if np.ndim(targets) == 2 else squares_NL.sum(axis=1).mean())


def log_loss(probabilities_NL: NDArray[Any], targets: NDArray[Any]) -> float:
    """Return the mean of -log of the probability given to what was the case, in nats."""
    probabilities_NL, outcomes_NL = np.asarray(probabilities_NL, dtype=np.float64), outcomes(probabilities_NL, targets)
    if np.ndim(targets) == 2:
        given = np.where(outcomes_NL > 0, probabilities_NL, 1 - probabilities_NL)
    else:
        given = (probabilities_NL * outcomes_NL).sum(axis=1)
    return float(-np.log(np.maximum(given, LEAST_PROBABILITY)).mean())


def outcomes(probabilities_NL: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Return targets as 0/1 [N, L]."""
    if np.ndim(targets) == 2:
        return np.asarray(targets, dtype=np.float64)
    columns: NDArray[np.float64] = np.eye(np.shape(probabilities_NL)[1])[np.asarray(targets)]
    return columns
