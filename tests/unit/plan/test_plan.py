from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.base.errors import DataError
from unbroken.plan.plan import Plan, steps_for


def epoch_ids(plan: Plan, epoch: int) -> list[int]:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    draws = [plan.draw(step) for step in steps]
    assert {draw.epoch for draw in draws} == {epoch}
    return [int(example) for draw in draws for example in draw.ids]


@settings(max_examples=60, deadline=None)
@given(num_examples=st.integers(1, 200), batch_size=st.integers(1, 70), epoch=st.integers(0, 3), shuffle=st.booleans())
def test_an_epoch_draws_every_example_once(num_examples: int, batch_size: int, epoch: int, shuffle: bool) -> None:
    plan = Plan(num_examples, batch_size, seed=1, shuffle=shuffle)
    assert sorted(epoch_ids(plan, epoch)) == list(range(num_examples))


@settings(max_examples=60, deadline=None)
@given(num_batches=st.integers(1, 9), batch_size=st.integers(1, 40), rest=st.integers(0, 39))
def test_drop_last_draws_whole_batches_of_distinct_examples(num_batches: int, batch_size: int, rest: int) -> None:
    plan = Plan(num_batches * batch_size + rest % batch_size, batch_size, seed=1, drop_last=True)
    ids = epoch_ids(plan, 2)
    assert plan.steps_per_epoch == num_batches
    assert len(set(ids)) == len(ids) == num_batches * batch_size
    assert all(len(plan.draw(step).ids) == batch_size for step in range(num_batches))


def test_the_last_batch_of_an_epoch_is_short() -> None:
    plan = Plan(10, 4, seed=1)
    assert [len(plan.draw(step).ids) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [plan.draw(step).epoch for step in range(6)] == [0, 0, 0, 1, 1, 1]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_ids(Plan(40, 8, seed), epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_without_shuffle_examples_come_in_file_order() -> None:
    plan = Plan(7, 3, seed=1, shuffle=False)
    assert epoch_ids(plan, 0) == epoch_ids(plan, 3) == list(range(7))


def test_a_draw_depends_on_the_step_alone() -> None:
    forwards = [Plan(50, 8, seed=4).draw(step).ids.tolist() for step in range(20)]
    plan = Plan(50, 8, seed=4)
    assert [plan.draw(step).ids.tolist() for step in reversed(range(20))] == forwards[::-1]


def test_a_far_step_is_drawn_without_the_ones_before() -> None:
    draw = Plan(10_000_000, 128, seed=4).draw(10**12)
    assert draw.epoch == 10**12 // 78_125
    assert draw.ids.dtype == "int64"
    assert len(set(draw.ids.tolist())) == 128


def test_a_batch_larger_than_the_data_is_explained() -> None:
    with pytest.raises(DataError) as caught:
        Plan(5, 8, seed=1, drop_last=True)
    assert str(caught.value) == (
        "5 examples are fewer than one batch of 8; with drop_last an epoch would have no step; "
        "set batch_size to 5 or less, or drop_last to false"
    )
    assert Plan(5, 8, seed=1).draw(1).ids.size == 5


@pytest.mark.parametrize(("num_examples", "batch_size"), [(0, 4), (4, 0), (-1, 4)])
def test_a_plan_of_nothing_is_refused(num_examples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="a plan needs"):
        Plan(num_examples, batch_size, seed=1)


def test_steps_count_from_zero() -> None:
    with pytest.raises(ValueError, match="count from 0"):
        Plan(4, 2, seed=1).draw(-1)


@pytest.mark.parametrize(
    ("num_epochs", "max_steps", "steps"),
    [(3, None, 9), (0.5, None, 2), (1.01, None, 4), (3, 5, 5), (None, 100, 100)],
)
def test_steps_are_counted_as_in_hugging_face(num_epochs: float | None, max_steps: int | None, steps: int) -> None:
    assert steps_for(Plan(10, 4, seed=1), num_epochs, max_steps) == steps


@pytest.mark.parametrize(("num_epochs", "max_steps"), [(None, None), (0, None), (1, 0)])
def test_a_run_without_steps_is_refused(num_epochs: float | None, max_steps: int | None) -> None:
    with pytest.raises(ValueError, match="a run needs"):
        steps_for(Plan(10, 4, seed=1), num_epochs, max_steps)


def test_planning_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers', 'datasets', 'pyarrow'}"
    code = f"import sys, unbroken.plan.plan, unbroken.plan.source; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
