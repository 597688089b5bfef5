"""The learning rate as a function of the step, so that there is no scheduler whose state could be lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

Kind = Literal["linear", "cosine", "constant", "constant_with_warmup"]


def learning_rate(kind: Kind, peak: float, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """Return the function that gives the rate of step n, counted from 0: the bits of transformers' scheduler.

    The rate rises from 0 as n / warmup_steps. Then `linear` falls in a straight line, and `cosine` in half a wave
    (Loshchilov and Hutter 2017, arXiv 1608.03983), to 0 at n = total_steps, so that the last step still moves.
    `constant` is the peak from the first step and ignores `warmup_steps`, as its namesake does.
    """
    if kind == "constant":
        return lambda step: peak
    descent = DESCENTS[kind]
    falling = total_steps - warmup_steps

    def rate(step: int) -> float:
        share = step / warmup_steps if step < warmup_steps else descent(step - warmup_steps, falling)
        return peak * share

    return rate


# From steps since the peak, and steps from the peak to the end, to the share of the peak. The order of operations
# is that of transformers' optimization.py up to powers of two, because the last bit depends on it.
DESCENTS: Mapping[Kind, Callable[[int, int], float]] = {
    "linear": lambda fallen, falling: max(0.0, (falling - fallen) / max(1, falling)),
    "cosine": lambda fallen, falling: max(0.0, 0.5 * (1.0 + math.cos(math.pi * (fallen / max(1, falling))))),
    "constant_with_warmup": lambda fallen, falling: 1.0,
}


def warmup(total_steps: int, warmup_steps: float | None, warmup_ratio: float | None) -> int:
    """Return the number of warmup steps, counted as Hugging Face does.

    `warmup_steps` wins over `warmup_ratio` unless it is 0, and below 1 is a share of the whole like it. Shares are
    rounded up.
    """
    if warmup_steps and warmup_steps >= 1:
        return int(warmup_steps)
    return math.ceil(total_steps * (warmup_steps or warmup_ratio or 0))
