"""Where a copy of a run lies, and how a checkpoint gets from one place to another: every byte compared on the way.

The layout is that of a run. A checkpoint is there once its manifest is: in a folder all of it appears by one rename.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import xxhash

from unbroken.base.errors import ConfigError, StorageError
from unbroken.store import files, layout
from unbroken.store.files import DamagedError, FileRecord
from unbroken.store.lock import RunLock
from unbroken.store.manifest import ForeignError, Manifest, decode, describe_difference, differences
from unbroken.store.run import read_run
from unbroken.store.system import sync_file

PIECE_BYTES = 4 << 20
BEGUN = {  # what lies in a mirror beside the mark that it was begun; its run.json perhaps, and perhaps half of it
    layout.RUN_FILE,
    layout.DATA_DIGESTS_FILE,
    layout.CONFIG_FILE,
    layout.JOURNAL_FILE,
    layout.JOURNAL_FOLDER,
    layout.CHECKPOINTS_FOLDER,
}
Tick = Callable[[], None]


class Place(Protocol):
    """A copy of a run, to be written by one process at a time. Paths are relative, with `/`.

    Every method raises `StorageError` where the place refuses or cannot be reached, and reading `DamagedError` for
    what is not there.
    """

    name: str
    movable: bool  # whether a whole run in it can be renamed
    near: bool  # whether `lacks` compares digests when asked to

    def hold(self) -> None:
        """Keep other processes out, where the place can. Raises `BusyError` if one is in it."""

    def release(self) -> None:
        """Let others in again."""

    def document(self) -> dict[str, Any] | None:
        """Return the document of the run that is here, as `read_run` does; None if there is none."""

    def require_home(self) -> None:
        """Raise `StorageError` if what the place would be made in is not there: a disk that is not mounted, say."""

    def names(self) -> list[str]:
        """Return the names of the files and folders that lie here."""

    def blocks(self, path: str) -> Iterator[bytes | memoryview]:
        """Yield the content of a file; each block is gone with the next."""

    def put(self, path: str, content: bytes) -> None:
        """Give a file its content, whole or not at all."""

    def drop(self, path: str) -> None:
        """Remove a file that is there."""

    def steps(self) -> list[int]:
        """Return in ascending order the steps something is here of, complete or not."""

    def lacks(self, step: int, manifest: Manifest, *, digests: bool) -> list[str]:
        """Return in words what a checkpoint lacks: names and sizes, and with `digests` the bytes where it is near."""

    def put_checkpoint(self, manifest: Manifest, marker: bytes, blocks: Blocks) -> None:
        """Write a checkpoint; it is there when this returns and not before its last file is."""

    def clear(self, step: int) -> None:
        """Make room for a checkpoint under a name that is taken by something else, or by half of one."""

    def remove(self, step: int) -> None:
        """Remove a checkpoint, its name or marker first."""

    def put_model(self, manifest: Manifest, blocks: Blocks) -> None:
        """Place the finished model."""

    def journal_end(self, local: Path) -> int:
        """Return how many bytes of `local` are here already; 0 if what is here is something else."""

    def extend_journal(self, local: Path, held: int, end: int) -> str:
        """Hold the first `end` bytes of `local`, `held` of which are here already.

        With none held, a journal that is here is another one: it is kept, and the name it has then returned.
        """

    def journal_blocks(self) -> Iterator[bytes | memoryview]:
        """Yield the journal from its beginning, as far as it is here."""


Blocks = Callable[[str, FileRecord], Iterator[bytes | memoryview]]  # of a file of a checkpoint, and what it must be


def open_place(target: str) -> Place:
    """Return the place a path or URL names; touches nothing.

    Raises `ConfigError` if what is needed to reach it is not installed.
    """
    if target.startswith("file://"):
        return FolderPlace(Path(target.removeprefix("file://")))
    if "://" in target:
        from unbroken.store.url_place import UrlPlace

        return UrlPlace(target)
    return FolderPlace(Path(target))


def checkpoint_path(step: int, file: str = layout.MANIFEST_FILE) -> str:
    """Return where a file of a checkpoint lies in a run."""
    return f"{layout.CHECKPOINTS_FOLDER}/{layout.checkpoint_name(step)}/{file}"


def read(place: Place, path: str) -> bytes:
    """Return the content of a small file. Raises `DamagedError` if it is not there."""
    return b"".join(map(bytes, place.blocks(path)))


def read_marker(place: Place, step: int, run_id: str) -> tuple[Manifest, bytes]:
    """Return the manifest of a checkpoint and its bytes.

    Raises `DamagedError` if there is none or not a sound one of this step, `ForeignError` if it is another run's.
    """
    path = checkpoint_path(step)
    content = read(place, path)
    manifest = decode(content, f"{place.name}/{path}")
    if manifest.run_id != run_id:
        raise ForeignError(f"{place.name}/{path} belongs to another run ({manifest.run_id})")
    if manifest.step != step:
        raise DamagedError(f"{place.name}/{path} is that of step {manifest.step}")
    return manifest, content


def verified(place: Place, step: int, tick: Tick) -> Blocks:
    """Return what reads the files of a checkpoint and raises `DamagedError` at the end of one that is not as recorded.

    `tick` is called before each block; what it raises ends the reading.
    """

    def blocks(file: str, record: FileRecord) -> Iterator[bytes | memoryview]:
        path, state, size = checkpoint_path(step, file), xxhash.xxh3_128(), 0
        for block in place.blocks(path):
            tick()
            state.update(block)
            size += len(block)
            yield block
        found = FileRecord(size, state.hexdigest())
        if found != record:
            raise DamagedError(describe_difference(Path(place.name) / path, record, found))

    return blocks


def copy_checkpoint(
    source: Place, target: Place, step: int, run_id: str, tick: Tick = lambda: None, *, digests: bool = False
) -> bool:
    """Make `target` hold the checkpoint that `source` holds, every byte compared on the way; return if it was written.

    One that is there already is left, if its files are there too (with `digests`: are as they were written).
    Raises `DamagedError` if the source's is not whole, and `StorageError`.
    """
    manifest, marker = read_marker(source, step, run_id)
    if _stands(target, manifest, digests=digests):
        return False
    target.clear(step)
    target.put_checkpoint(manifest, marker, verified(source, step, tick))
    return True


def _stands(place: Place, manifest: Manifest, *, digests: bool) -> bool:
    try:
        standing, _ = read_marker(place, manifest.step, manifest.run_id)
    except (DamagedError, ForeignError):
        return False
    return standing.same_content(manifest) and not place.lacks(manifest.step, standing, digests=digests)


class FolderPlace:
    """A folder: a run in every respect, written with the same care."""

    movable = near = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)
        self._home = root / layout.CHECKPOINTS_FOLDER
        self._lock: RunLock | None = None

    def hold(self) -> None:
        """Take the run's lock in the folder, made now if it is not there, but not what it lies in."""
        if self._lock is None:
            self.require_home()
            files.make_folders(self.root)
            lock = RunLock(self.root)
            lock.acquire()
            self._lock = lock

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def document(self) -> dict[str, Any] | None:
        """As `read_run`."""
        return read_run(self.root)

    def require_home(self) -> None:
        """Look for the folder, or the one above it."""
        if not self.root.exists() and not self.root.parent.is_dir():
            raise unmounted(self.name, str(self.root.parent))

    def names(self) -> list[str]:
        """Return what the folder holds. Raises `ConfigError` if it is a file."""
        if os.path.lexists(self.root) and not self.root.is_dir():
            raise ConfigError(f"mirror {self.root} is a file", next_step="choose another folder")
        return files.list_folder(self.root)

    def blocks(self, path: str) -> Iterator[bytes | memoryview]:
        """Yield a file's content."""
        with files.opened(self.root, path) as (handle, size):
            yield from files.read_blocks(handle, size, self.root / path)

    def put(self, path: str, content: bytes) -> None:
        """Replace a file durably."""
        files.replace_file(self.root / path, content)

    def drop(self, path: str) -> None:
        """Remove a file."""
        files.discard(self.root / path)

    def steps(self) -> list[int]:
        """Return the steps there are folders of."""
        return steps_among(files.list_folder(self._home))

    def lacks(self, step: int, manifest: Manifest, *, digests: bool) -> list[str]:
        """Compare with the manifest."""
        return differences(self._folder(step), manifest, digests=digests)

    def put_checkpoint(self, manifest: Manifest, marker: bytes, blocks: Blocks) -> None:
        """Write aside, sync, rename, sync: afterwards it is there for good."""
        if not self.root.is_dir():
            raise unmounted(self.name, self.name)
        files.make_folders(self._home)
        files.sweep(self._home, (layout.UNFINISHED_PREFIX, layout.TRASH_PREFIX))
        final = self._folder(manifest.step)
        aside = self._home / f"{layout.UNFINISHED_PREFIX}{final.name}-{os.getpid()}-{files.nonce()}"
        try:
            files.make_folder(aside)
            files.make_parents(aside, manifest.files)
            for path, record in manifest.files.items():
                files.create_file(aside / path, blocks(path, record), record.size)
            files.sync_parents(aside, manifest.files)
            files.create_file(aside / layout.MANIFEST_FILE, [marker])
            files.sync_folder(aside)
            if not files.rename_new(aside, final):
                raise StorageError(f"{final} appeared while it was written", next_step="see who else writes there")
        except BaseException:
            files.discard(aside)
            raise
        files.sync_folder(self._home)

    def clear(self, step: int) -> None:
        """Move what has the name aside."""
        if os.path.lexists(self._folder(step)):
            files.set_aside(self._folder(step), layout.BROKEN_PREFIX)

    def remove(self, step: int) -> None:
        """Remove a checkpoint."""
        files.remove_tree(self._folder(step))

    def put_model(self, manifest: Manifest, blocks: Blocks) -> None:
        """Place the model from the checkpoint that is here."""
        from unbroken.store.commit import publish_model  # brings torch

        publish_model(self._folder(manifest.step), self.root)

    def journal_end(self, local: Path) -> int:
        """Compare the last piece of the file with the same bytes of `local`."""
        try:
            size = (self.root / layout.JOURNAL_FILE).stat().st_size
        except FileNotFoundError:
            return 0
        start = max(0, size - PIECE_BYTES)
        mine = b"".join(map(bytes, byte_range(self.root / layout.JOURNAL_FILE, start, size)))
        return size if mine == b"".join(map(bytes, byte_range(local, start, size))) else 0

    def extend_journal(self, local: Path, held: int, end: int) -> str:
        """Append, and sync; another journal changes places with the new one."""
        path = self.root / layout.JOURNAL_FILE
        if held == 0 and path.exists() and path.stat().st_size:
            new = path.with_name(f"{layout.UNFINISHED_PREFIX}{path.name}-{files.nonce()}")
            try:
                files.create_file(new, byte_range(local, 0, end))
                return files.take_place(new, path, layout.EARLIER_PREFIX).name
            except BaseException:
                files.discard(new)
                raise
        handle = files.open_append(path)
        try:
            with files.refusals("append to", path):
                files.cut_file(handle, held)
                for block in byte_range(local, held, end):
                    files.write_fully(handle, memoryview(block))
                sync_file(handle)
        finally:
            with suppress(OSError):
                os.close(handle)
        return ""

    def journal_blocks(self) -> Iterator[bytes | memoryview]:
        """Yield the file; nothing if there is none."""
        if (self.root / layout.JOURNAL_FILE).exists():
            yield from self.blocks(layout.JOURNAL_FILE)

    def _folder(self, step: int) -> Path:
        return self._home / layout.checkpoint_name(step)


def unmounted(name: str, missing: str) -> StorageError:
    """Return the failure to find what a mirror lies in."""
    return StorageError(
        f"the mirror {name} cannot be reached: {missing} is not there",
        why="a disk that is not mounted looks like this, and a copy made now would lie elsewhere",
        next_step=f"mount it, or make {missing}",
    )


def steps_among(names: Iterable[str]) -> list[int]:
    """Return in ascending order the steps that checkpoint folders of these names are of."""
    steps = (layout.step_of(name) for name in names)
    return sorted(step for step in steps if step is not None)


def byte_range(path: Path, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes `start` to `end` of a local file, or as many of them as there are."""
    with files.reading(path), path.open("rb") as file:
        file.seek(start)
        while start < end and (block := file.read(min(files.BLOCK_BYTES, end - start))):
            start += len(block)
            yield block
