from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.base.errors import DataError
from unbroken.plan import pairs
from unbroken.plan.pairs import Pairs, Strategy, both_kinds, count_pairs
from unbroken.plan.permutation import permute

CLASSES = st.lists(st.integers(0, 4), min_size=1, max_size=14).map(lambda each: np.array(each))
TARGETS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=1, max_size=14).map(
        lambda each: np.array(each)
    )
)
LABELS = st.one_of(CLASSES, TARGETS)


def shares_label(labels: np.ndarray, i: int, j: int) -> bool:
    return bool(labels[i] == labels[j] if labels.ndim == 1 else (labels[i] & labels[j]).any())


def listed(labels: np.ndarray, positive: bool) -> list[tuple[int, int]]:
    """All pairs of one kind, one by one."""
    every = combinations_with_replacement(range(len(labels)), 2)
    return [pair for pair in every if shares_label(labels, *pair) == positive]


def epoch_pairs(plan: Pairs, epoch: int) -> list[tuple[int, int]]:
    draws = [plan.draw(epoch * plan.steps_per_epoch + index) for index in range(plan.steps_per_epoch)]
    assert {draw.epoch for draw in draws} == {epoch}
    assert all(len(draw.ids) == 2 * plan.batch_size for draw in draws[:-1])
    return [(int(i), int(j)) for draw in draws for i, j in draw.ids.reshape(-1, 2)]


@settings(max_examples=150, deadline=None)
@given(labels=LABELS)
def test_numbers_stand_for_all_pairs_of_their_kind(labels: np.ndarray) -> None:
    kinds = both_kinds(labels)
    assert count_pairs(labels) == (kinds[0].count, kinds[1].count)
    for kind in kinds:
        found = [(int(i), int(j)) for i, j in kind.pairs(np.arange(kind.count))]
        assert sorted(found) == listed(labels, kind.positive)


@settings(max_examples=20, deadline=None)
@given(labels=TARGETS, block=st.integers(1, 30))
def test_comparing_label_sets_in_blocks_changes_nothing(labels: np.ndarray, block: int) -> None:
    whole = both_kinds(labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "BLOCK", block)
        assert [kind.later.tolist() for kind in both_kinds(labels)] == [kind.later.tolist() for kind in whole]


def test_one_label_a_row_is_a_class() -> None:
    classes = np.array([2, 0, 1, 1, 2, 2, 0])
    as_targets = np.eye(3, dtype=np.int64)[classes]
    assert count_pairs(classes) == count_pairs(as_targets) == (3 + 3 + 6, 28 - 12)


@settings(max_examples=60, deadline=None)
@given(
    labels=LABELS,
    batch_size=st.integers(1, 20),
    strategy=st.sampled_from(["oversampling", "undersampling", "unique"]),
    num_iterations=st.none() | st.integers(1, 4),
    max_pairs=st.none() | st.integers(2, 40),
    epoch=st.integers(0, 10**6),
)
def test_an_epoch_repeats_each_pair_as_often_as_any_other_of_its_kind(
    labels: np.ndarray,
    batch_size: int,
    strategy: Strategy,
    num_iterations: int | None,
    max_pairs: int | None,
    epoch: int,
) -> None:
    kinds = [listed(labels, True), listed(labels, False)]
    if strategy != "unique" and not all(kinds):
        with pytest.raises(DataError, match="no two of the"):
            Pairs(labels, batch_size, 1, strategy, num_iterations, max_pairs)
        return
    plan = Pairs(labels, batch_size, 1, strategy, num_iterations, max_pairs)
    drawn = Counter(epoch_pairs(plan, epoch))
    for kind, num in zip(kinds, plan.nums, strict=True):
        distinct = min(len(kind), max_pairs // 2) if max_pairs else len(kind)
        times = [drawn.pop(pair, 0) for pair in kind]
        floor, rest = divmod(num, max(1, distinct))
        assert Counter(times) == Counter(
            [floor + 1] * rest + [floor] * (distinct - rest) + [0] * (len(kind) - distinct)
        )
    assert not drawn


def test_unique_is_every_pair_once() -> None:
    classes = np.array([0, 1, 1, 0, 2, 1])
    plan = Pairs(classes, 4, 1, "unique")
    assert sorted(epoch_pairs(plan, 3)) == list(combinations_with_replacement(range(6), 2))
    assert [len(plan.draw(step).ids) for step in range(6)] == [8, 8, 8, 8, 8, 2]


@pytest.mark.parametrize("strategy", ["oversampling", "undersampling", "unique"])
def test_epochs_have_the_same_pairs_in_orders_of_their_own(strategy: Strategy) -> None:
    plan = Pairs(np.repeat(np.arange(3), 5), 7, 1, strategy)
    epochs = [epoch_pairs(plan, epoch) for epoch in range(4)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_which_pairs_are_left_out_depends_on_the_seed() -> None:
    chosen = {
        tuple(sorted(epoch_pairs(Pairs(np.repeat(np.arange(3), 5), 7, seed, "undersampling"), 0))) for seed in range(9)
    }
    assert len(chosen) == 9


def test_pairs_left_out_are_any() -> None:
    """Undersampling takes 108 of 192 negative pairs, each under 108/192 of the seeds."""
    classes, seeds = np.repeat(np.arange(3), 8), 150
    taken = Counter(
        pair for seed in range(seeds) for pair in set(epoch_pairs(Pairs(classes, 216, seed, "undersampling"), 0))
    )
    share = 108 / 192
    counts = [taken[pair] for pair in listed(classes, False)]
    assert sum(counts) == 108 * seeds
    spread = (seeds * share * (1 - share)) ** 0.5
    assert max(abs(count - seeds * share) for count in counts) < 4.5 * spread


def test_kinds_are_mixed_within_an_epoch() -> None:
    plan = Pairs(np.repeat(np.arange(4), 25), 16, 1)
    drawn = [plan.labels[plan.draw(step).ids].reshape(-1, 2) for step in range(200)]
    alike = [float((classes[:, 0] == classes[:, 1]).mean()) for classes in drawn]
    assert abs(np.mean(alike) - 0.5) < 5 * 0.5 / (200 * 16) ** 0.5
    assert abs(np.std(alike) - 0.125) < 0.03


def test_a_draw_depends_on_the_step_alone() -> None:
    labels = np.repeat(np.arange(3), 5)
    forwards = [Pairs(labels, 8, 4).draw(step).ids.tolist() for step in range(40)]
    plan = Pairs(labels, 8, 4)
    assert [plan.draw(step).ids.tolist() for step in reversed(range(40))] == forwards[::-1]


def test_any_step_permutes_as_much_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counting(key: int, positions: Any, size: int) -> Any:
        asked.append(len(positions))
        return permute(key, positions, size)

    monkeypatch.setattr(pairs, "permute", counting)
    plan = Pairs(np.repeat(np.arange(100), 500), 32, seed=1)
    for step in (0, 1, 10**9, 10**15):
        asked.clear()
        plan.draw(step)
        assert asked[0] == sum(asked[1:]) == 32


@pytest.mark.parametrize("num_classes", [2, 1000, 50_000])
def test_fifty_thousand_examples_take_little_memory(num_classes: int) -> None:
    classes = np.arange(50_000) % num_classes
    tracemalloc.start()
    plan = Pairs(classes, 64, seed=1)
    ids = plan.draw(10**9).ids
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) == 128
    assert plan.num_pairs == 2 * max(count_pairs(classes)) > 10**9
    assert peak < 8e6


def test_many_label_sets_take_memory_linear_in_them() -> None:
    targets = (permute(3, np.arange(20_000 * 14), 20_000 * 14).reshape(20_000, 14) % 3 == 0).astype(np.int64)
    tracemalloc.start()
    plan = Pairs(targets, 16, seed=1)
    plan.draw(5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan.kinds[0].groups.sizes) > 5000
    assert peak < 40e6  # a table of 5,000 sets by 5,000 has 25 million cells


def test_pairs_of_a_class_are_numbered_far_beyond_what_floats_hold() -> None:
    for root in (10**8, 2**29 + 1, 3 * 10**9):
        first = root * (root + 1) // 2
        ranks = np.array([first - 1, first, first + root, first + root + 1])
        assert pairs._triangular_root(ranks).tolist() == [root - 1, root, root, root + 1]


def test_a_teachers_pairs_are_all_of_one_kind() -> None:
    labels = np.zeros(5, np.int64)
    assert Pairs(labels, 4, 1, "unique").nums == (15, 0)
    assert Pairs(labels, 4, 1, "unique", num_iterations=2).nums == (10, 0)


@pytest.mark.parametrize("strategy", ["oversampling", "undersampling"])
def test_one_class_is_explained(strategy: Strategy) -> None:
    with pytest.raises(DataError) as caught:
        Pairs(np.zeros(5, np.int64), 4, 1, strategy)
    assert str(caught.value) == (
        f"no two of the 5 examples have no label in common; {strategy} takes as many pairs that do as pairs that do "
        "not; give examples of two classes at least"
    )


def test_examples_without_labels_share_none() -> None:
    with pytest.raises(DataError, match=r"no two of the 3 examples share a label; .*; give examples labels"):
        Pairs(np.zeros((3, 2), np.int64), 4, 1)


def test_no_pair_left_is_explained() -> None:
    with pytest.raises(DataError, match="max_pairs 1 leaves no pair; take a larger batch"):
        Pairs(np.array([0, 1]), 1, 1, max_pairs=1)


@pytest.mark.parametrize(("batch_size", "num_iterations"), [(0, None), (4, 0)])
def test_a_plan_of_nothing_is_refused(batch_size: int, num_iterations: int | None) -> None:
    with pytest.raises(ValueError, match="a plan needs pairs"):
        Pairs(np.array([0, 1]), batch_size, 1, num_iterations=num_iterations)


def test_steps_count_from_zero() -> None:
    with pytest.raises(ValueError, match="count from 0"):
        Pairs(np.array([0, 1]), 1, 1).draw(-1)
