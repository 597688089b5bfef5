"""The table's gradient, row by row, is bit for bit the dense one: over steps, chunks, and with a tied head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unbroken.models.lookup import Lookup


def pair() -> tuple[Lookup, nn.Embedding]:
    weight = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    return Lookup(200, 16, 3, weight.clone()), nn.Embedding(200, 16, padding_idx=3, _weight=weight.clone())


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


@pytest.mark.parametrize("in_place", [False, True], ids=["grads freed", "grads zeroed"])
def test_a_tied_head_leaves_nothing_behind(in_place: bool) -> None:
    """The control: without the hook the head's gradient would stay in rows no look-up touches."""
    ours, theirs = pair()
    for ids, into in batches(4):
        for table in (ours, theirs):
            rows = table(ids)
            torch.autograd.backward([rows, F.linear(rows, table.weight).sum()], [into, None])
        assert ours.weight.grad is not None
        assert theirs.weight.grad is not None
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-5)
        for table in (ours, theirs):
            table.zero_grad(set_to_none=not in_place)


def test_without_gradients_it_is_a_table() -> None:
    ours, theirs = pair()
    with torch.no_grad():
        assert torch.equal(ours(torch.tensor([1, 2])), theirs(torch.tensor([1, 2])))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
