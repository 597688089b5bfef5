"""The gradient of a whole batch from chunks that fit in memory: all of the batch in one loss, or a sum of losses.

Both functions add to the parameters' `.grad` and return the detached loss. Chunk i is encoded, and its gradient
taken, under `scope(i)`, which starts the generators from the same seed each time it is entered: so a second
forward draws what the first drew, and no draw depends on what ran before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import backward

Chunk = TypeVar("Chunk")

Scope = Callable[[int], AbstractContextManager[None]]
"""Opens stretch number i of a step with the generators seeded for it, alike each time it is entered."""


def cached_gradients(
    encode: Callable[[Chunk], Tensor],
    loss: Callable[[Tensor], Tensor],
    chunks: Sequence[Chunk],
    scope: Scope,
) -> Tensor:
    """Add the gradient of `loss(all embeddings)` to every parameter behind it, with one chunk's graph in memory.

    GradCache (Gao et al. 2021, arXiv 2101.06983): encode all chunks without graphs, differentiate the loss with
    respect to the embeddings, then encode each chunk again and send its embeddings' gradient back through it. The
    last chunk keeps its graph from the first pass, which saves a forward; so with one chunk this is, to the bit,
    the plain forward and backward. `encode` gives one row per text; `loss` gets the rows of all chunks in order,
    may own parameters, and runs under `scope(len(chunks))`.

    Sums in `.grad` arise in a fixed order: the loss's own parameters, the last chunk, then chunks 0, 1, 2, ...
    """
    last = len(chunks) - 1

    def encoded(index: int) -> Tensor:
        with scope(index):
            return encode(chunks[index])

    with torch.no_grad():
        rows = [encoded(index) for index in range(last)]
    retained = encoded(last)
    embeddings = torch.cat([*rows, retained.detach()]).requires_grad_()
    with scope(len(chunks)):
        value = loss(embeddings)
        backward(value)
    assert embeddings.grad is not None, "the loss does not depend on the embeddings"
    gradients = torch.split(embeddings.grad, [len(part) for part in (*rows, retained)])

    with scope(last):
        send_back(retained, gradients[last])
    for index in range(last):
        with scope(index):
            send_back(encode(chunks[index]), gradients[index])
    return value.detach()


def send_back(rows: Tensor, gradient: Tensor) -> None:
    """Send `gradient` back through `rows`, to the bit as `backward(rows, gradient)` does.

    The sum's gradient is 1, and 1 x gradient is exact. Given a gradient, torch's `backward` would import sympy first:
    0.3 s of every start.
    """
    backward((rows * gradient).sum())


def accumulated(
    loss: Callable[[Chunk], Tensor],
    chunks: Sequence[Chunk],
    weights: Sequence[float],
    scope: Scope,
) -> Tensor:
    """Add the gradient of `sum_i weights[i] * loss(chunks[i])` to every parameter behind it, chunk by chunk.

    For losses that are means over examples or tokens: a chunk's weight is its share of the batch's examples (or
    target tokens), so that a short last chunk counts for what it holds. Sums arise in the order of the chunks.
    """
    values = []
    for index, (chunk, weight) in enumerate(zip(chunks, weights, strict=True)):
        with scope(index):
            value = loss(chunk) * weight
            backward(value)
        values.append(value.detach())
    return torch.stack(values).sum()
