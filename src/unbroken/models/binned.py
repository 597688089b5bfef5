"""Attention over a flat sequence of texts, in a handful of large operations.

One `scaled_dot_product_attention` for each distinct length is some 25 small calls a layer at batch 32, each of a
dozen operations in the slow path that dropout forces on a CPU; and torch's CPU softmax is scalar for rows under 16
(8 wide: 877 ns a matrix, 16 wide: 234). So texts are laid into bins whose width is a multiple of 16, short texts in
the room that longer ones leave, and all bins of one width are one batch of matrices. A token attends within its own
text; padding is a text of its own and reaches nothing, forward or backward. One `index_select` of (token, head) rows
packs, transposes and pads at once, and its inverse is another: nothing is zero-filled, concatenated or scattered.

Shape suffixes: T tokens of all texts, H heads, D head size; in one group, B bins of W places each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from unbroken.models.dropout import noise

STEP = 16  # bin widths are multiples of this


@dataclass(frozen=True, eq=False)
class Group:
    """The bins of one width; `rows` of the binned tensors are (token, head) pairs laid out as [B, H, W].

    `bias` [B, 1, W, W] is 0 within a text and -inf across; None where each bin is exactly one text.
    """

    rows: slice
    num_bins: int
    width: int
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Bins:
    """Where each (token, head) row of a flat [T * H, D] tensor lies in the bins, and back."""

    groups: tuple[Group, ...]
    gather: Tensor  # [rows in bins] -> row of [T * H]
    scatter: Tensor  # [T * H] -> row in bins


def fill_bins(lengths: Sequence[int]) -> dict[int, list[list[int]]]:
    """Return width -> bins -> texts: longest first, each into the tightest room left, or a new bin just wide enough."""
    room: list[list[list[int]]] = [[] for _ in range(STEP)]  # room[r]: bins with r places left
    widths: dict[int, list[list[int]]] = {}
    for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[text]
        if not length:
            break
        left = next((r for r in range(length, STEP) if room[r]), None)
        if left is not None:
            target = room[left].pop()
        else:
            width = -(-length // STEP) * STEP
            target, left = [], width
            widths.setdefault(width, []).append(target)
        target.append(text)
        room[left - length].append(target)
    return widths


def plan_bins(lengths: Sequence[int], num_heads: int) -> Bins:
    """Plan attention for texts of these lengths, in the order in which they lie in the flat sequence."""
    counts = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    heads = np.arange(num_heads)[:, None]
    gather: list[NDArray[np.int64]] = []
    groups: list[Group] = []
    scatter = np.empty((int(counts.sum()), num_heads), dtype=np.int64)
    begin = 0
    for width, bins in sorted(fill_bins(lengths).items()):
        owner, token = place_texts(bins, width, lengths, starts)
        gather.append((token[:, None, :] * num_heads + heads).ravel())
        row = begin + (np.arange(len(bins))[:, None, None] * num_heads + heads) * width + np.arange(width)
        scatter[token[owner >= 0]] = row.transpose(0, 2, 1)[owner >= 0]
        end = begin + len(bins) * num_heads * width
        groups.append(Group(slice(begin, end), len(bins), width, separate(owner)))
        begin = end
    return Bins(tuple(groups), torch.from_numpy(np.concatenate(gather)), torch.from_numpy(scatter.ravel()))


def place_texts(
    bins: Iterable[Sequence[int]], width: int, lengths: Sequence[int], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each place [B, W] which text is there (-1: none) and which token of the flat sequence."""
    filled = [list(texts) for texts in bins]
    owner = np.full((len(filled), width), -1, dtype=np.int64)
    token = np.zeros((len(filled), width), dtype=np.int64)
    for number, texts in enumerate(filled):
        begin = 0
        for text in texts:
            end = begin + lengths[text]
            owner[number, begin:end] = text
            token[number, begin:end] = np.arange(starts[text], starts[text] + lengths[text])
            begin = end
    return owner, token


def separate(owner: NDArray[np.int64]) -> Tensor | None:
    """Return the bias that keeps texts apart, [B, 1, W, W]; None if every bin is one text and no padding."""
    if (owner == owner[:, :1]).all():
        return None
    apart = torch.from_numpy(owner[:, :, None] != owner[:, None, :])
    return torch.zeros(apart.shape).masked_fill_(apart, float("-inf")).unsqueeze(1)


def attend_in_bins(query_THD: Tensor, key_THD: Tensor, value_THD: Tensor, bins: Bins, p: float, scale: float) -> Tensor:
    """Return multi-head self-attention within each text: [T, H, D]. `p` is the dropout on the attention weights."""
    attended: Tensor = _Attention.apply(query_THD, key_THD, value_THD, bins, p, scale)  # type: ignore[no-untyped-call]
    return attended


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bins: Bins, p: float, scale: float) -> Tensor:
        depth = query.shape[-1]
        q, k, v = (each.reshape(-1, depth).index_select(0, bins.gather) for each in (query, key, value))
        out = torch.empty_like(q)
        saved: list[Tensor] = []
        for group in bins.groups:
            qs, ks, vs, outs = (each[group.rows].view(-1, group.width, depth) for each in (q, k, v, out))
            scores = q.new_empty(len(qs), group.width, group.width)
            torch.baddbmm(scores, qs, ks.transpose(1, 2), beta=0, alpha=scale, out=scores)
            if group.bias is not None:
                scores.view(group.num_bins, -1, group.width, group.width).add_(group.bias.to(scores.dtype))
            weights = torch.softmax(scores, -1)
            kept = weights
            if p > 0.0:
                kept = torch.mul(weights, noise(weights.numel(), p).view(weights.shape).to(weights.dtype), out=scores)
            torch.bmm(kept, vs, out=outs)
            saved += [weights, kept]
        ctx.save_for_backward(q, k, v, *saved)
        ctx.bins, ctx.scale = bins, scale
        return out.index_select(0, bins.scatter).view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        bins: Bins = ctx.bins
        depth = gradient.shape[-1]
        into_out = gradient.reshape(-1, depth).index_select(0, bins.gather)
        into_q, into_k, into_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for index, group in enumerate(bins.groups):
            weights, kept = saved[2 * index], saved[2 * index + 1]
            qs, ks, vs, outs, gq, gk, gv = (
                each[group.rows].view(-1, group.width, depth) for each in (q, k, v, into_out, into_q, into_k, into_v)
            )
            torch.bmm(kept.transpose(1, 2), outs, out=gv)
            slope = torch.bmm(outs, vs.transpose(1, 2)).mul_(kept)
            slope.addcmul_(weights, slope.sum(-1, keepdim=True), value=-1)  # through the softmax
            torch.baddbmm(gq, slope, ks, beta=0, alpha=ctx.scale, out=gq)
            torch.baddbmm(gk, slope.transpose(1, 2), qs, beta=0, alpha=ctx.scale, out=gk)
        back = (each.index_select(0, bins.scatter).view(gradient.shape) for each in (into_q, into_k, into_v))
        return *back, None, None, None
