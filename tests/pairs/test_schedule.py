"""Our learning rates against transformers' schedulers, at every step, to the bit."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from unbroken.step.schedule import learning_rate, warmup

KINDS = ["linear", "cosine", "constant", "constant_with_warmup"]


def peer_rates(kind, peak, warmup_steps, total_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    rates = []
    for _ in range(total_steps + 3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("peak", [2e-5, 0.1])
@pytest.mark.parametrize(
    ("warmup_steps", "total_steps"), [(0, 1), (0, 37), (1, 10), (7, 101), (50, 500), (9, 9), (9, 5)]
)
def test_every_step(kind, peak, warmup_steps, total_steps):
    rate = learning_rate(kind, peak, warmup_steps, total_steps)
    assert [rate(step) for step in range(total_steps + 3)] == peer_rates(kind, peak, warmup_steps, total_steps)


@pytest.mark.parametrize("total_steps", [1, 9, 30, 100, 1001])
@pytest.mark.parametrize("asked", [0, 0.03, 0.07, 0.1, 0.5, 1, 12])
def test_warmup(asked, total_steps, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=asked)
    assert warmup(total_steps, asked, None) == arguments.get_warmup_steps(total_steps)
    if asked < 1:
        assert warmup(total_steps, None, asked) == arguments.get_warmup_steps(total_steps)
