"""Files of rows, row by row and each with its place: never more of a file in memory than its reader keeps."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from unbroken.base.config import closest
from unbroken.base.errors import DataError
from unbroken.base.stopping import poll

KINDS = ".jsonl, .json, .csv or .tsv (also with .gz), or .parquet"
BLOCK_BYTES = 1 << 20
POLL_ROWS = 1024  # rows between two questions whether to stop
LONGEST_FIELD = 2**31 - 1  # csv refuses fields above 131,072 characters unless told otherwise; documents are longer

Unit = Literal["line", "row"]
Numbered = tuple[Iterator[tuple[int, Any]], Unit]  # rows with their numbers, from 1, and what those count


def is_parquet(path: Path) -> bool:
    """Whether a file's name is that of a parquet file: columns, not lines."""
    return path.name.lower().endswith(".parquet")


def numbered_rows(path: Path, name: str) -> Numbered:
    """Open a file of rows that is not parquet. Raises `DataError` naming the kinds of files there are."""
    lines = decoded_lines(path, name)
    match Path(path.name.lower().removesuffix(".gz")).suffix:
        case ".jsonl":
            return json_rows(name, lines), "line"
        case ".json":
            return json_document(name, lines)
        case ".csv":
            return csv_rows(name, lines, ","), "line"
        case ".tsv":
            return csv_rows(name, lines, "\t"), "line"
    raise DataError(f"{name}: this kind of file is not known", next_step=f"use {KINDS}")


def require_file(path: Path) -> None:
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
        raise unreadable(path, failure) from None
    raise DataError(f"no file {path}", next_step=f"did you mean '{near}'?" if near else "correct the path")


class ColumnMissingError(DataError):
    """There is no column of that name; `near` is one that may be meant."""

    near: str | None = None


def require_columns(place: str, wanted: Iterable[str], there: Iterable[str]) -> None:
    """Raise `DataError` for the first wanted column that is not there."""
    known = [str(column) for column in there]
    for column in wanted:
        if column not in known:
            near = closest(column, known)
            missing = ColumnMissingError(
                f"{place}: there is no column '{column}'",
                why=f"the columns are {', '.join(known) or 'none'}",
                next_step=f"did you mean '{near}'?" if near else "name one of these, or add the column",
            )
            missing.near = near
            raise missing


def decoded_lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file, numbered from 1, with their ends; only a line feed ends a line."""
    number = 0
    try:
        with open_plain(path) as file:
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
        raise unreadable(path, failure) from None


def unreadable(path: Path, failure: OSError) -> DataError:
    """Return what to say about a file the operating system refuses."""
    cause = failure.strerror or str(failure)
    return DataError(f"{path} cannot be read", why=cause, next_step="check the disk and the file's permissions")


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked; the buffer makes the lines in C, several times faster than gzip does."""
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.open(path)), BLOCK_BYTES))
    return path.open("rb", BLOCK_BYTES)


def json_rows(name: str, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """Yield the value on each line that is not blank."""
    for number, text in lines:
        if text and not text.isspace():
            yield number, parse_json(name, text, number)


def json_document(name: str, lines: Iterator[tuple[int, str]]) -> Numbered:
    """Read one array of objects or, as many `.json` files are in truth, one object a line."""
    start = list(first_lines(lines))
    if start and start[-1][1].lstrip()[:1] == "[":
        text = "".join(line for _, line in chain(start, lines))
        return enumerate(parse_json(name, text, 1), 1), "row"
    return json_rows(name, chain(start, lines)), "line"


def first_lines(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the lines up to the first that is not blank."""
    for number, line in lines:
        yield number, line
        if line and not line.isspace():
            return


def parse_json(name: str, text: str, first_line: int) -> Any:
    """Parse JSON that begins on `first_line`. Raises `DataError` naming the line and the column."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as failure:
        place = f"{name}: line {first_line + failure.lineno - 1}, column {failure.colno}"
        cause = failure.msg
    except (ValueError, RecursionError) as failure:  # a number of over 4300 digits; brackets nested too deep
        place, cause = f"{name}: line {first_line}", str(failure)
    raise DataError(f"{place}: broken JSON", why=cause, next_step="write each row as one complete JSON object")


def csv_rows(name: str, lines: Iterable[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each record with the line it starts on; a record may span lines, and blank lines are none."""
    reader = csv.reader((text for _, text in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    previous = csv.field_size_limit(LONGEST_FIELD)
    try:
        for fields in reader:
            if header is None and fields:
                header = distinct(name, fields)
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


def text_rows(lines: Iterable[tuple[int, str]], column: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each line as a row of one column; a line ends with LF or CRLF and with nothing else."""
    for number, text in lines:
        yield number, {column: text.removesuffix("\n").removesuffix("\r")}


def distinct(name: str, columns: list[str]) -> list[str]:
    """Return the names of columns. Raises `DataError` if one occurs twice."""
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name}: there are two columns '{twice}'", next_step="rename one of them")
    return columns
