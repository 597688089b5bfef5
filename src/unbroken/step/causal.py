"""Cross-entropy of a language model's head, a few rows at a time: the logits of a batch are never all in memory.

Logits of 4,000 tokens over a vocabulary of 150,000 are 2.4 GB, and their gradient as much again. Here the gradient
with respect to the head's input is taken in the forward pass, while a chunk's logits are there; backward only scales
it. How rows fall into chunks depends on nothing but the size of the vocabulary and the kind of device.

Shape suffixes: R rows whose next token is predicted, D their width, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits of one chunk: 16 MB as float32. Larger ones leave the processor's cache between one pass and the next; a GPU
# needs more to be busy.
CHUNK_LOGITS = {"cpu": 1 << 22}
ELSEWHERE = 1 << 26

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Maps rows [m, k], a weight [n, k] and perhaps a bias [n] to rows @ weight.T + bias; not differentiated through."""


def rows_per_chunk(vocabulary: int, device: str = "cpu") -> int:
    """Return how many rows have their logits in memory at once."""
    return max(1, CHUNK_LOGITS.get(device, ELSEWHERE) // vocabulary)


def head_cross_entropy(
    rows_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_R: Tensor,
    product: Product = F.linear,
    chunk: int | None = None,
) -> Tensor:
    """Return the mean of `F.cross_entropy(rows @ weight.T + bias, targets)`, differentiable once.

    There must be at least one row. Logits and sums are float32 (float64 for float64 rows); gradients have their
    operands' types. Memory: two chunks of logits, and the gradients.
    """
    differentiable = torch.is_grad_enabled()
    chunk = chunk or rows_per_chunk(len(weight_VD), weight_VD.device.type)
    operands = (rows_RD, weight_VD, bias_V, targets_R, product, chunk, differentiable)
    loss: Tensor = _HeadCrossEntropy.apply(*operands)  # type: ignore[no-untyped-call]
    return loss


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_R: Tensor,
        product: Product,
        chunk: int,
        differentiable: bool,
    ) -> Tensor:
        wants = [differentiable and wanted for wanted in ctx.needs_input_grad[:3]]
        exact = torch.promote_types(rows_RD.dtype, torch.float32)
        losses_R = rows_RD.new_empty(len(rows_RD), dtype=exact)
        by_rows = torch.empty_like(rows_RD) if wants[0] else None
        by_weight = torch.zeros_like(weight_VD, dtype=exact) if wants[1] else None
        by_bias = torch.zeros_like(bias_V, dtype=exact) if bias_V is not None and wants[2] else None
        for start in range(0, len(rows_RD), chunk):
            part = slice(start, start + chunk)
            rows, targets = rows_RD[part], targets_R[part, None]
            slopes = F.log_softmax(product(rows, weight_VD, bias_V).to(exact), dim=1)
            losses_R[part] = slopes.gather(1, targets).squeeze(1).neg_()
            if not any(wants):
                continue
            slopes.exp_()  # softmax - one-hot, over R: the gradient of the mean by the logits
            slopes.scatter_add_(1, targets, slopes.new_full((1, 1), -1.0).expand_as(targets))
            slopes.div_(len(rows_RD))
            narrow = slopes.to(rows.dtype)
            if by_rows is not None:
                by_rows[part] = product(narrow, weight_VD.t(), None)
            if by_weight is not None:
                by_weight += product(narrow.t(), rows.t(), None)
            if by_bias is not None:
                by_bias += slopes.sum(0)
        ctx.save_for_backward(
            by_rows,
            None if by_weight is None else by_weight.to(weight_VD.dtype),
            None if by_bias is None or bias_V is None else by_bias.to(bias_V.dtype),
        )
        return losses_R.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if saved is None else saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors]
        return (*scaled, None, None, None, None)
