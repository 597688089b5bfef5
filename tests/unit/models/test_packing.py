from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unbroken.models.packing import Pack, attend, packed_attention, window_mask

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@given(LENGTHS)
def test_a_pack_is_a_stable_sort_by_length(lengths: list[int]) -> None:
    pack = Pack.of(np.array(lengths))
    tokens = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    packed = [tokens[place] for place in pack.places.tolist()]
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    assert pack.order.tolist() == order
    assert packed == [(row, place) for row in order for place in range(lengths[row])]
    assert pack.positions.tolist() == [place for _, place in packed]
    assert [order[place] for place in pack.inverse.tolist()] == list(range(len(lengths)))
    assert sum(n for n, _ in pack.runs) == len(lengths)
    assert list(pack.sizes) == [n * length for n, length in pack.runs]


def test_runs_are_views() -> None:
    pack = Pack.of(np.array([2, 1, 2]))
    packed = torch.arange(10.0).view(5, 2)
    runs = pack.split(packed)
    assert [tuple(run.shape) for run in runs] == [(1, 1, 2), (2, 2, 2)]
    assert runs[1].data_ptr() == packed[1:].data_ptr()


def test_attention_stays_within_each_text() -> None:
    torch.manual_seed(0)
    lengths = np.array([3, 1, 3, 4])
    pack = Pack.of(lengths)
    query, key, value = torch.randn(3, 11, 2, 4, dtype=torch.float64)
    attended = attend(query, key, value, pack)
    start = 0
    for length in sorted(lengths.tolist()):
        text = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", query[text], key[text]) / 2.0
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[text])
        torch.testing.assert_close(attended[text], expected)
        start += length


def test_rows_without_tokens_pass_through() -> None:
    pack = Pack.of(np.array([0, 2, 0]))
    heads = torch.randn(2, 2, 4)
    assert attend(heads, heads, heads, pack).shape == (2, 2, 4)


def test_packed_attention_refuses_without_a_pack() -> None:
    part = torch.zeros(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="without a pack"):
        packed_attention(nn.Identity(), part, part, part, None)
    two = torch.zeros(2, 2, 3, 4)
    with pytest.raises(RuntimeError, match="without a pack"):
        packed_attention(nn.Identity(), two, two, two, None, pack=Pack.of(np.array([3, 3])))


def test_windows_reach_back_or_both_ways() -> None:
    device = torch.device("cpu")
    assert window_mask(4, 2, True, device).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert window_mask(4, 2, False, device).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
