"""Packed encoding: all texts of a batch as one sequence without padding; attention stays within each text.

Texts are sorted by length, so texts of one length lie side by side and attention over them runs on plain views,
without padding and without a mask. The results are those of the padded computation (a masked key adds exactly
nothing); only the order of floating-point sums differs.

Shape suffixes: N texts, T tokens of all texts, H heads, K key/value heads, D head size; in one run, n texts of L
tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unbroken.models.binned import Bins, attend_in_bins, plan_bins
from unbroken.models.ragged import gather_places

ATTENTION_NAME = "unbroken_packed"

# Without dropout torch has a kernel that never holds the scores: for longer texts that is better than bins.
LONGEST_IN_BINS = 128


@dataclass(frozen=True)
class Pack:
    """How the texts of a batch lie in one sequence: a pure function of their lengths.

    `runs` holds (n, L) for each distinct length, `sizes` the tokens n * L of each. `places` [T] says where in the
    input each packed token comes from, `positions` [T] its position within its text. `order` [N] lists the texts
    as packed, `inverse` [N] where each text of the input lies.
    """

    runs: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    places: Tensor
    positions: Tensor
    order: NDArray[np.int64]
    inverse: Tensor
    _bins: dict[int, Bins] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: NDArray[np.int64], device: torch.device | str = "cpu") -> Pack:
        """Return the pack of texts with these lengths; texts of equal length keep their order."""
        order = np.argsort(lengths, kind="stable")
        ordered = lengths[order]
        starts = (np.cumsum(lengths) - lengths)[order]
        distinct, counts = np.unique(ordered, return_counts=True)
        runs = tuple(zip(counts.tolist(), distinct.tolist(), strict=True))
        return cls(
            runs=runs,
            sizes=tuple(n * length for n, length in runs),
            places=torch.from_numpy(gather_places(starts, ordered)).to(device),
            positions=torch.from_numpy(gather_places(np.zeros_like(ordered), ordered)).to(device),
            order=order,
            inverse=torch.from_numpy(np.argsort(order, kind="stable")).to(device),
        )

    def bins(self, num_heads: int) -> Bins:
        """Return how attention with `num_heads` heads lays the texts into bins; planned once, for all layers."""
        if num_heads not in self._bins:
            lengths = [length for n, length in self.runs for _ in range(n)]
            self._bins[num_heads] = plan_bins(lengths, num_heads)
        return self._bins[num_heads]

    def split(self, packed: Tensor) -> list[Tensor]:
        """Return views [n, L, ...] of `packed` [T, ...], one for each run.

        One `split`, not a slice for each run: the backward of a split is a single concatenation, that of a slice
        fills a zero tensor of the full size.
        """
        parts = torch.split(packed, list(self.sizes))
        return [part.view(n, length, *packed.shape[1:]) for part, (n, length) in zip(parts, self.runs, strict=True)]


def attend(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    pack: Pack,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    causal: bool = False,
    window: int | None = None,
    biases: Sequence[Tensor] | None = None,
) -> Tensor:
    """Attend within each text of a pack: [T, H, D]. `biases` gives each run a [H, L, L] to add to its scores."""
    num_heads, size = query_THD.shape[1:]
    if suits_bins(pack, causal, window, biases, num_heads == key_TKD.shape[1], dropout, query_THD.device):
        scale = size**-0.5 if scaling is None else scaling
        return attend_in_bins(query_THD, key_TKD, value_TKD, pack.bins(num_heads), dropout, scale)
    per_run: Sequence[Tensor | None] = biases or [None] * len(pack.runs)
    queries, keys, values = pack.split(query_THD), pack.split(key_TKD), pack.split(value_TKD)
    attended = [
        attend_run(query, key, value, bias, dropout, scaling, causal, window).flatten(0, 1)
        for query, key, value, bias in zip(queries, keys, values, per_run, strict=True)
    ]
    return torch.cat(attended)


def suits_bins(
    pack: Pack,
    causal: bool,
    window: int | None,
    biases: Sequence[Tensor] | None,
    same_heads: bool,
    dropout: float,
    device: torch.device,
) -> bool:
    """Return whether attention in bins can compute this, and is the fastest that can."""
    longest = pack.runs[-1][1] if pack.runs else 0
    plain = not causal and biases is None and same_heads and (window is None or longest <= window)
    return plain and device.type == "cpu" and longest > 0 and (dropout > 0.0 or longest <= LONGEST_IN_BINS)


def attend_run(
    query_nLHD: Tensor,
    key_nLKD: Tensor,
    value_nLKD: Tensor,
    bias_HLL: Tensor | None,
    dropout: float,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    """Attend within texts of equal length: [n, L, H, D]."""
    length = query_nLHD.shape[1]
    mask = bias_HLL
    if window is not None and length > window:
        mask = window_mask(length, window, causal, query_nLHD.device)
    attended_nHLD = F.scaled_dot_product_attention(
        query_nLHD.transpose(1, 2),
        key_nLKD.transpose(1, 2),
        value_nLKD.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=causal and mask is None,
        enable_gqa=key_nLKD.shape[2] != query_nLHD.shape[2],
    )
    return attended_nHLD.transpose(1, 2)


def window_mask(length: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """Return which keys each position sees through a sliding window: bool [L, L].

    As transformers' attention functions are told it: `window` counts the position itself, to the left in causal
    models and to either side in others.
    """
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    pack: Pack | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each text of a pack: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    An attention function for `transformers.AttentionInterface`. No mask function is registered under its name, so
    transformers builds none; a padded call would silently attend to padding, hence the refusal without a pack.
    """
    if pack is None or query.shape[0] != 1:
        raise RuntimeError("packed attention called without a pack")
    attended_THD = attend(
        query.squeeze(0).transpose(0, 1),
        key.squeeze(0).transpose(0, 1),
        value.squeeze(0).transpose(0, 1),
        pack,
        dropout=dropout,
        scaling=scaling,
        causal=bool(module.is_causal) if is_causal is None else is_causal,
        window=sliding_window,
    )
    return attended_THD.unsqueeze(0), None
