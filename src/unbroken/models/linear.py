"""Affine maps through oneDNN, which is faster than MKL on processors MKL's maker did not make.

The PyTorch wheel sends float32 matrix products to MKL, which on AMD processors never uses AVX-512; oneDNN, in the
same wheel, does. Measured at MiniLM's shapes on a Zen 5 core: MKL 114 GFLOP/s, oneDNN 250 (with AVX2 only: 107 and
122). Results repeat to the bit, and do not depend on the operands' address modulo 64, as MKL's do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """`nn.Linear` with the fastest product there is for float32 on a CPU; everywhere else it is `nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input @ weight.T + bias`: [..., in] -> [..., out]."""
        return linear(input, self.weight, self.bias)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear(rows, weight, bias)`, differentiable once where oneDNN computes it."""
    if not suits(rows, weight) or torch.is_autocast_enabled("cpu"):
        return F.linear(rows, weight, bias)
    mapped: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return mapped


def suits(rows: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN's product is to be used for these operands."""
    plain = rows.dtype == weight.dtype == torch.float32 and rows.device.type == "cpu"
    return AVAILABLE and plain and rows.numel() > 0


def product_for(rows: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the fastest product there is for operands like these, for code that differentiates by itself."""
    return product if suits(rows, weight) else F.linear


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `rows @ weight.T + bias` from oneDNN: [m, k], [n, k], [n] -> [m, n]; transposed views are free."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(flat, weight.t()).view(rows.shape) if wants_rows else None,
            product(flat.t(), rows.reshape(-1, rows.shape[-1]).t()) if wants_weight else None,
            flat.sum(0) if wants_bias else None,
        )
