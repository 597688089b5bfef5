from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.base.errors import ConfigError
from unbroken.plan import strata
from unbroken.plan.permutation import permute
from unbroken.plan.strata import Strata, group


def classes_of(sizes: list[int]) -> np.ndarray:
    """Classes of these sizes, their examples mixed."""
    return permute(5, np.repeat(np.arange(len(sizes)), sizes), len(sizes))[
        permute(6, np.arange(sum(sizes)), sum(sizes))
    ]


def draws(plan: Strata, count: int) -> list[np.ndarray]:
    return [plan.draw(step).ids for step in range(count)]


SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=9)


@settings(max_examples=80, deadline=None)
@given(sizes=SIZES, batch_size=st.integers(4, 30), step=st.integers(0, 10**12), seed=st.integers(0, 2**64 - 1))
def test_a_batch_holds_distinct_examples_of_as_many_classes_as_fit(
    sizes: list[int], batch_size: int, step: int, seed: int
) -> None:
    classes = classes_of(sizes)
    plan = Strata(classes, batch_size, seed)
    ids = plan.draw(step).ids
    held = Counter(classes[ids].tolist())
    each = max(2, batch_size // len(sizes))
    assert len(held) == plan.num_classes == min(len(sizes), batch_size // each)
    assert held == {number: min(each, Counter(classes.tolist())[number]) for number in held}
    assert len(set(ids.tolist())) == len(ids) <= batch_size
    assert ids.dtype == "int64"
    assert int((np.diff(classes[ids]) != 0).sum()) == len(held) - 1  # class by class


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, per_class=st.integers(2, 5), spare=st.integers(0, 20))
def test_per_class_is_how_many_each_class_gives(sizes: list[int], per_class: int, spare: int) -> None:
    classes = classes_of(sizes)
    plan = Strata(classes, 2 * per_class + spare, seed=1, per_class=per_class)
    held = Counter(classes[plan.draw(3).ids].tolist())
    assert all(count == min(per_class, int((classes == number).sum())) for number, count in held.items())
    assert len(held) == min(len(sizes), (2 * per_class + spare) // per_class)


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, batch_size=st.integers(4, 12), cycle=st.integers(0, 10**6))
def test_a_cycle_holds_no_class_twice(sizes: list[int], batch_size: int, cycle: int) -> None:
    classes = classes_of(sizes)
    plan = Strata(classes, batch_size, seed=1)
    length = len(sizes) // plan.num_classes
    batches = [set(classes[plan.draw(cycle * length + index).ids].tolist()) for index in range(length)]
    assert sum(map(len, batches)) == len(set.union(*batches)) == length * plan.num_classes


@pytest.mark.parametrize("sizes", [[6], [1], [1, 9], [3, 1, 20, 2], [5] * 7, [1, 1, 1]])
def test_every_example_occurs(sizes: list[int]) -> None:
    plan = Strata(classes_of(sizes), 6, seed=1)
    assert set(np.concatenate(draws(plan, 40 * plan.steps_per_epoch)).tolist()) == set(range(sum(sizes)))


def test_a_class_goes_through_all_its_examples_before_one_comes_again() -> None:
    plan = Strata(np.array([0] * 8 + [1] * 4), 4, seed=1)
    for turn in range(5):
        ids = np.concatenate([plan.draw(step).ids for step in range(4 * turn, 4 * turn + 4)])
        assert sorted(ids[ids < 8].tolist()) == list(range(8))
        assert sorted(ids[ids >= 8].tolist()) == sorted([8, 9, 10, 11] * 2)


def excess(plan: Strata, count: int, probabilities: np.ndarray) -> float:
    """The largest deviation of what `count` draws held from these probabilities, in standard deviations."""
    num_examples = len(plan.classes)
    held = np.zeros((num_examples, num_examples))
    for ids in draws(plan, count):
        held[np.ix_(ids, ids)] += 1
    spread = np.sqrt(count * np.maximum(probabilities * (1 - probabilities), 1 / count))
    return float((np.abs(held - count * probabilities) / spread).max())


@pytest.mark.parametrize(
    ("sizes", "batch_size", "per_class"),
    [([1, 2, 3, 5], 4, None), ([2, 9], 6, None), ([3, 3, 3], 6, None), ([4, 4, 4, 4, 4], 7, 3), ([7], 4, None)],
)
def test_pairs_are_held_as_often_as_their_probability_says(
    sizes: list[int], batch_size: int, per_class: int | None
) -> None:
    plan = Strata(classes_of(sizes), batch_size, seed=1, per_class=per_class)
    probabilities = plan.pair_probabilities(np.arange(sum(sizes)))
    assert excess(plan, 1000, probabilities) < 5
    assert np.array_equal(probabilities, probabilities.T)


def test_probabilities_that_forget_the_sizes_of_classes_are_found_out() -> None:
    plan = Strata(classes_of([1, 2, 3, 5]), 4, seed=1)
    alike = np.full((11, 11), 4 * 3 / (11 * 10))
    np.fill_diagonal(alike, 4 / 11)
    assert excess(plan, 1000, alike) > 10


def test_probabilities_in_figures() -> None:
    plan = Strata(np.array([0, 0, 0, 0, 1, 1, 1, 2]), 4, seed=1)  # two of three classes, two examples of each
    found = plan.pair_probabilities(np.array([0, 1, 4, 5, 7]))
    own = [2 / 3 * 2 / 4, 2 / 3 * 2 / 3, 2 / 3]
    within = [2 / 3 * 2 / (4 * 3), 2 / 3 * 2 / (3 * 2)]
    across = [1 / 3 * 2 / 4 * 2 / 3, 1 / 3 * 2 / 4, 1 / 3 * 2 / 3]  # 0 with 1, 0 with 2, 1 with 2
    expected = [
        [own[0], within[0], across[0], across[0], across[1]],
        [within[0], own[0], across[0], across[0], across[1]],
        [across[0], across[0], own[1], within[1], across[2]],
        [across[0], across[0], within[1], own[1], across[2]],
        [across[1], across[1], across[2], across[2], own[2]],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_probabilities_of_a_batch_stand_in_its_order() -> None:
    plan = Strata(classes_of([3, 1, 7]), 6, seed=1)
    ids = plan.draw(9).ids
    assert np.array_equal(plan.pair_probabilities(ids), plan.pair_probabilities(np.arange(11))[np.ix_(ids, ids)])


@pytest.mark.parametrize(
    ("sizes", "batch_size", "steps"),
    [([8, 8], 16, 1), ([8, 8], 8, 2), ([8] * 7, 32, 2), ([3, 1000], 32, 53), ([1, 1, 1], 4, 2), ([5], 2, 3)],
)
def test_an_epoch_has_as_many_examples_as_there_are_on_average(sizes: list[int], batch_size: int, steps: int) -> None:
    plan = Strata(classes_of(sizes), batch_size, seed=1)
    assert plan.steps_per_epoch == steps
    assert [plan.draw(step).epoch for step in (0, steps - 1, steps, 5 * steps)] == [0, 0, 1, 5]


def test_a_draw_depends_on_the_step_alone() -> None:
    classes = classes_of([4, 9, 2])
    forwards = [ids.tolist() for ids in draws(Strata(classes, 5, seed=4), 20)]
    plan = Strata(classes, 5, seed=4)
    assert [plan.draw(step).ids.tolist() for step in reversed(range(20))] == forwards[::-1]


def test_seeds_have_draws_of_their_own() -> None:
    classes = classes_of([20, 20])
    assert len({tuple(Strata(classes, 8, seed).draw(0).ids.tolist()) for seed in range(50)}) == 50


def test_only_which_examples_are_of_one_class_counts() -> None:
    classes = classes_of([4, 9, 2])
    renamed = np.array([-7, 10**12, 10**12 + 5])[classes]
    assert all(map(np.array_equal, draws(Strata(classes, 5, 4), 20), draws(Strata(renamed, 5, 4), 20)))


def test_any_step_permutes_as_much_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counting(key: int, positions: Any, size: int) -> Any:
        asked.append(len(positions))
        return permute(key, positions, size)

    monkeypatch.setattr(strata, "permute", counting)
    plan = Strata(np.repeat(np.arange(100), 500), 32, seed=1)
    work = []
    for step in (0, 1, 10**9, 10**18):
        asked.clear()
        plan.draw(step)
        work.append(list(asked))
    assert work == [[16] + [2] * 16] * 4  # the classes of the batch, and two examples of each


@pytest.mark.parametrize("num_classes", [2, 1000])
def test_fifty_thousand_examples_take_little_memory(num_classes: int) -> None:
    classes = np.arange(50_000) % num_classes
    tracemalloc.start()
    plan = Strata(classes, 64, seed=1)
    assert len(plan.draw(10**9).ids) == 64
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize(
    ("sizes", "batch_size", "per_class", "message"),
    [
        (
            [4, 4],
            3,
            None,
            "batch_size 3 has no room for 2 examples of 2 classes; a batch must hold pairs of one class, and pairs of "
            "two; set batch_size to 4 or more",
        ),
        ([4, 4, 4], 15, 8, "batch_size 15 has no room for 8 examples of 2 classes; "),
        ([4], 1, None, "batch_size 1 has no room for 2 examples of 1 class; "),
        ([4, 4], 8, 1, "per_class is 1; a pair of one class takes two of its examples; set per_class to 2 or more"),
    ],
)
def test_batches_without_pairs_are_refused(
    sizes: list[int], batch_size: int, per_class: int | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Strata(classes_of(sizes), batch_size, 1, per_class)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("classes", [np.zeros(0, np.int64), np.zeros((2, 2), np.int64)])
def test_classes_must_be_a_list(classes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="every example has one class"):
        group(classes)


def test_steps_count_from_zero() -> None:
    with pytest.raises(ValueError, match="count from 0"):
        Strata(np.zeros(4, np.int64), 2, seed=1).draw(-1)
