"""The gradient of a large embedding table at the cost of the rows a batch touches.

PyTorch writes a new dense gradient in every backward (30,522 x 384: 9.5 ms of page faults and zeros; 250,002 x 384:
80 ms), once for each chunk of a step. Here one zeroed buffer lives as long as the table, a backward adds the touched
rows to it, and those rows are zeroed again before the next step's. What the optimizer sees is bit for bit the dense
gradient it saw before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Lookup(nn.Embedding):
    """`nn.Embedding` whose `weight.grad`, where `reuses_gradient` is set, is one buffer used again and again.

    Only for a training step that is known from end to end: whoever keeps `weight.grad` beyond the step, adds to its
    untouched rows, or lets a gradient reach the table by another way (a tied output head) would find the rest of it
    in a later step. So it is off unless a task that does none of this switches it on.
    """

    reuses_gradient = False

    def __init__(self, rows: int, width: int, padding_idx: int | None, weight: Tensor) -> None:
        super().__init__(rows, width, padding_idx=padding_idx, _weight=weight)
        self._gradient: Tensor | None = None
        self._touched: list[Tensor] = []

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the given ids: [...] -> [..., width]."""
        suits = self.reuses_gradient and self.weight.requires_grad and self.weight.device.type == "cpu"
        if not (suits and torch.is_grad_enabled()):
            return F.embedding(input, self.weight, self.padding_idx)
        found: Tensor = _Lookup.apply(self.weight, input, self)  # type: ignore[no-untyped-call]
        return found

    def add(self, ids: Tensor, gradient: Tensor) -> None:
        """Add the gradient [..., width] of looked-up rows, in the order of `ids`: serially, so deterministically."""
        if self.weight.grad is None or self.weight.grad is not self._gradient:
            self._begin()
        assert self._gradient is not None
        ids = ids.reshape(-1)
        gradient = gradient.reshape(ids.numel(), -1)
        if self.padding_idx is not None:
            gradient = gradient.masked_fill((ids == self.padding_idx).unsqueeze(1), 0.0)
        self._gradient.index_add_(0, ids, gradient)
        self._touched.append(ids)

    def _begin(self) -> None:
        """Make the buffer, zero again, the table's gradient."""
        if self.weight.grad is not None:
            raise RuntimeError("the embedding table has a gradient of another origin; it may not reuse its own")
        if self._gradient is None or self._gradient.shape != self.weight.shape:
            self._gradient = torch.zeros_like(self.weight)
        elif self._touched:
            self._gradient.index_fill_(0, torch.cat(self._touched), 0.0)
        self._touched = []
        self.weight.grad = self._gradient


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, table: Lookup) -> Tensor:
        ctx.table = table
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ctx.table.add(ids, gradient)
        return None, None, None
