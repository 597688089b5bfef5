"""Rows of text from files and from memory, and one clear line about whatever is wrong with them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from unbroken.base.errors import DataError
from unbroken.base.fingerprint import canonical, digest, short_digest
from unbroken.base.stopping import poll
from unbroken.plan.formats import (
    POLL_ROWS,
    Unit,
    decoded_lines,
    distinct,
    is_parquet,
    numbered_rows,
    require_columns,
    require_file,
    text_rows,
)

CORRECT = "correct it or remove the row"


class Columnar(Protocol):
    """What a `datasets.Dataset` looks like from here; `datasets` itself is never imported."""

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""

    def __getitem__(self, column: str, /) -> Sequence[Any]:
        """The cells of a column."""


Source = str | Path | Sequence[Mapping[str, Any]] | Columnar


@dataclass(frozen=True)
class Table:
    """Rows by column, able to say where each stands: `lines` holds the line each row starts on, if it has one.

    `first` is the number, from 1, of the first row in its source.
    """

    name: str
    columns: dict[str, list[Any]]
    lines: array[int] | None = None
    first: int = 1

    @property
    def num_rows(self) -> int:
        """Return the number of rows, the same in every column."""
        return len(next(iter(self.columns.values()), ()))

    def locate(self, row: int) -> str:
        """Say where `row` (counted from 0) stands, counting from 1 as people do: "train.jsonl: line 17"."""
        return f"{self.name}: row {self.first + row}" if self.lines is None else f"{self.name}: line {self.lines[row]}"

    def cells(self, column: str) -> list[Any]:
        """Return a column as it was read. Raises `DataError` naming the columns there are."""
        require_columns(self.name, [column], self.columns)
        return self.columns[column]

    def texts(self, column: str) -> list[str]:
        """Return a column of texts. Raises `DataError` naming the first cell that is null or not text."""
        cells = self.cells(column)
        for row, cell in enumerate(cells):
            if not _is_text(cell):
                raise self._unexpected(row, column, cell, "text")
        return cells

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return a column of numbers; text that reads as a number is one, since CSV has nothing else.

        Raises `DataError` naming the first cell that is not a finite number.
        """
        cells = self.cells(column)
        values = np.fromiter(map(_number, cells), dtype=np.float64, count=len(cells))
        unread = np.flatnonzero(~np.isfinite(values))
        if unread.size:
            raise self._unexpected(int(unread[0]), column, cells[unread[0]], "a finite number")
        return values

    def text_lists(self, column: str) -> list[list[str]]:
        """Return a column of lists of texts, some maybe empty. Raises `DataError` naming the first other cell."""
        cells = self.cells(column)
        for row, cell in enumerate(cells):
            if not isinstance(cell, list):
                raise self._unexpected(row, column, cell, "a list of texts")
            for number, item in enumerate(cell, 1):
                if not _is_text(item):
                    raise self._unexpected(row, column, item, "text", f", item {number}")
        return cells

    def digests(self, columns: Sequence[str]) -> NDArray[np.uint64]:
        """Return a digest per row of its cells in `columns`, in that order.

        Neither the order of keys, nor other columns, nor the kind of file has a part in it. Raises `DataError`
        naming the first row with a cell that JSON has no form for (NaN, a date).
        """
        digests = np.empty(self.num_rows, dtype=np.uint64)
        for row, cells in enumerate(zip(*map(self.cells, columns), strict=True)):
            if not row % POLL_ROWS:
                poll()
            try:
                digests[row] = short_digest(canonical(list(cells)))
            except (TypeError, ValueError) as failure:
                raise DataError(f"{self.locate(row)}: {failure}", next_step=CORRECT) from None
        return digests

    def _unexpected(self, row: int, column: str, cell: Any, expected: str, item: str = "") -> DataError:
        place = f"{self.locate(row)}, column '{column}'{item}"
        return DataError(f"{place} holds {_found(cell)} where {expected} is expected", next_step=CORRECT)


def content_digest(digests: NDArray[np.uint64]) -> str:
    """Return one digest, 32 hexadecimal digits, of all rows in their order."""
    return digest(digests.astype("<u8").tobytes())


def first_difference(old: NDArray[np.uint64], new: NDArray[np.uint64]) -> int | None:
    """Return the first row (counted from 0) in which two tables' digests differ, or None if they are the same.

    Where one table is the beginning of the other, that is the first row only the longer one has.
    """
    common = min(len(old), len(new))
    different = np.flatnonzero(old[:common] != new[:common])
    if different.size:
        return int(different[0])
    return None if len(old) == len(new) else common


def read_rows(source: Source, name: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """Read a file, a list of rows, or a `datasets.Dataset`, keeping `columns` (all of them by default).

    Every row must have each of `columns`; by default a cell a row lacks is None. `name` stands for the source in
    messages. Raises `DataError` with the place, the cause and the next action.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        table = _read_file(path, name or path.name, columns)
    elif hasattr(source, "column_names"):
        table = _read_dataset(cast(Columnar, source), name or "dataset", columns)
    elif isinstance(source, Sequence):
        table = _collect(name or "rows", enumerate(source, 1), columns, "row")
    else:
        raise DataError(
            f"rows cannot be read from {type(source).__name__}",
            next_step="give a file, a list of objects or a datasets.Dataset",
        )
    if not table.num_rows:
        raise DataError(f"{table.name} is empty: it has no row of data", next_step="give a source with rows")
    return table


def read_blocks(
    path: Path, size: int, column: str, *, whole: bool = True
) -> Iterator[tuple[Table, list[Mapping[str, Any]]]]:
    """Yield a file's rows `size` at a time, as a table and as they are; no more of the file is in memory at once.

    Two exceptions: a `.json` file that is one array, and the lines of a csv record, are read whole. Each line of a
    `.txt` file is a row of the one `column`. Without `whole` a parquet file's other columns are left out. Raises
    `DataError` as `read_rows` does, in the middle too.
    """
    require_file(path)
    name, empty = path.name, True
    unit: Unit
    if is_parquet(path):
        rows, unit = _parquet_rows(path, name, size, None if whole else [column]), "row"
    elif path.name.lower().removesuffix(".gz").endswith(".txt"):
        rows, unit = text_rows(decoded_lines(path, name), column), "line"
    else:
        rows, unit = numbered_rows(path, name)
    while block := list(islice(rows, size)):
        yield _collect(name, block, None, unit), [row for _, row in block]
        empty = False
    if empty:
        raise DataError(f"{name} is empty: it has no row of data", next_step="give a source with rows")


def _read_file(path: Path, name: str, wanted: Sequence[str] | None) -> Table:
    require_file(path)
    if is_parquet(path):
        return _read_parquet(path, name, wanted)
    rows, unit = numbered_rows(path, name)
    return _collect(name, rows, wanted, unit)


def _collect(name: str, rows: Iterable[tuple[int, Any]], wanted: Sequence[str] | None, unit: Unit) -> Table:
    """Gather numbered rows by column; the first row stands for all in a message about its columns."""
    columns: dict[str, list[Any]] = {column: [] for column in wanted or ()}
    numbers = array("q")
    for number, row in rows:
        place = f"{name}: {unit} {number}"
        if not isinstance(row, Mapping):
            raise DataError(f"{place} is {_found(row)}, not an object", next_step='write it as {"column": ...}')
        if wanted is None:
            columns.update({column: [None] * len(numbers) for column in row if column not in columns})
        elif not row.keys() >= columns.keys():
            require_columns(place if numbers else name, columns, row)
        for column, cells in columns.items():
            cells.append(row.get(column))
        numbers.append(number)
    return Table(name, columns, numbers if unit == "line" else None, numbers[0] if numbers else 1)


def _read_parquet(path: Path, name: str, wanted: Sequence[str] | None) -> Table:
    with _opened_parquet(path, name, wanted) as (file, kept):
        content = file.read(columns=kept)
        return Table(name, {column: content.column(column).to_pylist() for column in kept})


def _parquet_rows(path: Path, name: str, size: int, wanted: Sequence[str] | None) -> Iterator[tuple[int, Any]]:
    number = 0
    with _opened_parquet(path, name, wanted) as (file, kept):
        for batch in file.iter_batches(size, columns=kept):
            for row in batch.to_pylist():
                number += 1
                yield number, row


@contextmanager
def _opened_parquet(path: Path, name: str, wanted: Sequence[str] | None) -> Iterator[tuple[Any, list[str]]]:
    """Open a parquet file; give it and the names of the columns to read. What is wrong with it is a `DataError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            there = distinct(name, file.schema_arrow.names)
            require_columns(name, wanted or (), there)
            yield file, list(wanted or there)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as failure:
        cause = str(failure).partition("\n")[0]
        raise DataError(f"{name}: not a whole parquet file", why=cause, next_step="copy or write it again") from None


def _read_dataset(dataset: Columnar, name: str, wanted: Sequence[str] | None) -> Table:
    there = dataset.column_names
    if not isinstance(there, list) or not hasattr(dataset, "__getitem__"):
        kind = type(dataset).__name__
        raise DataError(
            f"{name} is {kind}, which has no rows by number",
            next_step="give one split, as in dataset['train'], or a list of its rows",
        )
    require_columns(name, wanted or (), there)
    # A dataset set to give tensors gives them here too: take plain Python values.
    plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    return Table(name, {column: list(plain[column][:]) for column in wanted or there})


def _is_text(cell: Any) -> TypeGuard[str]:
    """Whether a cell is text that has a UTF-8 form; half a surrogate pair, which JSON can spell, has none."""
    if not isinstance(cell, str):
        return False
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(cell: Any) -> float:
    """Return the number in a cell, or NaN; `true` is not a number."""
    if isinstance(cell, bool) or not isinstance(cell, str | Real):
        return float("nan")
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return float("nan")


def _found(value: Any) -> str:
    """Name what a cell holds, in the words of JSON and in a few characters."""
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return json.dumps(value)[:40]
        case str() if not _is_text(value):
            return "text with half a surrogate pair"
        case str():
            return f"the text {value!r}" if len(value) <= 40 else f"the text {value[:40]!r}..."
        case Mapping():
            return "an object"
        case list():
            return "a list"
    return f"a {type(value).__name__}"
