"""The table's gradient, row by row, is bit for bit the dense one, over steps and chunks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbroken.models.lookup import Lookup


def pair() -> tuple[Lookup, nn.Embedding]:
    weight = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    ours = Lookup(200, 16, 3, weight.clone())
    ours.reuses_gradient = True
    return ours, nn.Embedding(200, 16, padding_idx=3, _weight=weight.clone())


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randint(0, 40, (60,), generator=draw) + 20 * i % 150, torch.randn(60, 16, generator=draw))
        for i in range(count)
    ]


def test_several_steps() -> None:
    ours, theirs = pair()
    optimizers = [torch.optim.AdamW(table.parameters(), lr=0.01, fused=True) for table in (ours, theirs)]
    for ids, into in batches(5):
        for table in (ours, theirs):
            torch.autograd.backward(table(ids), into)
        assert ours.weight.grad is not None
        assert theirs.weight.grad is not None
        assert torch.equal(ours.weight.grad, theirs.weight.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert torch.equal(ours.weight, theirs.weight)


def test_several_chunks_of_one_step() -> None:
    ours, theirs = pair()
    for ids, into in batches(3):
        for table in (ours, theirs):
            torch.autograd.backward(table(ids), into)
    assert ours.weight.grad is not None
    assert theirs.weight.grad is not None
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-6, atol=1e-6)


def test_only_touched_rows_are_zeroed() -> None:
    """The control: what another adds to an untouched row is found in the next step, hence off by default."""
    ours, _ = pair()
    (ids, into), (later, more) = batches(2)
    torch.autograd.backward(ours(ids), into)
    assert ours.weight.grad is not None
    ours.weight.grad[199] += 1.0
    ours.zero_grad(set_to_none=True)
    torch.autograd.backward(ours(later), more)
    assert ours.weight.grad[199].unique().tolist() == [1.0]


def test_a_gradient_that_is_there_already_is_refused() -> None:
    ours, _ = pair()
    (ids, into), *_ = batches(1)
    ours.weight.grad = torch.ones(200, 16)
    with pytest.raises(RuntimeError, match="has a gradient of another origin"):
        torch.autograd.backward(ours(ids), into)


def test_by_default_gradients_are_torchs_own() -> None:
    table = Lookup(200, 16, 3, torch.randn(200, 16))
    (ids, into), (later, more) = batches(2)
    torch.autograd.backward(table(ids), into)
    kept = table.weight.grad
    assert kept is not None
    before = kept.clone()
    table.zero_grad(set_to_none=True)
    torch.autograd.backward(table(later), more)
    assert torch.equal(kept, before), "a gradient someone kept is left alone"


def test_without_gradients_it_is_a_table() -> None:
    ours, theirs = pair()
    with torch.no_grad():
        assert torch.equal(ours(torch.tensor([1, 2])), theirs(torch.tensor([1, 2])))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
