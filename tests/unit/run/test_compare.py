"""Tensors compared by their bits."""

from __future__ import annotations

import math

import pytest
import torch

from unbroken.run.compare import compare, compare_tensors
from unbroken.store.tensors import DTYPES


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_is_compared_by_its_bits(dtype: torch.dtype) -> None:
    one = torch.zeros(6, dtype=torch.uint8).repeat(dtype.itemsize).view(dtype)
    assert compare("a", one, one.clone()) is None
    other = one.clone()
    other.view(torch.uint8)[4 * dtype.itemsize] ^= 1
    found = compare("a", one, other)
    assert found is not None
    assert (found.elements, found.total) == (1, 6)
    assert found.largest is not None
    assert found.largest > 0


def test_zeros_of_two_signs_differ_and_one_nan_is_itself() -> None:
    one = torch.tensor([0.0, math.nan, 1.0])
    assert compare("a", one, one.clone()) is None
    found = compare("a", one, torch.tensor([-0.0, math.nan, 1.0]))
    assert found is not None
    assert (found.elements, found.largest) == (1, 0.0)


def test_scalars_empty_tensors_and_strides() -> None:
    assert compare("a", torch.tensor(2.0), torch.tensor(2.0)) is None
    assert compare("a", torch.empty(0, 3), torch.empty(0, 3)) is None
    square = torch.arange(6.0).reshape(2, 3)
    assert compare("a", square.T, square.T.contiguous()) is None
    found = compare("a", square.T, square.reshape(3, 2))
    assert found is not None
    assert (found.elements, found.largest) == (4, 2.0)


def test_other_shapes_types_and_names() -> None:
    one = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2), "d": torch.zeros(2)}
    other = {"e": torch.zeros(2), "a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(2).double()}
    found = compare_tensors(one, other)
    assert (found.total, found.identical) == (5, 1)
    assert [difference.name for difference in found.different] == ["b", "c", "d", "e"]
    assert [difference.text for difference in found.different] == [
        "tensor 'b' is (2,) float32 and (3,) float32",
        "tensor 'c' is (2,) float32 and (2,) float64",
        "tensor 'd' is only in the first",
        "tensor 'e' is only in the second",
    ]
