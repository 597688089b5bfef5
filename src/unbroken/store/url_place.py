"""A mirror wherever fsspec reaches: an object store, another machine. There is no rename and no appending there.

So the files of a checkpoint come first and the manifest, the commit marker, last; and the journal lies in pieces of a
few MiB, each named by the byte it begins at, only the last of which is ever written again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unbroken.base.errors import ConfigError, StorageError, UnbrokenError
from unbroken.store import files, layout
from unbroken.store.files import DamagedError
from unbroken.store.manifest import Manifest
from unbroken.store.place import PIECE_BYTES, Blocks, byte_range, checkpoint_path, read, steps_among, unmounted
from unbroken.store.run import decode_run


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
        """Read and check run.json."""
        if layout.RUN_FILE not in self._names():
            return None
        return decode_run(read(self, layout.RUN_FILE), f"{self.name}/{layout.RUN_FILE}")

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
        pieces = self._pieces()
        if not pieces:
            return 0
        start = pieces[-1]
        mine = read(self, _piece(start))
        return start + len(mine) if mine == b"".join(map(bytes, byte_range(local, start, start + len(mine)))) else 0

    def extend_journal(self, local: Path, held: int, end: int) -> str:
        """Write the last piece again, longer, and new ones behind it; the pieces of another journal are copied first.

        At every instant the pieces that can be read in order are a beginning of the one journal or of the other.
        """
        pieces, aside = self._pieces(), ""
        if pieces and not held:
            aside = self._copy_pieces(pieces)
            for stale in reversed(pieces[1:]):
                self.drop(_piece(stale))
        start = pieces[-1] if held and pieces else 0
        while start < end:
            stop = min(start + PIECE_BYTES, end)
            self._write(_piece(start), byte_range(local, start, stop))
            start = stop
        return aside

    def journal_blocks(self) -> Iterator[bytes | memoryview]:
        """Yield the pieces in order, up to the first that is missing."""
        reached = 0
        for start in self._pieces():
            if start > reached:
                return
            if start == reached:
                for block in self.blocks(_piece(start)):
                    reached += len(block)
                    yield block

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

    def _copy_pieces(self, pieces: list[int]) -> str:
        """Copy the journal to a name that is free, which is returned."""
        names, number = set(self._names()), 0
        while (folder := f"{layout.EARLIER_PREFIX}{layout.JOURNAL_FOLDER}-{number}") in names:
            number += 1
        for start in pieces:
            self._write(_piece(start, folder), self.blocks(_piece(start)))
        return folder

    def _pieces(self) -> list[int]:
        names = (name.removesuffix(layout.PIECE_SUFFIX) for name in self._names(layout.JOURNAL_FOLDER))
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

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


def _piece(start: int, folder: str = layout.JOURNAL_FOLDER) -> str:
    return f"{folder}/{start:015d}{layout.PIECE_SUFFIX}"
