from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from unbroken.models.ragged import Ragged, gather_places

ROWS = st.lists(st.lists(st.integers(0, 1000), max_size=6), min_size=1, max_size=8)


@given(ROWS)
def test_lists_go_in_and_come_out(rows: list[list[int]]) -> None:
    ragged = Ragged.from_lists(rows)
    assert ragged.to_lists() == rows
    assert len(ragged) == len(rows)
    assert ragged.num_tokens == sum(map(len, rows))
    assert ragged.ids.dtype == torch.int32


@given(ROWS, st.data())
def test_select_takes_rows_in_any_order_and_again(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    assert Ragged.from_lists(rows).select(chosen).to_lists() == [rows[i] for i in chosen]


@given(ROWS, ROWS)
def test_concat_keeps_rows_and_their_prompts(first: list[list[int]], second: list[list[int]]) -> None:
    both = Ragged.concat([Ragged.from_lists(first, prompt_length=2), Ragged.from_lists(second)])
    assert both.to_lists() == first + second
    assert both.prompt_lengths.tolist() == [2] * len(first) + [0] * len(second)


def test_gather_places_of_nothing_is_empty() -> None:
    assert gather_places(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []
    assert gather_places(np.array([5, 0]), np.array([2, 3])).tolist() == [5, 6, 0, 1, 2]
