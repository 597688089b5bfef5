"""The rows of a user's own loop: anything with a length and an index, told apart by content."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from unbroken.base.errors import DataError
from unbroken.base.fingerprint import canonical, short_digest

SLICE_ROWS = 1000
GIVE_FINGERPRINT = "give Loop(fingerprint=...), a text that changes whenever the data do"


class Rows(Protocol):
    """A list, a `datasets.Dataset`, a map-style torch dataset: what has a length and rows by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def require_rows(data: Any) -> None:
    """Raise `DataError` unless rows can be counted and read by number, and there are some."""
    if isinstance(data, DataLoader):
        raise DataError(
            "data is a DataLoader",
            why="the order it draws could not be repeated after a stop",
            next_step="pass its dataset as data, its collate_fn as collate and its batch_size; Loop draws the batches",
        )
    if isinstance(data, Mapping | str | bytes) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise DataError(
            f"data is a {type(data).__name__}, not a sequence of rows",
            next_step="pass something with len(data) and data[index]; make a list of an iterator",
        )
    if not len(data):
        raise DataError("the data are empty", next_step="give at least one row")


def take(data: Any, ids: Sequence[int]) -> list[Any]:
    """Return the rows numbered `ids`, in one call where the data have one for that."""
    together = getattr(data, "__getitems__", None)  # torch's and datasets' convention
    return list(together(ids)) if together is not None else [data[index] for index in ids]


def row_digests(data: Any) -> NDArray[np.uint64]:
    """Return a digest of each row's content. Raises `DataError` where a row cannot be told from another."""
    first = row_bytes(data[0])
    if first != row_bytes(data[0]):
        raise DataError(
            "row 1 of the data reads differently each time",
            why="whether the data changed could not be found out",
            next_step=f"leave random changes to collate or the loop body, or {GIVE_FINGERPRINT}",
        )
    return np.fromiter((short_digest(row_bytes(row)) for row in _each(data)), dtype=np.uint64, count=len(data))


def _each(data: Any) -> Iterator[Any]:
    if not hasattr(data, "column_names"):
        for index in range(len(data)):
            yield data[index]
        return
    for start in range(0, len(data), SLICE_ROWS):  # a datasets.Dataset reads slices a hundred times faster than rows
        columns = data[start : start + SLICE_ROWS]
        for cells in zip(*columns.values(), strict=True):
            yield dict(zip(columns, cells, strict=True))


def row_bytes(value: Any) -> bytes:
    """Return bytes that tell values apart: JSON values, arrays and tensors, and containers and records of them.

    Raises `DataError` for anything whose content cannot be read.
    """
    match value:
        case None | bool() | int() | str():
            return canonical(value)
        case float():
            return b"f" + repr(value).encode()
        case bytes():
            return b"b%d:%s" % (len(value), value)
        case Tensor():
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return b"t%s%s:%s" % (str(value.dtype).encode(), canonical(list(value.shape)), flat.numpy().tobytes())
        case np.ndarray() | np.generic() if not value.dtype.hasobject:
            return b"a%s%s:%s" % (value.dtype.str.encode(), canonical(list(value.shape)), value.tobytes())
        case np.ndarray():
            return row_bytes(value.tolist())
        case datetime.date() | datetime.time():
            return b"d" + value.isoformat().encode()
        case Mapping():
            entries = sorted((row_bytes(key), row_bytes(value[key])) for key in value)
            return b"{%s}" % b",".join(key + b":" + content for key, content in entries)
        case list() | tuple():
            return b"[%s]" % b",".join(map(row_bytes, value))
    if dataclasses.is_dataclass(value) or (getattr(value, "__dict__", None) and not callable(value)):
        return type(value).__name__.encode() + row_bytes(vars(value))
    raise DataError(
        f"rows with a {type(value).__name__} cannot be told apart",
        why="a change of the data could not be found out",
        next_step=GIVE_FINGERPRINT,
    )
