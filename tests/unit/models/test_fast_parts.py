"""The fast parts against the plain ones: oneDNN products, cheap noise, attention in bins."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unbroken.models.binned import STEP, attend_in_bins, fill_bins, plan_bins
from unbroken.models.dropout import dropout, noise
from unbroken.models.linear import AVAILABLE, linear

LENGTHS = [[1], [16], [3, 17, 16, 5, 33, 1, 2], [64] * 4, [16, 15, 1], [5] * 40, [0, 4, 0, 7]]


def with_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], into: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    leaves = [value.detach().to(dtype).requires_grad_() for value in inputs]
    result = function(*leaves)
    torch.autograd.backward(result, into.to(dtype))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("shape", [(1, 384, 384), (33, 384, 1536), (700, 1536, 384)])
def test_linear_is_f_linear(shape: tuple[int, int, int]) -> None:
    rows, wide, out = shape
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(rows, wide, generator=draw), torch.randn(out, wide, generator=draw) / wide**0.5]
    inputs.append(torch.randn(out, generator=draw))
    into = torch.randn(rows, out, generator=draw)
    ours = with_gradients(linear, inputs, into, torch.float32)
    exact = with_gradients(F.linear, inputs, into, torch.float64)
    for mine, wanted in zip(ours, exact, strict=True):
        assert (mine - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.skipif(not AVAILABLE, reason="this build of torch has no oneDNN products")
def test_linear_does_not_depend_on_alignment() -> None:
    rows, weight = torch.randn(7, 384), torch.randn(384, 384)
    moved = torch.empty(rows.numel() + 3)[3:].view_as(rows).copy_(rows)
    assert moved.data_ptr() % 64 != rows.data_ptr() % 64
    assert torch.equal(linear(rows, weight), linear(moved, weight))


def test_linear_of_other_types_and_of_nothing() -> None:
    rows, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(linear(rows, weight), F.linear(rows, weight))
    assert linear(torch.empty(0, 4), torch.randn(5, 4)).shape == (0, 5)


def test_noise_has_the_law_of_dropout() -> None:
    torch.manual_seed(1)
    size, probability = 4_000_001, 0.1
    drawn = noise(size, probability)
    assert drawn.unique().tolist() == pytest.approx([0, 1 / 0.9])
    dropped = (drawn == 0).double()
    assert abs(dropped.mean() - probability) < 4 * math.sqrt(0.09 / size)
    for lag in (1, 2, 3, 384):  # neighbours share a 64-bit word
        both = (dropped[:-lag] * dropped[lag:]).mean()
        assert abs(both - 0.01) < 5 * math.sqrt(0.01 * 0.99 / size)
    torch.manual_seed(1)
    assert torch.equal(drawn, noise(size, probability))


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_dropout_scales_what_it_keeps(probability: float) -> None:
    values = torch.full((1000,), 3.0, dtype=torch.float64, requires_grad=True)
    kept = dropout(values, probability)
    scaled = 3.0 / (1 - probability) if probability < 1 else 0.0
    assert all(value in (0.0, pytest.approx(scaled, rel=1e-6)) for value in kept.unique().tolist())
    kept.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad * 3.0, kept.detach())


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_text_has_one_bin_with_room(lengths: list[int]) -> None:
    widths = fill_bins(lengths)
    placed = sorted(text for bins in widths.values() for texts in bins for text in texts)
    assert placed == [text for text, length in enumerate(lengths) if length]
    for width, bins in widths.items():
        assert width % STEP == 0
        assert all(sum(lengths[text] for text in texts) <= width for texts in bins)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_in_bins_is_attention_of_each_text(lengths: list[int]) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(sum(lengths), 2, 8, generator=draw) for _ in range(3)]
    into = torch.randn(sum(lengths), 2, 8, generator=draw)
    bins = plan_bins(lengths, 2)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        texts = zip(*(torch.split(each, lengths) for each in (query, key, value)), strict=True)
        heads_first = ([each.transpose(0, 1) for each in text] for text in texts)
        return torch.cat([F.scaled_dot_product_attention(*text).transpose(0, 1) for text in heads_first])

    ours = with_gradients(lambda q, k, v: attend_in_bins(q, k, v, bins, 0.0, 8**-0.5), inputs, into, torch.float64)
    for mine, wanted in zip(ours, with_gradients(plain, inputs, into, torch.float64), strict=True):
        assert torch.allclose(mine, wanted, atol=1e-12)


def test_attention_in_bins_has_the_gradient_of_its_dropout() -> None:
    bins = plan_bins([3, 17, 5], 2)
    query, key, value = (torch.randn(25, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend_in_bins(query, key, value, bins, 0.3, 0.5)

    assert torch.autograd.gradcheck(attend, (query, key, value), nondet_tol=0.0)
