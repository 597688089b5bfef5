"""A file of rows that takes hours to make: nothing of what is made is lost, and the file is there whole or not at all.

Until then it grows beside its place as OUT.partial, a journal of its own: a first line that says what it is made of,
then one line a batch, each able to prove itself. What a dead process left half written is cut off; from there the next
one goes on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unbroken.base.errors import BusyError, CannotContinueError, ConfigError
from unbroken.base.reading import open_regular
from unbroken.store import files
from unbroken.store.journal import decode_line, encode_record
from unbroken.store.system import sync_file

FORMAT = 1
SUFFIX = ".partial"


@dataclass(frozen=True)
class Standing:
    """How far an output has come: whole batches and their rows, and the bytes they take with the first line."""

    batches: int = 0
    rows: int = 0
    size: int = 0


class GrowingOutput:
    """The output of one long command, open for adding batches by the one process that holds it.

    `terms` says what it is made of and how, in JSON values under names that a person understands. `surroundings` says
    where it was begun: that is not compared here. `last` holds the lines of the last batch that stands.
    """

    def __init__(self, output: Path, terms: Mapping[str, Any], surroundings: Mapping[str, Any]) -> None:
        """Begin, or go on. Raises `BusyError` if another process does, `CannotContinueError` if what stands was begun
        on other terms, `ConfigError` if it is something else, and `StorageError`."""
        self.output = output
        self.path = output.with_name(output.name + SUFFIX)
        self.surroundings = dict(surroundings)
        self.last = b""
        self._handle = self._held()
        try:
            self._standing = self._restored(dict(terms))
        except BaseException:
            self.close()
            raise

    @property
    def batches(self) -> int:
        """The number of batches that stand."""
        return self._standing.batches

    @property
    def rows(self) -> int:
        """The number of rows in them."""
        return self._standing.rows

    def append(self, lines: bytes, rows: int) -> None:
        """Add the next batch, durably: so many rows, as the UTF-8 that the file is to hold.

        Raises `StorageError`; what stood before stands, and this object is of no use any more.
        """
        record = {"batch": self.batches, "rows": rows, "lines": lines.decode()}
        self._write(encode_record(record), rows)

    def publish(self) -> None:
        """Put the file in its place, durably, whole, and remove what it grew in. Raises `StorageError`."""
        files.replace_with(self.output, (record["lines"].encode() for record, _ in self._records()))
        with files.refusals("remove", self.path):
            os.unlink(self.path)
        files.sync_folder(self.path.parent)

    def close(self) -> None:
        """Let go of it. What stands is gone on with by the next process."""
        with suppress(OSError):
            os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and not self.batches:
            # Nothing is lost, and the next command may differ in what made this one fail.
            with suppress(OSError):
                os.unlink(self.path)
        self.close()

    def _held(self) -> int:
        """Return the file, open and locked; the lock ends with the process, however that ends."""
        if os.path.lexists(self.path) and not self.path.is_file():
            raise ConfigError(f"{self.path} is there and is no file", next_step="choose another output")
        while True:
            handle = files.open_append(self.path)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(handle, self.path):  # else it was finished, and removed, in between
                    return handle
            except OSError as failure:
                os.close(handle)
                if isinstance(failure, BlockingIOError):
                    raise BusyError(
                        f"{self.output} is being made by another process",
                        next_step="wait for it to end, or stop it, and run the same command again",
                    ) from None
                raise
            os.close(handle)

    def _restored(self, terms: dict[str, Any]) -> Standing:
        """Return what stands on these terms, with what does not prove itself cut off."""
        begun, standing = None, Standing()
        for record, end in self._records(with_terms=True):
            if begun is None:
                begun = record
                standing = Standing(size=end)
            else:
                standing = Standing(standing.batches + 1, standing.rows + record["rows"], end)
                self.last = record["lines"].encode()
        if begun is None:
            self._require_ours()
            self._cut(0)
            self._standing = Standing()
            self._write(encode_record({"format": FORMAT, "terms": terms, "surroundings": self.surroundings}), 0)
            return Standing(size=self._standing.size)
        self._require_same(begun, terms)
        self.surroundings = begun["surroundings"]
        self._cut(standing.size)
        return standing

    def _records(self, with_terms: bool = False) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the records up to the first that does not prove itself, each with the place it ends at."""
        end, number = 0, -1
        with files.refusals("read", self.path), open_regular(self.path) as file:
            for line in file:
                record = decode_line(line)
                if record is None or (record.get("batch", -1) != number):
                    return
                end += len(line)
                if number >= 0 or with_terms:
                    yield record, end
                number += 1

    def _require_ours(self) -> None:
        """Raise `ConfigError` if there is a whole line, but not one of ours: it is not ours to cut."""
        with files.refusals("read", self.path), open_regular(self.path) as file:
            if not file.readline().endswith(b"\n"):
                return
        raise ConfigError(
            f"{self.path} is there, and is not the beginning of this output, or is damaged in its first line",
            next_step="move or delete it",
        )

    def _require_same(self, begun: Mapping[str, Any], terms: Mapping[str, Any]) -> None:
        before = begun.get("terms", {}) if begun.get("format") == FORMAT else {}
        different = [name for name in {**before, **terms} if before.get(name) != terms.get(name)]
        if different:
            raise CannotContinueError(
                f"{self.path} was begun otherwise: {_changes(different, before, terms)}",
                why="one file would hold rows of both",
                next_step=f"give the command as it was then, or delete {self.path} to begin again",
            )

    def _cut(self, size: int) -> None:
        with files.refusals("repair", self.path):
            if os.fstat(self._handle).st_size > size:
                files.cut_file(self._handle, size)
                sync_file(self._handle)

    def _write(self, line: bytes, rows: int) -> None:
        with files.refusals("append to", self.path):
            files.write_fully(self._handle, memoryview(line))
            sync_file(self._handle)
        before = self._standing
        self._standing = Standing(before.batches + (rows > 0), before.rows + rows, before.size + len(line))


def _is_at(handle: int, path: Path) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    held = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _changes(names: list[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in which terms two differ; values are shown where a person would know them."""
    parts = []
    for name in names:
        old, new = before.get(name), now.get(name)
        short = all(isinstance(one, int | float | bool | None) or len(str(one)) <= 24 for one in (old, new))
        parts.append(f"{name} {old!r}, not {new!r}" if short else f"the {name} changed")
    return "; ".join(parts)
