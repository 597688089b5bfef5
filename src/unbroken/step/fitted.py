"""The optimizer of a step whose result is computed whole, not approached: a head fitted in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter


class Assign:
    """Makes each gradient the new value of its parameter, and keeps nothing.

    What fits the parameters leaves their new values as their gradients. The phase must not clip
    (`max_grad_norm=None`): a clipped gradient is another value. The rate is 1 and takes part in nothing.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": 1.0}]
        self.state: dict[Parameter, dict[str, Any]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Give every parameter that has a gradient that gradient's value, in the storage it has."""
        for parameter in self._parameters():
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Release the gradients of all parameters."""
        for parameter in self._parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the groups by the parameters' positions; there is no state."""
        return {"state": {}, "param_groups": [{"params": list(range(len(self._parameters()))), "lr": 1.0}]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned: nothing."""
        assert not state_dict["state"], "there is no state to take over"

    def _parameters(self) -> list[Parameter]:
        parameters: list[Parameter] = self.param_groups[0]["params"]
        return parameters
