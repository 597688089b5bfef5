"""One update against torch's own clipping and AdamW, bit for bit; and gradients that are not finite."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from unbroken.base.errors import TrainingError
from unbroken.step.generators import seeded
from unbroken.step.update import update

torch.set_num_threads(1)


def network():
    with seeded(1):
        return nn.Sequential(nn.Embedding(50, 7), nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3))


def backward(model, step, size=1.0):
    with seeded(100 + step):
        ids = torch.randint(0, 50, (16,))
        (size * model(ids).square().sum()).backward()


def parameters_of(model):
    return dict(model.named_parameters())


def assert_same_bits(first, second):
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("max_grad_norm", [1e-3, 0.1, 1.0, 7.0, 1e9])
@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_equal_to_torchs_clipping_and_adamw_to_the_bit(max_grad_norm, size):
    mine, theirs = network(), network()
    my_optimizer = torch.optim.AdamW(mine.parameters(), lr=0.0, weight_decay=0.01)
    their_optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.0, weight_decay=0.01)
    for step in range(5):
        backward(mine, step, size), backward(theirs, step, size)
        norm = update(my_optimizer, parameters_of(mine), 1e-2 / (step + 1), max_grad_norm)
        their_norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm)
        their_optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        their_optimizer.step()
        their_optimizer.zero_grad()
        assert norm == their_norm.item()
        assert_same_bits(mine, theirs)


def test_equal_to_torch_where_the_norm_is_all_but_the_limit():
    """Around a coefficient of one, where leaving the multiplication out could differ by a rounding."""
    parameter = nn.Parameter(torch.zeros(1))
    for ulps in range(-40, 40):
        for limit in (0.1, 0.7, 1.0, 3.0, 49.0):
            gradient = torch.tensor([limit]) + ulps * 2e-8 * limit
            theirs = nn.Parameter(torch.zeros(1))
            parameter.grad, theirs.grad = gradient.clone(), gradient.clone()
            with torch.no_grad():
                parameter.zero_()
            update(torch.optim.SGD([parameter]), {"p": parameter}, 1.0, limit)
            nn.utils.clip_grad_norm_([theirs], limit)
            assert torch.equal(-parameter, theirs.grad)


@pytest.mark.parametrize("limit", [None, 0, 0.0])
def test_no_limit_no_clipping(limit):
    mine, theirs = network(), network()
    backward(mine, 0, 1000.0), backward(theirs, 0, 1000.0)
    norm = update(torch.optim.SGD(mine.parameters()), parameters_of(mine), 0.1, limit)
    torch.optim.SGD(theirs.parameters(), lr=0.1).step()
    assert norm > 1.0
    assert_same_bits(mine, theirs)


def test_gradients_are_released_and_parameters_without_one_left_alone():
    model = network()
    unused = nn.Parameter(torch.ones(2))
    backward(model, 0)
    parameters = {**parameters_of(model), "unused": unused}
    update(torch.optim.AdamW(parameters.values()), parameters, 0.1, 1.0)
    assert all(parameter.grad is None for parameter in parameters.values())
    assert torch.equal(unused, torch.ones(2))


def test_groups_keep_their_ratio_to_the_rate():
    head, body = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [head], "lr_scale": 10.0}, {"params": [body]}], lr=123.0)
    head.grad, body.grad = torch.ones(1), torch.ones(1)
    update(optimizer, {"head": head, "body": body}, 0.5, None)
    assert (head.item(), body.item()) == (-5.0, -0.5)


def test_without_a_rate_the_optimizers_own_stands():
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    update(torch.optim.SGD([parameter], lr=0.25), {"p": parameter}, None, None)
    assert parameter.item() == -0.25


def test_half_precision_gradients_are_measured_in_float32():
    parameter = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    parameter.grad = torch.ones(1000, dtype=torch.bfloat16)
    assert update(torch.optim.SGD([parameter]), {"p": parameter}, 0.1, None) == pytest.approx(math.sqrt(1000))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused_before_anything_is_touched(value):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    backward(model, 0)
    update(optimizer, parameters_of(model), 0.1, 1.0)
    backward(model, 1)
    model[1].bias.grad[2] = value
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    held = [parameter.grad.clone() for parameter in model.parameters()]

    with pytest.raises(TrainingError, match=r"gradient norm is .*1\.bias \(1 of 5 parameters\).*learning_rate"):
        update(optimizer, parameters_of(model), 0.2, 1.0)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    for parameter, gradient in zip(model.parameters(), held, strict=True):
        assert torch.equal(parameter.grad.nan_to_num(), gradient.nan_to_num())


def test_a_norm_that_overflows_is_refused_too():
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3e38)
    with pytest.raises(TrainingError, match="gradient norm is inf; this step was not taken"):
        update(torch.optim.SGD([parameter]), {"p": parameter}, 0.1, 1.0)
    assert torch.equal(parameter, torch.zeros(4))
