"""The batches and pairs of few-shot training, pinned to the bit: what `test_order.py` says of orders holds here.

New draws need a new `strata.ORDER` or `pairs.ORDER`. Never paste new values in to make a test pass.
"""

from __future__ import annotations

import numpy as np
import pytest

from unbroken.plan import pairs, strata
from unbroken.plan.pairs import Pairs, Strategy
from unbroken.plan.strata import Strata

CLASSES = np.array([2, 0, 1, 1, 0, 2, 2, 0, 0, 1, 2, 0])
TARGETS = np.array(
    [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]]
)  # two without any label, and one set of labels twice
FAR = 10**9

STRATA = {0: (0, [9, 2, 7, 11]), 1: (0, [0, 5, 2, 3]), 3: (1, [8, 4, 5, 6]), FAR: (333333333, [11, 8, 5, 6])}
THREE_OF_EACH = {0: (0, [9, 2, 3, 7, 11, 8]), 1: (0, [0, 10, 5, 2, 3, 9]), FAR: (500000000, [4, 8, 7, 10, 5, 6])}
THOUSAND_CLASSES = {
    0: (0, [13478, 37478, 35658, 43658, 6314, 29314, 19012, 15012]),
    10**6: (160, [2461, 461, 19125, 16125, 14709, 11709, 14697, 8697]),
}
PAIRS: dict[tuple[Strategy, int | None, int | None], dict[int, tuple[int, list[int]]]] = {
    ("oversampling", None, None): {
        0: (0, [0, 10, 1, 7, 4, 11, 2, 8]),
        1: (0, [6, 7, 1, 8, 3, 7, 8, 10]),
        FAR: (41666666, [5, 5, 1, 4, 2, 3, 1, 6]),
    },
    ("undersampling", None, None): {
        0: (0, [5, 5, 8, 8, 3, 5, 7, 7]),
        1: (0, [5, 10, 0, 3, 1, 8, 0, 6]),
        FAR: (62500000, [4, 11, 0, 9, 5, 11, 8, 11]),
    },
    ("unique", None, None): {
        0: (0, [0, 10, 1, 7, 5, 8, 5, 7]),
        1: (0, [2, 9, 3, 11, 1, 4, 10, 11]),
        FAR: (50000000, [5, 6, 1, 4, 5, 11, 2, 3]),
    },
    ("oversampling", 2, None): {
        0: (0, [0, 4, 8, 8, 1, 11, 7, 7]),
        1: (0, [2, 8, 1, 1, 1, 8, 0, 6]),
        FAR: (83333333, [3, 9, 0, 5, 1, 11, 5, 6]),
    },
    ("oversampling", None, 10): {
        0: (0, [3, 4, 2, 3, 7, 11, 9, 10]),
        1: (0, [4, 7, 0, 9, 0, 4, 0, 6]),
        FAR: (333333333, [6, 9, 0, 6, 7, 11, 2, 3]),
    },
}
PAIRS_OF_TARGETS = {
    0: (0, [0, 2, 0, 5, 1, 7, 5, 5]),
    1: (0, [4, 5, 1, 5, 1, 1, 7, 7]),
    FAR: (83333333, [4, 7, 1, 2, 1, 7, 2, 2]),
}
PAIRS_OF_MANY = {
    0: (0, [26301, 39301, 26803, 48803, 21734, 46829, 4898, 30758]),
    FAR: (1, [9787, 31787, 3918, 8376, 36661, 42385, 27643, 36643]),
}


def assert_draws(plan: Strata | Pairs, expected: dict[int, tuple[int, list[int]]]) -> None:
    drawn = {step: plan.draw(step) for step in expected}
    assert {step: (draw.epoch, draw.ids.tolist()) for step, draw in drawn.items()} == expected


def test_batches_of_classes() -> None:
    assert_draws(Strata(CLASSES, 4, 42), STRATA)
    assert_draws(Strata(CLASSES, 8, 42, per_class=3), THREE_OF_EACH)


def test_batches_of_many_classes() -> None:
    assert_draws(Strata(np.arange(50_000) % 1000, 8, 7), THOUSAND_CLASSES)


@pytest.mark.parametrize(("strategy", "num_iterations", "max_pairs"), PAIRS)
def test_pairs(strategy: Strategy, num_iterations: int | None, max_pairs: int | None) -> None:
    plan = Pairs(CLASSES, 4, 42, strategy, num_iterations, max_pairs)
    assert_draws(plan, PAIRS[strategy, num_iterations, max_pairs])


def test_pairs_of_targets() -> None:
    assert_draws(Pairs(TARGETS, 4, 42), PAIRS_OF_TARGETS)


def test_pairs_of_many_examples() -> None:
    assert_draws(Pairs(np.arange(50_000) % 1000, 4, 7), PAIRS_OF_MANY)


def test_the_names_of_the_draws() -> None:
    assert (strata.ORDER, pairs.ORDER) == ("strata-1", "pairs-1")
