"""Our pairs against SetFit 1.2's `ContrastiveDataset`: how many of each kind, and which.

The counts were taken from SetFit 1.2.0; where it is installed it is asked again, and pair is compared with pair.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

from unbroken.plan.pairs import Pairs

TARGETS = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 0, 1], [0, 1, 0]]
SETTINGS: dict[str, dict[str, Any]] = {
    "over": {"sampling_strategy": "oversampling"},
    "under": {"sampling_strategy": "undersampling"},
    "unique": {"sampling_strategy": "unique"},
    "1 iteration": {"num_iterations": 1},
    "20 iterations": {"num_iterations": 20},
    "over, 20 pairs": {"sampling_strategy": "oversampling", "max_pairs": 20},
    "unique, 50 pairs": {"sampling_strategy": "unique", "max_pairs": 50},
    "under, 33 pairs": {"sampling_strategy": "undersampling", "max_pairs": 33},
    "5 iterations, 20 pairs": {"num_iterations": 5, "max_pairs": 20},
}
# Positive and negative pairs an epoch, in the order of SETTINGS.
COUNTS: dict[tuple[int, ...], list[tuple[int, int]]] = {
    (8, 8): [(72, 72), (64, 64), (72, 64), (16, 16), (320, 320), (10, 10), (25, 25), (16, 16), (80, 80)],
    (16, 16): [(272, 272), (256, 256), (272, 256), (32, 32), (640, 640), (10, 10), (25, 25), (16, 16), (160, 160)],
    (8, 8, 8, 8, 8, 8): [
        (960, 960),
        (216, 216),
        (216, 960),
        (48, 48),
        (960, 960),
        (10, 10),
        (25, 25),
        (16, 16),
        (240, 240),
    ],
    (1, 5): [(16, 16), (5, 5), (16, 5), (6, 6), (120, 120), (10, 10), (16, 5), (5, 5), (30, 30)],
    (3, 1, 7): [(35, 35), (31, 31), (35, 31), (11, 11), (220, 220), (10, 10), (25, 25), (16, 16), (55, 55)],
    (10, 2): [(58, 58), (20, 20), (58, 20), (12, 12), (240, 240), (10, 10), (25, 20), (16, 16), (60, 60)],
    (1, 1, 1): [(3, 3), (3, 3), (3, 3), (3, 3), (60, 60), (3, 3), (3, 3), (3, 3), (15, 15)],
    (4, 9, 1, 30): [(521, 521), (469, 469), (521, 469), (44, 44), (880, 880), (10, 10), (25, 25), (16, 16), (220, 220)],
}
OF_TARGETS = [(32, 32), (23, 23), (23, 32), (10, 10), (200, 200), (10, 10), (23, 25), (16, 16), (50, 50)]


def labels_of(sizes: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes) if sizes else np.array(TARGETS)


def plan_of(sizes: tuple[int, ...], settings: dict[str, Any]) -> Pairs:
    renamed = {"strategy" if key == "sampling_strategy" else key: value for key, value in settings.items()}
    return Pairs(labels_of(sizes), 16, 1, **renamed)


def epoch_pairs(plan: Pairs) -> list[tuple[int, int]]:
    ids = np.concatenate([plan.draw(step).ids for step in range(plan.steps_per_epoch)])
    return [(int(i), int(j)) for i, j in ids.reshape(-1, 2)]


def is_positive(labels: np.ndarray, pair: tuple[int, int]) -> bool:
    first, second = labels[list(pair)]
    return bool(first == second if labels.ndim == 1 else (first & second).any())


CASES = [(sizes, name) for sizes in (*COUNTS, ()) for name in SETTINGS]


@pytest.mark.parametrize(("sizes", "name"), CASES)
def test_an_epoch_has_as_many_pairs_of_either_kind_as_setfits(sizes: tuple[int, ...], name: str) -> None:
    plan = plan_of(sizes, SETTINGS[name])
    expected = (COUNTS[sizes] if sizes else OF_TARGETS)[list(SETTINGS).index(name)]
    assert plan.nums == expected
    drawn = epoch_pairs(plan)
    positive = sum(is_positive(labels_of(sizes), pair) for pair in drawn)
    assert (positive, len(drawn) - positive) == expected
    assert plan.steps_per_epoch == -(-sum(expected) // 16)


@pytest.mark.parametrize(("sizes", "name"), CASES)
def test_setfit_itself_takes_as_many_of_the_same_pairs(sizes: tuple[int, ...], name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = pytest.importorskip("setfit.sampler", reason="SetFit is not installed", exc_type=ImportError)
    labels = labels_of(sizes)
    texts = [str(row) for row in range(len(labels))]
    dataset = sampler.ContrastiveDataset(texts, list(labels), multilabel=not sizes, **SETTINGS[name])
    rows = list(dataset)
    theirs = Counter((int(row["sentence_1"]), int(row["sentence_2"]), row["label"] == 1.0) for row in rows)
    plan = plan_of(sizes, SETTINGS[name])
    mine = Counter((*pair, is_positive(labels, pair)) for pair in epoch_pairs(plan))
    for kind in plan.kinds:
        times = [{pair: num for pair, num in each.items() if pair[2] is kind.positive} for each in (mine, theirs)]
        # How often pairs occur. Which are left out, or occur once more, SetFit draws from another generator.
        assert sorted(times[0].values()) == sorted(times[1].values())
        if len(times[1]) == kind.count:
            assert set(times[0]) == set(times[1])
    if name == "unique":
        assert mine == theirs
