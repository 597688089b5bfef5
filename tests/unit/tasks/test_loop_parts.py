"""What `Loop` tells apart in rows, and keeps of schedulers and generators."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import canonical
from unbroken.tasks.loop_extras import decode, encode, extra
from unbroken.tasks.loop_rows import row_bytes, row_digests, take


def test_a_generator_of_ones_own_is_kept() -> None:
    generators: list[Any] = [torch.Generator(), random.Random(1), np.random.default_rng(2), np.random.RandomState(3)]
    draws: list[Callable[[Any], Any]] = [
        lambda g: torch.rand(5, generator=g).tolist(),
        lambda g: g.random(),
        lambda g: g.normal(size=3).tolist(),
        lambda g: g.normal(size=3).tolist(),
    ]
    for generator, draw in zip(generators, draws, strict=True):
        draw(generator)
        kept = extra("mine", generator)
        state = json.loads(canonical(kept.state_dict()))
        expected = draw(generator)
        kept.load_state_dict(state)
        assert draw(generator) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "x"], "b": {"c": float("inf"), "d": -float("inf")}},
        collections.Counter({5: 1, 12: 2}),
        collections.OrderedDict([("z", 1), ("a", (1, 2))]),
        {1: "a", 2.5: "b", None: "c", "!": "d"},
        {"s": {3, 1, 2}, "q": collections.deque([1, 2])},
        2**200,
    ],
)
def test_values_come_back_with_their_types(value: Any) -> None:
    back = decode(json.loads(canonical(encode(value, "x"))))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_and_arrays_come_back(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1, 0], [3, 4]]).to(dtype)
    back = decode(json.loads(canonical(encode(tensor, "x"))))
    assert back.dtype == dtype
    assert torch.equal(back, tensor)
    number = decode(encode(np.float32(1.1), "x"))
    assert type(number) is np.float32
    assert number == np.float32(1.1)


def test_what_could_not_come_back_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"extras: mine\.f is a function"):
        encode({"f": lambda: None}, "extras: mine")


# Rows.


@dataclasses.dataclass
class Point:
    x: int
    y: str


VALUES = [
    None,
    0,
    False,
    0.0,
    -0.0,
    float("nan"),
    "",
    "0",
    b"0",
    [],
    {},
    ["a", "b"],
    ["ab"],
    [["a"], "b"],
    {"a": 1},
    {"a": 2},
    {1: "a"},
    torch.zeros(2),
    torch.zeros(2, 1),
    torch.zeros(2, dtype=torch.float64),
    torch.zeros((), dtype=torch.bfloat16),
    np.zeros(2, dtype=np.float32),
    np.float32(0),
    np.array(["a", None], dtype=object),
    np.array(["b", None], dtype=object),
    Point(1, "a"),
    Point(2, "a"),
    datetime.date(2026, 1, 1),
]


def test_different_rows_have_different_bytes() -> None:
    assert len({row_bytes(value) for value in VALUES}) == len(VALUES)
    assert row_bytes({"a": 1, "b": 2}) == row_bytes({"b": 2, "a": 1})


def test_a_dataset_is_read_as_its_rows_are() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"row {i}", "label": i, "tokens": [i, i + 1]} for i in range(2500)]
    dataset = datasets.Dataset.from_list(rows)
    assert row_digests(dataset).tolist() == row_digests(rows).tolist()
    assert take(dataset, [2400, 3, 7]) == [rows[2400], rows[3], rows[7]]
    tensors = torch.utils.data.TensorDataset(torch.arange(4), torch.arange(4.0))
    assert len(set(row_digests(tensors).tolist())) == 4
