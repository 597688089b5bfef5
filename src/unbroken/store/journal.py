"""The journal: an append-only record of what happened, one line a record, each line able to prove itself.

A line is the record as canonical JSON with one key more, the last: `"sum"`, the XXH3-64 of the record without it.
Checkpoints are authoritative and the journal is evidence, so damage to it never stops a run: an unfinished last
line is cut off and kept beside, a damaged line is skipped and named, and what stood there counts as unproved.

A `Mark` is a place in the journal and a digest chained over the sums of all records before it. A checkpoint keeps
one, so that a resumed run reads only what came after, however long the run.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from unbroken.base.fingerprint import canonical, digest
from unbroken.base.reading import open_regular
from unbroken.store.files import (
    create_file,
    cut_file,
    open_append,
    refusals,
    replace_file,
    sync_folder,
    take_place,
    write_fully,
)
from unbroken.store.layout import TORN_PREFIX
from unbroken.store.system import sync_file

SUM_KEY = "sum"
SUM_DIGITS = 16
BLOCK_BYTES = 1 << 16
LONGEST_LINE_BYTES = 1 << 26  # no record comes near: a stretch of a terabyte without a line end is not read at once
GENESIS = digest(b"")


@dataclass(frozen=True)
class Mark:
    """A place between two records: the bytes before it, and a digest chained over the sums of its records."""

    offset: int
    chain: str


START = Mark(0, GENESIS)


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Return the line of a record. Raises `ValueError` for what JSON cannot hold (NaN and infinities included)."""
    if not record or SUM_KEY in record:
        raise ValueError(f"a record needs keys, and none of them may be {SUM_KEY!r}")
    body = canonical(record)
    return b'%s,"%s":"%s"}\n' % (body[:-1], SUM_KEY.encode(), _sum(body))


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line without its sum, or None if the line is not exactly one that was written."""
    cut = len(line) - len(f',"{SUM_KEY}":""}}\n') - SUM_DIGITS
    body = line[:cut] + b"}"
    if cut <= 0 or line != b'%s,"%s":"%s"}\n' % (body[:-1], SUM_KEY.encode(), _sum(body)):
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def sum_of(line: bytes) -> bytes:
    """Return the sum a valid line ends with."""
    return line[-SUM_DIGITS - 3 : -3]


def advance(mark: Mark, line: bytes) -> Mark:
    """Return the mark after one more valid line."""
    return Mark(mark.offset + len(line), digest(mark.chain.encode() + sum_of(line)))


def read_records(path: Path, damaged: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield every record, changing nothing on disk; safe while another process appends.

    Damaged lines are skipped and named in `damaged`; an unfinished last line is no record yet and is ignored.
    """
    return (record for record, _ in read_marked(path, damaged))


def read_marked(path: Path, damaged: list[str] | None = None) -> Iterator[tuple[dict[str, Any], Mark]]:
    """Yield every record as `read_records` does, each with the mark that follows it."""
    return _walk(path, START, [] if damaged is None else damaged)


def read_last(path: Path) -> dict[str, Any] | None:
    """Return the last whole, undamaged record, reading no more than the end of the file; None if there is none.

    Raises `StorageError`.
    """
    if not os.path.lexists(path):
        return None
    with refusals("read", path), open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        block = BLOCK_BYTES
        while True:
            file.seek(max(0, size - block))
            lines = file.read(block).splitlines(keepends=True)
            for line in reversed(lines if size <= block else lines[1:]):
                if (record := decode_line(line)) is not None:
                    return record
            if block >= size:
                return None
            block *= 4


def proves(path: Path, mark: Mark) -> bool:
    """Return whether the file holds every record before `mark`, undamaged and in order. Reads all of them."""
    place, damaged = START, list[str]()
    for _, place in _walk(path, START, damaged):
        if damaged or place.offset >= mark.offset:
            break
    return not damaged and (place == mark or mark == START)


class Journal:
    """The journal of a run, open for appending by the process that holds the run's lock.

    `damaged` names, in words, whatever was found to be unreadable so far. `require_held` raises when the lock was
    lost; it is asked before each record, and before the journal is made durable, which every commit needs.
    """

    def __init__(self, path: Path, require_held: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.require_held = require_held
        self.damaged: list[str] = []
        self._turn = threading.Lock()  # the writer of checkpoints syncs while the loop appends
        self._known = START  # a place whose chain is known; `mark` walks on from here
        self._torn = False  # an append failed halfway: the next one cuts that off first
        self._suspect = False  # an fsync failed: what the disk holds is not known
        self._handle = open_append(path)
        self._end = self._cut_torn_tail()

    def append(self, record: Mapping[str, Any]) -> None:
        """Hand one record to the operating system: from here on, killing this process does not lose it.

        Raises `StorageError`; the journal then holds the records it held before.
        """
        self.require_held()
        line = encode_record(record)
        with self._turn, refusals("append to", self.path):
            if self._torn:
                cut_file(self._handle, self._end)
            self._torn = True
            write_fully(self._handle, memoryview(line))
            self._torn = False
            if self._known.offset == self._end:
                self._known = advance(self._known, line)
            self._end += len(line)

    def sync(self) -> None:
        """Make every record appended so far durable. Raises `StorageError`.

        After a failure the next call writes the records to a new file: syncing the same one again proves nothing.
        """
        self.require_held()
        with self._turn:
            if self._suspect:
                self._rewrite()
                return
            with refusals("make durable", self.path):
                handle = os.dup(self._handle)
        with refusals("make durable", self.path):
            try:
                sync_file(handle)
            except OSError:
                self._suspect = True
                raise
            finally:
                os.close(handle)

    @property
    def end(self) -> int:
        """How many bytes of whole records there are."""
        return self._end

    def mark(self) -> Mark:
        """Return the place after the last record. Cost: the records since the last mark given or taken."""
        with self._turn:
            if self._known.offset != self._end:
                chain = self._known.chain
                for _, passed in _walk(self.path, self._known, []):
                    chain = passed.chain
                self._known = Mark(self._end, chain)
            return self._known

    def records(self, mark: Mark | None = None) -> Iterator[dict[str, Any]]:
        """Yield the records after `mark`, without reading those before it; all of them without one."""
        return (record for record, _ in self.marked_records(mark))

    def marked_records(self, mark: Mark | None = None) -> Iterator[tuple[dict[str, Any], Mark]]:
        """Yield the records after `mark`, each with the mark that follows it.

        A mark comes from a verified checkpoint and is believed: the chain goes on from it. One that does not fall
        between two lines of this journal is named in `damaged`, and what can be read after it is given.
        """
        start = mark or START
        if start.offset >= self._known.offset and not self._misses(start):
            self._known = start
        return _walk(self.path, start, self.damaged)

    def proves(self, mark: Mark) -> bool:
        """Return whether every record before `mark` is still there, undamaged and in order. Reads all of them."""
        return proves(self.path, mark)

    def take_over(self, new: Path, keep: str = "") -> Path | None:
        """Hold the records of `new`, a durable file beside this one, under this name from now on.

        Those of before are kept under a name that begins with `keep`, which is returned, or dropped without one. At
        every instant the name is that of the one or of the other. Raises `StorageError`.
        """
        self.require_held()
        with self._turn:
            kept = take_place(new, self.path, keep) if keep else None
            if kept is None:
                with refusals("replace", self.path):
                    os.replace(new, self.path)
                sync_folder(self.path.parent)
            self.close()
            self._handle, self._known = open_append(self.path), START
            self._torn = self._suspect = False
            self._end = self._cut_torn_tail()
        return kept

    def close(self) -> None:
        """Give the file back. Nothing is lost by not calling it."""
        with suppress(OSError):
            os.close(self._handle)

    def _misses(self, mark: Mark) -> bool:
        """Whether `mark` lies outside the file or inside a line."""
        with refusals("read", self.path):
            return mark.offset > self._end or (mark.offset > 0 and os.pread(self._handle, 1, mark.offset - 1) != b"\n")

    def _cut_torn_tail(self) -> int:
        """Leave the file ending in a whole line; keep what was cut in `journal.torn-<n>`. Return the size."""
        with refusals("read", self.path):
            size = os.fstat(self._handle).st_size
            end = _end_of_last_line(self._handle, size)
            torn = os.pread(self._handle, size - end, end)
        if torn:
            number = 0
            while os.path.lexists(kept := self.path.with_name(f"{TORN_PREFIX}{number}")):
                number += 1
            create_file(kept, [torn])
            sync_folder(kept.parent)
            with refusals("repair", self.path):
                cut_file(self._handle, end)
                sync_file(self._handle)
            self.damaged.append(f"{self.path.name}: the last {len(torn)} bytes were torn; they are in {kept.name}")
        return end

    def _rewrite(self) -> None:
        """Move the records to a new durable file under the same name."""
        with refusals("rewrite", self.path):
            replace_file(self.path, self.path.read_bytes())
        self.close()
        self._handle = open_append(self.path)
        self._suspect = False


def _sum(body: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(body).encode()


def _walk(path: Path, start: Mark, damaged: list[str]) -> Iterator[tuple[dict[str, Any], Mark]]:
    """Yield each sound record after `start` with the mark behind it; name the others in `damaged`."""
    chain = start.chain
    for offset, line in _lines(path, start.offset, damaged):
        record = decode_line(line)
        if record is None:
            damaged.append(f"{path.name}: the record at byte {offset} is damaged and was skipped")
            continue
        mark = advance(Mark(offset, chain), line)
        chain = mark.chain
        yield record, mark


def _lines(path: Path, offset: int, notes: list[str]) -> Iterator[tuple[int, bytes]]:
    """Yield each whole line from `offset` on, with its place; name in `notes` an offset no line begins at."""
    with refusals("read", path), open_regular(path) as file:
        if offset:
            file.seek(offset - 1)
            if file.read(1) != b"\n":
                notes.append(f"{path.name}: no record begins at byte {offset}, where the checkpoint says one does")
                offset += len(file.readline())
        for line in iter(lambda: file.readline(LONGEST_LINE_BYTES), b""):
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def _end_of_last_line(handle: int, size: int) -> int:
    while size:
        start = max(0, size - BLOCK_BYTES)
        found = os.pread(handle, size - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0
