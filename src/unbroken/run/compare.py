"""Tensors, compared bit for bit: NaN equals the same NaN, 0.0 is not -0.0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# A whole number for each size of an element: comparing those compares bits.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs; `largest` is the largest difference of two elements, None if shape or type differ."""

    name: str
    elements: int
    total: int
    largest: float | None
    text: str


@dataclass
class Compared:
    """The tensors of two states by name: how many there are, how many are equal, and the others in file order."""

    total: int = 0
    identical: int = 0
    elements: int = 0
    different: list[TensorDifference] = field(default_factory=list)


def compare_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Compared:
    """Compare every tensor, in the order of `one` and then of `other`; one that only one side has differs."""
    found = Compared()
    for name in [*one, *(name for name in other if name not in one)]:
        found.total += 1
        if name not in one or name not in other:
            lone = one[name] if name in one else other[name]
            side = "first" if name in one else "second"
            text = f"tensor {name!r} is only in the {side}"
            found.different.append(TensorDifference(name, lone.numel(), lone.numel(), None, text))
            continue
        found.elements += one[name].numel()
        difference = compare(name, one[name], other[name])
        if difference is None:
            found.identical += 1
        else:
            found.different.append(difference)
    return found


def compare(name: str, one: Tensor, other: Tensor) -> TensorDifference | None:
    """Return how two tensors differ, None if they have the same shape, type and bits."""
    total = one.numel()
    if one.shape != other.shape or one.dtype != other.dtype:
        kinds = [f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in (one, other)]
        return TensorDifference(name, total, total, None, f"tensor {name!r} is {kinds[0]} and {kinds[1]}")
    mine, theirs = (tensor.detach().cpu().contiguous().reshape(-1) for tensor in (one, other))
    bits = BITS[mine.element_size()]
    unequal = mine.view(bits) != theirs.view(bits)
    count = int(unequal.sum())
    if not count:
        return None
    largest = float((mine[unequal].double() - theirs[unequal].double()).abs().max())
    text = f"tensor {name!r}: {count:,} of {total:,} elements differ, by up to {largest:.3g}"
    return TensorDifference(name, count, total, largest, text)
