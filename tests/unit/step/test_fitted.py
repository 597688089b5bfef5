"""A step whose result is computed whole: its values arrive bit for bit, and nothing else is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbroken.plan.plan import Plan
from unbroken.run.job import Job, Phase
from unbroken.run.state import OPTIMIZER_FILE
from unbroken.run.stepping import Steps
from unbroken.step.adamw import AdamW, Optimizer
from unbroken.step.fitted import Assign
from unbroken.step.update import update
from unbroken.store.checkpoints import Restored

torch.set_num_threads(1)

VALUES = {
    "weight": torch.tensor([[1e-30, -7.25, 3e5], [0.1, -0.0, 1 / 3]]),
    "bias": torch.tensor([12345.678, -1e-3]),
}


def head_with_values() -> nn.Linear:
    head = nn.Linear(3, 2)
    for name, parameter in head.named_parameters():
        parameter.grad = VALUES[name].clone()
    return head


def test_gradients_become_the_values_in_the_storage_there_was():
    head = head_with_values()
    places = [parameter.data_ptr() for parameter in head.parameters()]
    optimizer: Optimizer = Assign(head.parameters())
    update(optimizer, dict(head.named_parameters()), None, None)
    assert all(torch.equal(parameter, VALUES[name]) for name, parameter in head.named_parameters())
    assert [parameter.data_ptr() for parameter in head.parameters()] == places
    assert all(parameter.grad is None for parameter in head.parameters())


def test_a_learning_rate_takes_part_in_nothing():
    head = head_with_values()
    update(Assign(head.parameters()), dict(head.named_parameters()), 1e-3, None)
    assert torch.equal(head.weight, VALUES["weight"])


def test_control_a_clipped_gradient_is_another_value():
    head = head_with_values()
    update(Assign(head.parameters()), dict(head.named_parameters()), None, 1.0)
    assert not torch.equal(head.weight, VALUES["weight"])


def test_what_has_no_gradient_stays():
    head = head_with_values()
    head.bias.grad = None
    before = head.bias.detach().clone()
    Assign(head.parameters()).step()
    assert torch.equal(head.bias, before)
    assert torch.equal(head.weight, VALUES["weight"])


def test_there_is_no_state():
    head = head_with_values()
    optimizer = Assign(head.parameters())
    optimizer.step()
    assert optimizer.state == {}
    assert optimizer.state_dict() == {"state": {}, "param_groups": [{"params": [0, 1], "lr": 1.0}]}
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(head.weight.grad, torch.zeros(2, 3))


def two_phases() -> Job:
    """Two steps of a body, then a head that is what the body makes of the examples: one step."""
    torch.manual_seed(0)
    body, head = nn.Linear(3, 3), nn.Linear(3, 2)
    rows = torch.randn(4, 3)

    def learn(batch, scope):
        loss = body(batch).square().mean()
        loss.backward()
        return loss.detach()

    def fit(batch, scope):
        with torch.no_grad():
            means = body(rows).reshape(2, 2, 3).mean(dim=1)
            head.weight.grad, head.bias.grad = means, means.sum(dim=1)
        return head(batch).square().mean().detach()

    plan = Plan(num_examples=4, batch_size=2, seed=0)
    return Job(
        seed=0,
        phases=(
            Phase("body", 2, plan, lambda p: AdamW([{"params": list(p.values())}], lr=0.1), None, is_body),
            Phase("head", 3, plan, lambda p: Assign(p.values()), None, is_head, max_grad_norm=None, gradients=fit),
        ),
        modules={"body": body, "head": head},
        encode=lambda ids, epoch: rows[torch.from_numpy(ids)],
        gradients=learn,
        layout=lambda name: ("model/all.safetensors", name),
        documents=dict,
    )


def is_body(name: str) -> bool:
    return name.startswith("body.")


def is_head(name: str) -> bool:
    return name.startswith("head.")


def checkpoint(steps: Steps) -> Restored:
    image = steps.state.image()
    tensors = {name: placed.tensor.detach().clone() for name, placed in image.tensors.items()}
    return Restored(image.step, tensors, {}, image.state, mark=None)


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_run_of_both_phases_stopped_anywhere_ends_in_the_same_bits(stop: int):
    whole = Steps(two_phases())
    records = [whole.make() for _ in range(3)]
    first = Steps(two_phases())
    made = [first.make() for _ in range(stop)]
    second = Steps(two_phases())
    second.state.restore(checkpoint(first))
    made += [second.make() for _ in range(stop, 3)]
    assert made == records
    want, got = checkpoint(whole).tensors, checkpoint(second).tensors
    assert want.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in want.items())


def test_the_head_phase_saves_no_optimizer_tensors():
    steps = Steps(two_phases())
    files = []
    for _ in range(3):
        files.append({placed.file for placed in steps.state.image().tensors.values()})
        steps.make()
    assert [OPTIMIZER_FILE in names for names in files] == [False, True, False]
