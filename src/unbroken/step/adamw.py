"""AdamW on torch's fused kernel, without torch's optimizer classes.

Making any `torch.optim.Optimizer` imports torch's compiler, which takes 0.7 s: more than all other preparations of a
short run, or of every restart, together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter


class Optimizer(Protocol):
    """What a step needs of an optimizer, and what `torch.optim.Optimizer` has."""

    param_groups: list[dict[str, Any]]
    state: Any

    def step(self) -> Any:
        """Update every parameter that has a gradient."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Release the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return `{"state": {index: slots}, "param_groups": [options]}`, as torch does."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), bit for bit `torch.optim.AdamW(..., fused=True)`.

    `groups` are mappings with "params" and perhaps "weight_decay". The state of a parameter is made in its first step
    with a gradient: `step`, `exp_avg` and `exp_avg_sq`, named and formatted as torch's.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [
            {**defaults, **group, "params": list(group["params"])} for group in groups
        ]
        self.state: dict[Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, all of one group in one call of the kernel."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            slots = [self._slots(parameter) for parameter in moved]
            steps = [slot["step"] for slot in slots]
            if not moved:
                continue
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                moved,
                [parameter.grad for parameter in moved],
                [slot["exp_avg"] for slot in slots],
                [slot["exp_avg_sq"] for slot in slots],
                [],
                steps,
                amsgrad=False,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Release the gradients of all parameters."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the state by the parameters' positions, and the groups' options."""
        ordered = self._ordered()
        groups, first = [], 0
        for group in self.param_groups:
            places = list(range(first, first + len(group["params"])))
            first += len(places)
            groups.append({**group, "params": places})
        state = {index: self.state[parameter] for index, parameter in enumerate(ordered) if parameter in self.state}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over state and options; tensors are taken as they are, moved to their parameter's device."""
        ordered = self._ordered()
        self.state = {
            ordered[index]: {name: slot.to(ordered[index].device) for name, slot in slots.items()}
            for index, slots in state_dict["state"].items()
        }
        for group, options in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in options.items() if name != "params"})

    def _ordered(self) -> list[Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _slots(self, parameter: Parameter) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        return self.state[parameter]
