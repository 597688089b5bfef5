"""PEFT's LoRA layer with a forward pass of its own: fewer kernels, oneDNN's products, less memory.

Of PEFT's layer autograd keeps the input, the noise and the dropped input, each T x D in float32. Here it keeps the
input, and the noise as one byte an element; what was dropped is computed again.

Shape suffixes: T tokens, D width of the input, O of the output, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unbroken.models.dropout import kept
from unbroken.models.linear import product, suits


class LoraLinear(PeftLinear):  # type: ignore[misc]
    """PEFT's layer; the numbers are PEFT's to the rounding, the noise has the same law and other bits."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return base(x) + scaling * B(A(dropout(x))): [..., D] -> [..., O]."""
        name = self._plain_adapter() if not (args or kwargs) else None
        base = self.base_layer
        if name is None or not suits(x, base.weight) or torch.is_autocast_enabled("cpu"):
            forwarded: Tensor = super().forward(x, *args, **kwargs)
            return forwarded
        dropout = self.lora_dropout[name]
        probability = dropout.p if isinstance(dropout, nn.Dropout) and self.training else 0.0
        first, second = self.lora_A[name].weight, self.lora_B[name].weight
        operands = (x, base.weight, base.bias, first, second, float(self.scaling[name]), probability)
        mapped: Tensor = _LoraLinear.apply(*operands)  # type: ignore[no-untyped-call]
        return mapped

    def _plain_adapter(self) -> str | None:
        """Return the name of the one active adapter of the usual kind, None if there is anything else."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or self.lora_variant:
            return None
        name: str = self.active_adapters[0]
        base = self.base_layer
        if name not in self.lora_A or self.lora_bias[name] or self.fan_in_fan_out or not isinstance(base, nn.Linear):
            return None
        frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
        return name if frozen and self.lora_A[name].weight.dtype == torch.float32 else None


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        first_rD: Tensor,
        second_Or: Tensor,
        scaling: float,
        probability: float,
    ) -> Tensor:
        rows_TD = rows.reshape(-1, rows.shape[-1])
        mask = kept(rows_TD.numel(), probability).view(rows_TD.shape) if 0.0 < probability < 1.0 else None
        ctx.scale = scaling / (1.0 - probability) if probability < 1.0 else 0.0
        low_Tr = product(rows_TD if mask is None else rows_TD * mask, first_rD).mul_(ctx.scale)
        ctx.save_for_backward(rows, mask, low_Tr, weight, first_rD, second_Or)
        out = product(rows_TD, weight, bias).add_(product(low_Tr, second_Or))
        return out.view(*rows.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, mask, low_Tr, weight, first_rD, second_Or = ctx.saved_tensors
        slopes_TO = gradient.reshape(-1, gradient.shape[-1])
        rows_TD = rows.reshape(-1, rows.shape[-1])
        wants_rows, wants_first, wants_second = (ctx.needs_input_grad[i] for i in (0, 3, 4))
        by_low_Tr = product(slopes_TO, second_Or.t()).mul_(ctx.scale)
        by_rows = by_first = by_second = None
        if wants_second:
            by_second = product(slopes_TO.t(), low_Tr.t())
        if wants_first:
            by_first = product(by_low_Tr.t(), (rows_TD if mask is None else rows_TD * mask).t())
        if wants_rows:
            through = product(by_low_Tr, first_rD.t())
            by_rows = product(slopes_TO, weight.t()).add_(through if mask is None else through.mul_(mask))
            by_rows = by_rows.view(rows.shape)
        return by_rows, None, None, by_first, by_second, None, None


def quicken(model: nn.Module) -> None:
    """Give PEFT's plain LoRA layers our forward; they hold nothing more and nothing else."""
    for module in model.modules():
        if type(module) is PeftLinear:
            module.__class__ = LoraLinear
