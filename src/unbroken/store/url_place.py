"""A mirror wherever fsspec reaches: an object store, another machine. There is no rename and no appending there.

So the files of a checkpoint come first and the manifest, the commit marker, last; and the journal lies in pieces of a
few MiB, each named by the bytes it begins and ends at. None is ever written again: not every system that fsspec
reaches writes a file whole or not at all. A longer piece takes the place of the last one, which is then removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unbroken.base.errors import CannotContinueError, ConfigError, StorageError, UnbrokenError
from unbroken.store import files, layout
from unbroken.store.files import DamagedError
from unbroken.store.manifest import Manifest
from unbroken.store.place import PIECE_BYTES, Blocks, byte_range, checkpoint_path, read, steps_among, unmounted
from unbroken.store.run import decode_run

Piece = tuple[int, int]  # of the journal: the bytes it begins and ends at


class UrlPlace:
    """A place fsspec reaches: an object store, another machine."""

    movable = near = False

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ConfigError(
                f"mirror: {url} needs the package fsspec", next_step="pip install 'unbroken[mirror]', or give a folder"
            ) from None
        try:
            self._system, root = url_to_fs(self.name)
        except ImportError as failure:
            raise ConfigError(
                f"mirror: {url} cannot be reached: {failure}", next_step="install that package, or give a folder"
            ) from None
        except ValueError as failure:
            raise ConfigError(f"mirror: {url}: {failure}", next_step="see fsspec for the URLs there are") from None
        self._root = str(root).rstrip("/")

    def hold(self) -> None:
        """Do nothing: no lock holds between machines here. Two processes of one run would write the same bytes."""

    def release(self) -> None:
        """Do nothing."""

    def document(self) -> dict[str, Any] | None:
        """Read and check run.json; one cut short while the place was to become a run makes none yet."""
        names = self._names()
        if layout.RUN_FILE not in names:
            return None
        try:
            return decode_run(read(self, layout.RUN_FILE), f"{self.name}/{layout.RUN_FILE}")
        except CannotContinueError:
            if layout.MIRRORING_FILE in names:
                return None
            raise

    def require_home(self) -> None:
        """Look for the URL, the folder above it, or in an object store, which has no folders, the bucket."""
        above = self._root.rpartition("/")[0] if self._root.startswith("/") else self._root.partition("/")[0]
        self._forget()
        with self._talking("look at", ".."), suppress(PermissionError):  # a key may be for its own prefix alone
            if above and not self._system.exists(self._root) and not self._system.exists(above):
                raise unmounted(self.name, above)

    def names(self) -> list[str]:
        """Return what lies directly under the URL."""
        return self._names()

    def blocks(self, path: str) -> Iterator[bytes | memoryview]:
        """Yield a file's content."""
        with self._talking("read", path), self._system.open(self._at(path), "rb") as file:
            while block := file.read(files.BLOCK_BYTES):
                yield block

    def put(self, path: str, content: bytes) -> None:
        """Write one object."""
        self._write(path, [content])

    def drop(self, path: str) -> None:
        """Remove one object."""
        with self._talking("remove", path):
            self._system.rm_file(self._at(path))

    def steps(self) -> list[int]:
        """Return the steps something is there of."""
        return steps_among(self._names(layout.CHECKPOINTS_FOLDER))

    def lacks(self, step: int, manifest: Manifest, *, digests: bool) -> list[str]:
        """Compare sizes; reading all of it back is for who restores it."""
        found = []
        for path, record in sorted(manifest.files.items()):
            where = checkpoint_path(step, path)
            with self._talking("look at", where):
                there = self._system.exists(self._at(where))
                size = self._system.size(self._at(where)) if there else None
            if size != record.size:
                found.append(f"{self.name}/{where} has {size} bytes instead of {record.size}")
        return found

    def put_checkpoint(self, manifest: Manifest, marker: bytes, blocks: Blocks) -> None:
        """Write the files, see that they are there, and only then the manifest."""
        for path, record in manifest.files.items():
            self._write(checkpoint_path(manifest.step, path), blocks(path, record))
        self._forget()
        short = self.lacks(manifest.step, manifest, digests=False)
        if short:
            raise StorageError(f"the mirror did not keep what was written: {short[0]}")
        self._write(checkpoint_path(manifest.step), [marker])

    def clear(self, step: int) -> None:
        """Remove what is there under the name."""
        if layout.checkpoint_name(step) in self._names(layout.CHECKPOINTS_FOLDER):
            self.remove(step)

    def remove(self, step: int) -> None:
        """Remove the marker, then the rest."""
        folder = self._at(checkpoint_path(step, "")).rstrip("/")
        with self._talking("remove", folder):
            if self._system.exists(f"{folder}/{layout.MANIFEST_FILE}"):
                self._system.rm_file(f"{folder}/{layout.MANIFEST_FILE}")
            self._system.rm(folder, recursive=True)
        self._forget()

    def put_model(self, manifest: Manifest, blocks: Blocks) -> None:
        """Write the model's files beside the checkpoints."""
        for path, record in manifest.files.items():
            if path.startswith(f"{layout.MODEL_FOLDER}/"):
                self._write(path, blocks(path, record))

    def journal_end(self, local: Path) -> int:
        """Compare the last piece with the same bytes of `local`."""
        chain = self._chain()
        if not chain:
            return 0
        start, end = chain[-1]
        return end if self._piece(chain[-1]) == b"".join(map(bytes, byte_range(local, start, end))) else 0

    def extend_journal(self, local: Path, held: int, end: int) -> str:
        """Write a longer last piece, and new ones behind it; the pieces of another journal are copied and removed.

        At every instant the pieces that can be read in order are a beginning of the one journal or of the other.
        """
        chain, aside = self._chain(), ""
        if chain and not held:
            aside = self._copy_pieces(self._pieces())
            self._drop_pieces(self._pieces())
            chain = []
        start = chain[-1][0] if chain else 0
        while start < end:
            stop = min(start + PIECE_BYTES, end)
            if (start, stop) not in chain:
                self._write(_piece_path((start, stop)), byte_range(local, start, stop))
            start = stop
        chain = self._chain()
        self._drop_pieces([piece for piece in self._pieces() if piece not in chain])
        return aside

    def journal_blocks(self) -> Iterator[bytes | memoryview]:
        """Yield the pieces in order, up to the first that is missing."""
        for piece in self._chain():
            yield self._piece(piece)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _forget(self) -> None:
        """Look anew next time: listings are kept by fsspec."""
        self._system.invalidate_cache()

    def _names(self, folder: str = "") -> list[str]:
        self._forget()
        where = self._at(folder).rstrip("/")
        with self._talking("list", folder or "."):
            try:
                entries = self._system.ls(where, detail=False)
            except FileNotFoundError:
                return []
        names = (str(entry).rstrip("/") for entry in entries)
        return sorted({name.rpartition("/")[2] for name in names if name != where})

    def _copy_pieces(self, pieces: list[Piece]) -> str:
        """Copy the journal to a name that is free, which is returned."""
        names, number = set(self._names()), 0
        while (folder := f"{layout.EARLIER_PREFIX}{layout.JOURNAL_FOLDER}-{number}") in names:
            number += 1
        for piece in pieces:
            self._write(_piece_path(piece, folder), [self._piece(piece)])
        return folder

    def _drop_pieces(self, pieces: list[Piece]) -> None:
        """Remove the last first, so that what is left can be read from the beginning."""
        for piece in reversed(pieces):
            self.drop(_piece_path(piece))

    def _pieces(self) -> list[Piece]:
        ends = (name.removesuffix(layout.PIECE_SUFFIX).split("-") for name in self._names(layout.JOURNAL_FOLDER))
        return sorted((int(each[0]), int(each[1])) for each in ends if len(each) == 2 and "".join(each).isdecimal())

    def _chain(self) -> list[Piece]:
        """Return the pieces that follow on each other from the beginning, of several the longest that is whole."""
        chain, reached = list[Piece](), 0
        longest = sorted(self._pieces(), key=lambda piece: (piece[0], -piece[1]))
        for start, end in longest:
            if start == reached < end and self._size(_piece_path((start, end))) == end - start:
                chain.append((start, end))
                reached = end
        return chain

    def _piece(self, piece: Piece) -> bytes:
        return read(self, _piece_path(piece))

    def _size(self, path: str) -> int | None:
        with self._talking("look at", path):
            return int(self._system.size(self._at(path)))

    def _write(self, path: str, blocks: Iterable[bytes | memoryview]) -> None:
        where = self._at(path)
        with self._talking("write", path):
            self._system.makedirs(where.rpartition("/")[0], exist_ok=True)
            with self._system.open(where, "wb") as file:
                for block in blocks:
                    file.write(bytes(block))

    @contextmanager
    def _talking(self, doing: str, path: str) -> Iterator[None]:
        """Turn whatever a file system of fsspec raises into our own errors."""
        try:
            yield
        except UnbrokenError:
            raise
        except Exception as failure:
            if isinstance(failure, FileNotFoundError) and doing == "read":
                raise DamagedError(f"{self.name}/{path} is not there") from failure
            reason = " ".join(str(failure).split()) or type(failure).__name__
            raise StorageError(
                f"cannot {doing} {self.name}/{path}: {reason}",
                next_step="check the network, the address and the rights",
            ) from failure


def _piece_path(piece: Piece, folder: str = layout.JOURNAL_FOLDER) -> str:
    return f"{folder}/{piece[0]:015d}-{piece[1]:015d}{layout.PIECE_SUFFIX}"
