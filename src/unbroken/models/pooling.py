"""From token vectors to one vector for each text: every pooling of sentence-transformers, on packed rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unbroken.base.errors import ConfigError
from unbroken.models.packing import Pack

# sentence-transformers' order of concatenation; the second name is the older `pooling_mode_*` switch.
MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


class Pooling(nn.Module):
    """Pools token vectors text by text, run by run: no scatter, no atomics, the same bits every time.

    `modes` are concatenated. With `include_prompt` false the tokens of a prompt are left out. A text without a
    single token pools to zeros.
    """

    def __init__(self, modes: tuple[str, ...], include_prompt: bool = True) -> None:
        super().__init__()
        self.modes = modes
        self.include_prompt = include_prompt

    @classmethod
    def from_config(cls, config: Mapping[str, Any], place: str) -> Pooling:
        """Read a pooling configuration of sentence-transformers, old style or new.

        Raises `ConfigError` for a mode it does not have.
        """
        modes = config.get("pooling_mode")
        if modes is None:
            modes = [mode for mode, switch in MODES.items() if config.get(switch)] or ["mean"]
        modes = (modes,) if isinstance(modes, str) else tuple(modes)
        for mode in modes:
            if mode not in MODES:
                raise ConfigError(f"{place}: unknown pooling mode {mode!r}", next_step=f"known: {', '.join(MODES)}")
        return cls(modes, bool(config.get("include_prompt", True)))

    def forward(self, packed: Tensor, pack: Pack, prompt_lengths: NDArray[np.int64]) -> Tensor:
        """Pool `packed` [T, D] to [N, D * modes], rows in input order."""
        skips = np.zeros_like(prompt_lengths) if self.include_prompt else prompt_lengths[pack.order]
        rows, start = [], 0
        for run in pack.split(packed):
            skip = skips[start : start + len(run)]
            start += len(run)
            rows.append(self._pool_run(run, skip))
        return torch.cat(rows)[pack.inverse]

    def _pool_run(self, run: Tensor, skip: NDArray[np.int64]) -> Tensor:
        """Pool texts of equal length, `run` [n, L, D], leaving out the first `skip` [n] tokens of each."""
        if run.shape[1] == 0:
            return run.new_zeros(len(run), run.shape[2] * len(self.modes))
        if (skip != skip[0]).any():
            return torch.cat([self._pool_run(text[None], one) for text, one in zip(run, skip[:, None], strict=True)])
        return torch.cat([pool(run, mode, int(skip[0])) for mode in self.modes], dim=-1)


def pool(run: Tensor, mode: str, skip: int) -> Tensor:
    """Pool texts of equal length, `run` [n, L, D], to [n, D], leaving out the first `skip` tokens of each.

    Half-precision sums are taken in float32. When a text is nothing but its prompt, `cls` takes its first token,
    `lasttoken` its last, and the means are zero, as in sentence-transformers.
    """
    kept = run[:, skip:]
    if mode == "lasttoken":
        return run[:, -1]
    if mode == "cls":
        return kept[:, 0] if kept.shape[1] else run[:, 0]
    if kept.shape[1] == 0:
        return run.new_zeros(len(run), run.shape[2])
    if mode == "max":
        return kept.max(dim=1).values
    exact = torch.float32 if run.dtype in (torch.float16, torch.bfloat16) else run.dtype
    if mode == "mean":
        return kept.mean(dim=1, dtype=exact).to(run.dtype)
    if mode == "mean_sqrt_len_tokens":
        return (kept.sum(dim=1, dtype=exact) / math.sqrt(kept.shape[1])).to(run.dtype)
    weights = torch.arange(skip + 1, run.shape[1] + 1, device=run.device, dtype=exact)
    weighted: Tensor = (kept.to(exact) * weights[:, None]).sum(dim=1) / weights.sum()
    return weighted.to(run.dtype)
