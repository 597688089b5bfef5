"""Our AdamW against torch's fused one: every bit of every tensor, and each loads what the other wrote."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from unbroken.step.adamw import AdamW


def parameters() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((33, 17), (17,), (5, 3), ())]


def groups(all_parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    return [{"params": all_parameters[:2], "weight_decay": decay}, {"params": all_parameters[2:], "weight_decay": 0.0}]


def step(optimizer: Any, all_parameters: list[nn.Parameter], number: int) -> None:
    draw = torch.Generator().manual_seed(number)
    for index, parameter in enumerate(all_parameters):
        gradient = torch.randn(parameter.shape, generator=draw)
        parameter.grad = None if index == 2 and number == 0 else gradient  # one parameter starts a step later
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 / (number + 1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_every_bit_is_torchs(decay: float) -> None:
    mine, theirs = parameters(), parameters()
    ours = AdamW(groups(mine, decay), lr=1.0, betas=(0.8, 0.99), eps=1e-6)
    torchs = torch.optim.AdamW(groups(theirs, decay), lr=1.0, betas=(0.8, 0.99), eps=1e-6, fused=True)
    for number in range(7):
        step(ours, mine, number)
        step(torchs, theirs, number)
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other)
    saved, wanted = ours.state_dict()["state"], torchs.state_dict()["state"]
    assert saved.keys() == wanted.keys()
    for index, slots in wanted.items():
        assert saved[index].keys() == slots.keys()
        assert all(torch.equal(saved[index][name], slots[name]) for name in slots)


@pytest.mark.parametrize("towards_torch", [True, False])
def test_state_goes_over(towards_torch: bool) -> None:
    first, second = parameters(), parameters()
    kinds: list[Any] = [AdamW, lambda made, lr: torch.optim.AdamW(made, lr=lr, fused=True)]
    one, other = kinds if towards_torch else kinds[::-1]
    earlier = one(groups(first, 0.0), lr=0.1)
    for number in range(3):
        step(earlier, first, number)
    for target, source in zip(second, first, strict=True):
        target.data.copy_(source.data)
    later = other(groups(second, 0.0), lr=0.1)
    later.load_state_dict(copy.deepcopy(earlier.state_dict()))
    step(earlier, first, 3)
    step(later, second, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_it_does_not_import_the_compiler() -> None:
    script = (
        "import sys, torch; from unbroken.step.adamw import AdamW; p = torch.nn.Parameter(torch.ones(3)); "
        "o = AdamW([{'params': [p]}], lr=0.1); p.grad = torch.ones(3); o.step(); o.zero_grad(); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
