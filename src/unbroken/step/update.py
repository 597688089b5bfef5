"""One optimizer update: measure the gradient, refuse what is not finite, clip, set the rate, step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from unbroken.base.errors import TrainingError
from unbroken.step.adamw import Optimizer

NORM_EPSILON = 1e-6
"""What torch.nn.utils.clip_grad_norm_ adds to the norm before it divides."""


def update(
    optimizer: Optimizer,
    parameters: Mapping[str, Parameter],
    learning_rate: float | None,
    max_grad_norm: float | None,
) -> float:
    """Take one step along the gradients, release them, and return their global L2 norm from before clipping.

    The norm is in float32 over all `parameters` in their order. When it exceeds `max_grad_norm` (None or 0: no
    limit), all gradients are scaled by the coefficient of `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013,
    arXiv 1211.5063), bit for bit. Each parameter group gets `learning_rate` times its own "lr_scale", 1 where it
    has none; without a `learning_rate` the groups keep the rate they have.

    Raises `TrainingError` if the norm is not finite, before anything has been changed.
    """
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    assert gradients, "no trained parameter has a gradient"
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32)))
    norm = float(total)
    if not math.isfinite(norm):
        raise _not_finite(norm, parameters)
    if max_grad_norm:
        # A coefficient of 1 or more is left out: torch multiplies by 1.0 then, which changes no bit of a finite
        # number but rewrites every gradient.
        coefficient = float(max_grad_norm / (total + NORM_EPSILON))
        if coefficient < 1:
            torch._foreach_mul_(gradients, coefficient)
    if learning_rate is not None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """Return the global L2 norm of `gradients` in float32: a scalar tensor."""
    assert gradients, "no trained parameter has a gradient"
    norms: tuple[Tensor, ...] = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _not_finite(norm: float, parameters: Mapping[str, Parameter]) -> TrainingError:
    broken = [
        name
        for name, parameter in parameters.items()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    where = f", first in the gradient of {broken[0]} ({len(broken)} of {len(parameters)} parameters)" if broken else ""
    return TrainingError(
        f"the gradient norm is {norm}{where}",
        why="this step was not taken; the parameters are those of the step before",
        next_step="lower learning_rate or lengthen the warmup; if it happens in the first steps, look for empty or"
        " extreme examples in the batch, or train in float32 instead of float16",
    )
