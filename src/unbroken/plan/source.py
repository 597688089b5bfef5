"""Rows of text from files and from memory, and one clear line about whatever is wrong with them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from unbroken.base.config import closest
from unbroken.base.errors import DataError
from unbroken.base.fingerprint import canonical, digest, short_digest
from unbroken.base.stopping import poll

KINDS = ".jsonl, .json, .csv or .tsv (also with .gz), or .parquet"
BLOCK_BYTES = 1 << 20
POLL_ROWS = 1024  # rows between two questions whether to stop
LONGEST_FIELD = 2**31 - 1  # csv refuses fields above 131,072 characters unless told otherwise; documents are longer
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
    """Rows by column, able to say where each stands: `lines` holds the line each row starts on, if it has one."""

    name: str
    columns: dict[str, list[Any]]
    lines: array[int] | None = None

    @property
    def num_rows(self) -> int:
        """Return the number of rows, the same in every column."""
        return len(next(iter(self.columns.values()), ()))

    def locate(self, row: int) -> str:
        """Say where `row` (counted from 0) stands, counting from 1 as people do: "train.jsonl: line 17"."""
        return f"{self.name}: row {row + 1}" if self.lines is None else f"{self.name}: line {self.lines[row]}"

    def cells(self, column: str) -> list[Any]:
        """Return a column as it was read. Raises `DataError` naming the columns there are."""
        _require(self.name, [column], self.columns)
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


def _read_file(path: Path, name: str, wanted: Sequence[str] | None) -> Table:
    _require_file(path)
    plain = path.name.lower().removesuffix(".gz")
    if path.name.lower().endswith(".parquet"):
        return _read_parquet(path, name, wanted)
    lines = _lines(path, name)
    match Path(plain).suffix:
        case ".jsonl":
            return _collect(name, _json_rows(name, lines), wanted, "line")
        case ".json":
            return _read_json(name, lines, wanted)
        case ".csv":
            return _collect(name, _csv_rows(name, lines, ","), wanted, "line")
        case ".tsv":
            return _collect(name, _csv_rows(name, lines, "\t"), wanted, "line")
    raise DataError(f"{name}: this kind of file is not known", next_step=f"use {KINDS}")


def _require_file(path: Path) -> None:
    """Raise `DataError` if there is no such file, suggesting the one most like it in the folder."""
    try:
        if path.is_file():
            return
        if path.is_dir():
            raise DataError(f"{path} is a folder, not a file", next_step="name one file in it")
        if not path.parent.is_dir():
            raise DataError(f"no file {path}: there is no folder {path.parent}", next_step="correct the path")
        near = closest(path.name, sorted(os.listdir(path.parent)))
    except OSError as failure:
        raise _unreadable(path, failure) from None
    raise DataError(f"no file {path}", next_step=f"did you mean '{near}'?" if near else "correct the path")


def _collect(
    name: str, rows: Iterable[tuple[int, Any]], wanted: Sequence[str] | None, unit: Literal["line", "row"]
) -> Table:
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
            _require(place if numbers else name, columns, row)
        for column, cells in columns.items():
            cells.append(row.get(column))
        numbers.append(number)
    return Table(name, columns, numbers if unit == "line" else None)


def _require(place: str, wanted: Iterable[str], there: Iterable[str]) -> None:
    """Raise `DataError` for the first wanted column that is not there."""
    known = [str(column) for column in there]
    for column in wanted:
        if column not in known:
            near = closest(column, known)
            raise DataError(
                f"{place}: there is no column '{column}'",
                why=f"the columns are {', '.join(known) or 'none'}",
                next_step=f"did you mean '{near}'?" if near else "name one of these, or add the column",
            )


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file, numbered from 1, with their ends; only a line feed ends a line."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if not number % POLL_ROWS:
                    poll()
                yield number, line.decode("utf-8" if number > 1 else "utf-8-sig")
    except UnicodeDecodeError as failure:
        byte = failure.object[failure.start]
        raise DataError(
            f"{name}: line {number} is not UTF-8 (byte 0x{byte:02x} at {failure.start + 1})",
            next_step="save the file as UTF-8",
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as failure:
        raise DataError(
            f"{name}: damaged or cut off, readable up to line {number}",
            why=str(failure),
            next_step="copy or download the file again",
        ) from None
    except OSError as failure:
        raise _unreadable(path, failure) from None


def _unreadable(path: Path, failure: OSError) -> DataError:
    cause = failure.strerror or str(failure)
    return DataError(f"{path} cannot be read", why=cause, next_step="check the disk and the file's permissions")


def _open(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked; the buffer makes the lines in C, several times faster than gzip does."""
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.open(path)), BLOCK_BYTES))
    return path.open("rb", BLOCK_BYTES)


def _json_rows(name: str, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    for number, text in lines:
        if text and not text.isspace():
            yield number, _parse_json(name, text, number)


def _read_json(name: str, lines: Iterable[tuple[int, str]], wanted: Sequence[str] | None) -> Table:
    """Read one array of objects or, as many `.json` files are in truth, one object a line."""
    text = "".join(line for _, line in lines)
    if text.lstrip()[:1] == "[":
        return _collect(name, enumerate(_parse_json(name, text, 1), 1), wanted, "row")
    return _collect(name, _json_rows(name, enumerate(text.split("\n"), 1)), wanted, "line")


def _parse_json(name: str, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as failure:
        place = f"{name}: line {first_line + failure.lineno - 1}, column {failure.colno}"
        cause = failure.msg
    except (ValueError, RecursionError) as failure:  # a number of over 4300 digits; brackets nested too deep
        place, cause = f"{name}: line {first_line}", str(failure)
    raise DataError(f"{place}: broken JSON", why=cause, next_step="write each row as one complete JSON object")


def _csv_rows(name: str, lines: Iterable[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each record with the line it starts on; a record may span lines, and blank lines are none."""
    reader = csv.reader((text for _, text in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    previous = csv.field_size_limit(LONGEST_FIELD)
    try:
        for fields in reader:
            if header is None and fields:
                header = _distinct(name, fields)
            elif header is not None and len(fields) == len(header):
                yield start, dict(zip(header, fields, strict=True))
            elif header is not None and fields:
                count = f"{len(fields)} field{'s' * (len(fields) > 1)}"
                raise DataError(
                    f"{name}: line {start} has {count} where the header has {len(header)}",
                    next_step=f"put double quotes around fields that contain {delimiter!r}, quotes or line ends",
                )
            start = reader.line_num + 1
    except csv.Error as failure:
        raise DataError(
            f"{name}: line {start} cannot be split into fields",
            why=str(failure),
            next_step="close every quoted field, and double the quotes inside it",
        ) from None
    finally:
        csv.field_size_limit(previous)


def _distinct(name: str, columns: list[str]) -> list[str]:
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name}: there are two columns '{twice}'", next_step="rename one of them")
    return columns


def _read_parquet(path: Path, name: str, wanted: Sequence[str] | None) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            there = _distinct(name, file.schema_arrow.names)
            _require(name, wanted or (), there)
            kept = list(wanted or there)
            content = file.read(columns=kept)
            return Table(name, {column: content.column(column).to_pylist() for column in kept})
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
    _require(name, wanted or (), there)
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
