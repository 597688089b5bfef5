"""Bins of tokens: every example in one of them, none too full, and batches that are a function of the step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.base.errors import DataError
from unbroken.plan.packing import Packed, fill_bins

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(lambda rows: np.array(rows, dtype=np.int64))


@given(lengths=LENGTHS, capacity=st.integers(1, 50))
def test_every_example_lies_in_one_bin_and_none_is_too_full(lengths: np.ndarray, capacity: int) -> None:
    bins = fill_bins(lengths, capacity)
    assert sorted(bins.members.tolist()) == list(range(len(lengths)))
    held = bins.of(np.arange(len(bins)))
    assert all(len(examples) for examples in held)
    assert all(lengths[examples].sum() <= capacity or len(examples) == 1 for examples in held)
    tokens = [lengths[examples].sum() for examples in held]
    assert not any(a + b <= capacity for i, a in enumerate(tokens) for b in tokens[i + 1 :])  # none could be spared


def test_the_fullest_bin_with_room_is_taken() -> None:
    bins = fill_bins(np.array([6, 5, 4, 3, 2]), 10)
    assert [sorted(examples.tolist()) for examples in bins.of(np.arange(len(bins)))] == [[0, 2], [1, 3, 4]]


def test_batches_hold_every_example_once_an_epoch_in_a_new_order() -> None:
    lengths = np.arange(1, 30) % 7 + 1
    bins = fill_bins(lengths, 12)
    plan = Packed(len(bins), 3, seed=5, bins=bins)
    epochs = [
        [plan.draw(epoch * plan.steps_per_epoch + step).ids.tolist() for step in range(plan.steps_per_epoch)]
        for epoch in (0, 1)
    ]
    for batches in epochs:
        assert sorted(example for batch in batches for example in batch) == list(range(29))
    assert epochs[0] != epochs[1]
    assert plan.draw(4).ids.tolist() == Packed(len(bins), 3, seed=5, bins=bins).draw(4).ids.tolist()
    assert plan.draw(plan.steps_per_epoch).epoch == 1


def test_too_few_bins_for_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="fill 2 bins, fewer than one batch of 3"):
        Packed(2, 3, seed=0, drop_last=True)


def test_bins_of_natural_lengths_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(20, 500, size=20_000)
    bins = fill_bins(lengths, 2048)
    assert len(bins) <= 1.01 * np.ceil(lengths.sum() / 2048) + 1
