"""What decisions on held-out texts are worth: shares with 95% intervals, classes one by one, confusions, confidence.

Decisions and truths are 0/1 matrices [N, L], whether a text has one label or any number of them.
Shape suffixes: N texts, L labels, C cells, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbroken.base.seeds import derive

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Interval = tuple[float, float]

Z_95 = 1.959963984540054  # the normal quantile of 97.5%
TAILS = (0.025, 0.975)
RESAMPLES = 2000
RESAMPLES_AT_ONCE = 100
BINS = 15  # as `expected_calibration_error` groups, so that its figure is that of the table
MOST_IN_MATRIX = 12  # classes of which all confusions fit on a screen
SHOWN_CONFUSIONS = 20


def decide(probabilities_NL: Floats, several: bool) -> Bools:
    """Return the likeliest label of each text, or with `several` each label from 0.5 on."""
    if several:
        return np.asarray(probabilities_NL >= 0.5)
    return one_hot(probabilities_NL.argmax(axis=1), probabilities_NL.shape[1])


def one_hot(targets: NDArray[np.int64], num_labels: int) -> Bools:
    """Return class indices [N], or 0/1 [N, L], as 0/1 [N, L]."""
    return targets.astype(bool) if targets.ndim == 2 else np.eye(num_labels, dtype=bool)[targets]


def wilson(right: int, total: int) -> Interval:
    """Return the 95% interval of a share of which `right` of `total` were seen. Wilson 1927.

    Unlike mean ± 1.96 standard errors it never leaves 0 to 1, and is no point where all are right.
    """
    if not total:
        return 0.0, 1.0
    share, spread = right / total, Z_95**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Score:
    """How good one way to classify is. `ahead` is what the run has more of the texts right, None for the run itself."""

    accuracy: float
    accuracy_interval: Interval
    f1_macro: float
    f1_macro_interval: Interval
    f1_micro: float
    ahead: float | None = None
    ahead_interval: Interval | None = None


def score(found_NL: Bools, truth_NL: Bools, seed: int, best_NL: Bools | None = None) -> Score:
    """Return what decisions are worth, compared on the same texts with those of the run, `best_NL`, if given.

    Accuracy asks for all of a text's labels, with Wilson's interval; the other two are percentiles of a bootstrap
    over texts, drawn by `seed`.
    """
    right_N = (found_NL == truth_NL).all(axis=1)
    ahead, between = None, None
    if best_NL is not None:
        difference_N = (best_NL == truth_NL).all(axis=1).astype(np.int64) - right_N
        ahead, between = float(difference_N.mean()), mean_interval(difference_N, seed)
    right, found, wanted = (found_NL & truth_NL).sum(), found_NL.sum(), truth_NL.sum()
    return Score(
        accuracy=float(right_N.mean()),
        accuracy_interval=wilson(int(right_N.sum()), len(right_N)),
        f1_macro=float(macro_f1((found_NL & truth_NL).sum(axis=0), found_NL.sum(axis=0), truth_NL.sum(axis=0))),
        f1_macro_interval=macro_f1_interval(found_NL, truth_NL, seed),
        f1_micro=float(2 * right / max(1, found + wanted)),
        ahead=ahead,
        ahead_interval=between,
    )


def macro_f1(right_L: NDArray[Any], found_L: NDArray[Any], wanted_L: NDArray[Any]) -> Floats:
    """Return the mean F1 of the classes that are there or predicted, over the last axis."""
    both_L = np.asarray(found_L + wanted_L, dtype=np.float64)
    f1_L = 2 * np.asarray(right_L, dtype=np.float64) / np.maximum(both_L, 1)
    return np.asarray(f1_L.sum(axis=-1) / np.maximum(1, (both_L > 0).sum(axis=-1)))


def macro_f1_interval(found_NL: Bools, truth_NL: Bools, seed: int) -> Interval:
    """Return the middle 95% of the macro-F1 of texts drawn with replacement from these.

    Texts that were decided alike count as one cell, so what is drawn is how often each cell occurs, and the work does
    not grow with the texts.
    """
    packed_NX = np.packbits(np.concatenate([found_NL, truth_NL], axis=1), axis=1)
    _, first_C, counts_C = np.unique(packed_NX, axis=0, return_index=True, return_counts=True)
    found_CL, truth_CL = found_NL[first_C].astype(np.float64), truth_NL[first_C].astype(np.float64)
    right_CL = found_CL * truth_CL
    generator = np.random.default_rng(derive(seed, "report", "macro-F1"))
    values = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        drawn_BC = generator.multinomial(len(found_NL), counts_C / counts_C.sum(), size=RESAMPLES_AT_ONCE)
        drawn_BC = drawn_BC.astype(np.float64)  # whole numbers: sums are exact in any order
        values.append(macro_f1(drawn_BC @ right_CL, drawn_BC @ found_CL, drawn_BC @ truth_CL))
    low, high = np.quantile(np.concatenate(values), TAILS)
    return float(low), float(high)


def mean_interval(values_N: NDArray[np.int64], seed: int) -> Interval:
    """Return the middle 95% of the mean of values drawn with replacement from these, of which few are distinct."""
    cells_C, counts_C = np.unique(values_N, return_counts=True)
    generator = np.random.default_rng(derive(seed, "report", "difference"))
    drawn_BC = generator.multinomial(len(values_N), counts_C / counts_C.sum(), size=RESAMPLES)
    low, high = np.quantile(drawn_BC @ cells_C / len(values_N), TAILS)
    return float(low), float(high)


@dataclass(frozen=True)
class ClassScore:
    """One class: of the texts it was given to, what share has it; of those that have it (`support`), what share got it.

    What would be a share of no text is 0.
    """

    name: str | int
    precision: float
    recall: float
    f1: float
    support: int
    recall_interval: Interval


def class_scores(found_NL: Bools, truth_NL: Bools, names: Sequence[str | int]) -> list[ClassScore]:
    """Return each class on its own, in their order."""
    right_L, found_L, wanted_L = (found_NL & truth_NL).sum(axis=0), found_NL.sum(axis=0), truth_NL.sum(axis=0)
    return [
        ClassScore(
            name=name,
            precision=right / max(1, found),
            recall=right / max(1, wanted),
            f1=2 * right / max(1, found + wanted),
            support=wanted,
            recall_interval=wilson(right, wanted),
        )
        for name, right, found, wanted in zip(names, right_L.tolist(), found_L.tolist(), wanted_L.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Confusion:
    """How often texts of one class were taken for another, and the text for which that seemed surest."""

    true: str
    predicted: str
    count: int
    text: str


def confusion_matrix(found_NL: Bools, truth_NL: Bools) -> NDArray[np.int64]:
    """Return how many texts of each true class (row) were given each class (column), one label a text."""
    num_labels = truth_NL.shape[1]
    cells_N = truth_NL.argmax(axis=1) * num_labels + found_NL.argmax(axis=1)
    return np.bincount(cells_N, minlength=num_labels**2).reshape(num_labels, num_labels)


def largest_confusions(
    matrix_LL: NDArray[np.int64], probabilities_NL: Floats, truth_NL: Bools, texts: Sequence[str], names: Sequence[str]
) -> list[Confusion]:
    """Return the most frequent mistakes, most frequent first; as often, those of earlier classes first."""
    wrong_LL = matrix_LL.copy()
    np.fill_diagonal(wrong_LL, 0)
    order = np.argsort(-wrong_LL, axis=None, kind="stable")[:SHOWN_CONFUSIONS]
    found_N, truth_N = probabilities_NL.argmax(axis=1), truth_NL.argmax(axis=1)
    confusions = []
    for true, predicted in zip(*np.unravel_index(order, wrong_LL.shape), strict=True):
        if not wrong_LL[true, predicted]:
            break
        rows = np.flatnonzero((truth_N == true) & (found_N == predicted))
        surest = rows[probabilities_NL[rows, predicted].argmax()]
        confusions.append(Confusion(names[true], names[predicted], int(wrong_LL[true, predicted]), texts[int(surest)]))
    return confusions


@dataclass(frozen=True)
class Bin:
    """Decisions of like confidence: from `low` (not included) to `high`, their mean confidence, how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    accuracy_interval: Interval


def confidence_bins(probabilities_NL: Floats, truth_NL: Bools, several: bool) -> list[Bin]:
    """Return the groups of `expected_calibration_error` that hold anything; with `several` each label is a case."""
    if several:
        confidence_N, right_N = probabilities_NL.ravel(), truth_NL.ravel()
    else:
        confidence_N = probabilities_NL.max(axis=1)
        right_N = truth_NL[np.arange(len(truth_NL)), probabilities_NL.argmax(axis=1)]
    bin_N = np.clip(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside = bin_N == number
        if inside.any():
            right, count = int(right_N[inside].sum()), int(inside.sum())
            edges = number / BINS, (number + 1) / BINS
            bins.append(Bin(*edges, count, float(confidence_N[inside].mean()), right / count, wilson(right, count)))
    return bins
