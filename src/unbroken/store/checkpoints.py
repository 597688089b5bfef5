"""The checkpoints of a run: commit one, restore the newest that verifies, keep enough of them, lose none."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from unbroken.base.errors import CannotContinueError, StorageError
from unbroken.base.fingerprint import digest
from unbroken.store import files, layout
from unbroken.store.commit import Image, Placed, Snapshot, Staging, Writer, publish_model, write_checkpoint
from unbroken.store.files import DamagedError, FileRecord
from unbroken.store.journal import Journal, Mark
from unbroken.store.manifest import (
    ForeignError,
    Manifest,
    TensorRecord,
    describe_difference,
    differences,
    read_manifest,
)
from unbroken.store.tensors import TensorFile, dtype_name, read_file

__all__ = ["Checkpoints", "Committed", "Image", "Placed", "Restored", "publish_model", "read_checkpoint"]

MIN_KEPT = 2
LEFTOVERS = (layout.UNFINISHED_PREFIX, layout.TRASH_PREFIX)


@dataclass(frozen=True)
class Committed:
    """A checkpoint that is durable under its name. `notes` say what stood in its way or could not be tidied up."""

    step: int
    snapshot_seconds: float  # how long the caller waited for the copy
    write_seconds: float  # from then until the commit point
    num_bytes: int
    removed: tuple[int, ...]
    notes: tuple[str, ...]
    spared: frozenset[int] = frozenset()  # older steps this one cannot do without


@dataclass
class Restored:
    """The verified content of one checkpoint: every tensor in fresh storage aligned to 64 bytes, by full name."""

    step: int
    tensors: dict[str, Tensor]
    documents: dict[str, bytes]
    state: dict[str, Any]
    mark: Mark
    set_aside: list[str] = field(default_factory=list)  # what was passed over on the way here, and why


class Checkpoints:
    """The folder `checkpoints/` of the run at `root`. Creating this object touches nothing on disk.

    `commit` and `restore()` are for the process that holds the run's lock; `steps`, `verify` and `restore(step)`
    only read. `keep` verified checkpoints, never fewer than two, survive each commit.
    """

    def __init__(self, root: Path, run_id: str, journal: Journal, keep: int = MIN_KEPT) -> None:
        self.root = root
        self.home = root / layout.CHECKPOINTS_FOLDER
        self.run_id = run_id
        self.keep = max(keep, MIN_KEPT)
        self.pinned: Callable[[], Collection[int]] = frozenset  # steps someone else reads just now
        self.notes: list[str] = []  # what the last `restore()` set aside or left alone, and why
        self._journal = journal
        self._staging = Staging()
        self._writer = Writer()
        self._copied = threading.Event()
        self._copied.set()
        self._blocked = 0.0  # seconds the caller has waited for the commit under way
        self._finished: list[Committed] = []
        self._sound: set[int] = set()  # steps whose digests this process wrote or checked

    @property
    def newest_sound(self) -> int | None:
        """The highest step whose checkpoint this process wrote or found sound; retention never removes it."""
        return max(self._sound, default=None)

    @property
    def busy(self) -> bool:
        """Whether a commit is under way, so that another would wait for it."""
        return self._writer.busy

    def commit(self, image: Image, mark: Mark | None = None, *, spare: Collection[int] = ()) -> None:
        """Begin to copy and write `image`; `settle` before its steady tensors change, `poll` or `wait` for the end.

        `mark` is the place in the journal behind this step's record; by default the journal's end.
        Steps in `spare` survive the retention that follows. Waits for a commit under way; if that one fails,
        raises its `StorageError` and takes no copy.
        """
        self._collect()
        began = time.perf_counter()
        snapshot, spared = self._staging.take(image, mark or self._journal.mark()), frozenset(spare)
        self._copied.clear()
        self._writer.start(lambda: self._carry_out(snapshot, spared))
        self._blocked = time.perf_counter() - began

    def settle(self) -> None:
        """Wait until the commit under way, if any, has copied all it needs; afterwards any tensor may change."""
        if not self._copied.is_set():
            began = time.perf_counter()
            self._copied.wait()
            self._blocked += time.perf_counter() - began

    def poll(self) -> list[Committed]:
        """Return the commits that became durable since the last call. Raises the failure of one that did not."""
        if not self._writer.busy:
            self._collect()
        finished, self._finished = self._finished, []
        return finished

    def wait(self) -> list[Committed]:
        """As `poll`, after the commit under way has ended."""
        self._collect()
        return self.poll()

    def steps(self) -> list[int]:
        """Return the steps of this run's checkpoints, sound or not, in ascending order."""
        return [step for step in self._numbered() if not self._is_foreign(step)]

    def verify(self, step: int) -> list[str]:
        """Return in words all that is wrong with a checkpoint, every digest compared; nothing if it is good."""
        folder = self._folder(step)
        try:
            return differences(folder, read_manifest(folder, self.run_id))
        except CannotContinueError as problem:
            return [problem.what]

    def set_aside_from(self, step: int) -> list[str]:
        """Move the checkpoints of `step` and later out of the way, as `.drifted-*`; return their new names.

        For a run that goes on with other results: it must not fall back to those of before.
        """
        moved = []
        for later in [number for number in self.steps() if number >= step]:
            moved.append(files.set_aside(self._folder(later), layout.DRIFTED_PREFIX).name)
            self._sound.discard(later)
        return moved

    def put_aside_if_broken(self, step: int) -> str:
        """Compare every digest of a checkpoint; say in words that it is gone or was moved to `.broken-*`, and why."""
        if step not in self.steps():
            return "is gone"
        folder = self._folder(step)
        try:
            problems = differences(folder, read_manifest(folder, self.run_id))
        except DamagedError as damage:
            problems = [damage.what]
        if not problems:
            self._sound.add(step)
            return ""
        self._sound.discard(step)
        moved = files.set_aside(folder, layout.BROKEN_PREFIX)
        return f"is broken ({problems[0]}; moved to {moved.name})"

    def drifted(self) -> list[str]:
        """Return the names of the checkpoints that were put aside when results drifted."""
        return [name for name in files.list_folder(self.home) if name.startswith(layout.DRIFTED_PREFIX)]

    def restore(self, step: int | None = None) -> Restored | None:
        """Return the newest checkpoint that verifies, or None if the run never made one.

        Broken ones are moved to `.broken-*`, those of other runs left alone, and both named in `set_aside`. Raises
        `CannotContinueError` if there are some and none verifies. A given `step` is returned or refused with the
        same error, and nothing is moved.
        """
        self._collect()
        self.notes = []
        if step is not None:
            return self._restore_exactly(step)
        self.notes = files.sweep(self.home, LEFTOVERS)
        restored = self.restore_before(None)
        if restored is None:
            self._refuse_if_broken()
        return restored

    def restore_before(self, step: int | None) -> Restored | None:
        """Return the newest checkpoint before `step` that verifies, or None; broken ones are moved as by `restore`."""
        for number in reversed(self._numbered()):
            if step is not None and number >= step:
                continue
            folder = self._folder(number)
            try:
                restored = read_checkpoint(folder, self.run_id)
            except ForeignError as foreign:
                self.notes.append(f"{foreign.what}; it was left alone")
            except DamagedError as damage:
                moved = files.set_aside(folder, layout.BROKEN_PREFIX)
                self.notes.append(f"checkpoint of step {number}: {damage.what}; moved to {moved.name}")
            else:
                self._sound.add(number)
                restored.set_aside = list(self.notes)
                return restored
        return None

    def _collect(self) -> None:
        """Wait for the commit under way and keep what became of it, with what the caller waited for it."""
        self._finished += [replace(done, snapshot_seconds=self._blocked) for done in self._writer.collect()]

    def _carry_out(self, snapshot: Snapshot, spare: frozenset[int]) -> Committed:
        """Finish the copy, write, publish, retire: runs on the writer's thread."""
        began = time.perf_counter()
        try:
            snapshot.complete()
        finally:
            self._copied.set()
        self._journal.require_held()  # whoever is at this path now must not find its work swept away
        try:
            files.make_folders(self.home)
            files.sync_folder(self.root)  # whoever made the folder may have died before it was durable
            notes = files.sweep(self.home, LEFTOVERS)
            notes += write_checkpoint(self.home, snapshot, self.run_id, self._journal.sync)
        except StorageError as failure:
            self._journal.require_held()  # that it was lost explains the failure, and matters more
            raise self._explain(snapshot.step, failure) from failure
        written = time.perf_counter() - began
        self._sound.add(snapshot.step)
        removed, left = self._retire(snapshot.step, spare)
        return Committed(snapshot.step, 0.0, written, snapshot.size, tuple(removed), (*notes, *left), spare)

    def _retire(self, committed: int, spare: frozenset[int]) -> tuple[list[int], list[str]]:
        """Remove what is older than `keep` checkpoints that verify; return it, and what would not go.

        Those after the step just committed do not count and stay: they are of steps that are made again, and go by
        other names should results drift. The commit has happened by now: nothing that fails here is a failure of it.
        """
        removed, problems, sound = list[int](), list[str](), 0
        spare |= frozenset(self.pinned())
        try:
            steps = self.steps()
        except StorageError as failure:
            return removed, [str(failure)]
        for step in reversed([step for step in steps if step <= committed]):
            if sound < self.keep:
                sound += self._is_sound(step)
            elif step not in spare:
                try:
                    files.remove_tree(self._folder(step))
                    removed.append(step)
                except StorageError as failure:
                    problems.append(str(failure))
        return removed, problems

    def _is_sound(self, step: int) -> bool:
        """Compare digests once per process, and names and sizes ever after."""
        folder = self._folder(step)
        try:
            found = differences(folder, read_manifest(folder, self.run_id), digests=step not in self._sound)
        except (CannotContinueError, StorageError):
            return False
        if not found:
            self._sound.add(step)
        return not found

    def _explain(self, step: int, failure: StorageError) -> StorageError:
        """Say which checkpoint was not made and which one, checked by this process, still stands."""
        newest = self.newest_sound  # not asked of the disk, which has just refused
        stands = "" if newest is None else f"that of step {newest} stands"
        what = f"the checkpoint of step {step} was not made: {failure.what}"
        return StorageError(what, why=stands, next_step=failure.next_step)

    def _restore_exactly(self, step: int) -> Restored:
        steps = self.steps()
        there = ", ".join(map(str, steps)) or "none"
        if step not in steps:
            raise CannotContinueError(
                f"{self.root} has no checkpoint of step {step}", next_step=f"steps there are: {there}"
            )
        try:
            restored = read_checkpoint(self._folder(step), self.run_id)
        except DamagedError as damage:
            raise CannotContinueError(
                f"the checkpoint of step {step} is broken: {damage.what}", next_step=f"steps there are: {there}"
            ) from damage
        self._sound.add(step)
        return restored

    def _refuse_if_broken(self) -> None:
        """Refuse to begin again where there once was a checkpoint: hours of training may be in it."""
        broken = [name for name in files.list_folder(self.home) if name.startswith(layout.BROKEN_PREFIX)]
        if broken:
            raise CannotContinueError(
                f"no checkpoint of {self.root} verifies",
                why="; ".join(self.notes) or f"broken ones were set aside before: {', '.join(broken)}",
                next_step="put an intact copy back into checkpoints/, or start over with --restart",
            )

    def _numbered(self) -> list[int]:
        steps = (layout.step_of(name) for name in files.list_folder(self.home))
        return sorted(step for step in steps if step is not None)

    def _is_foreign(self, step: int) -> bool:
        try:
            read_manifest(self._folder(step), self.run_id)
        except ForeignError:
            return True
        except (CannotContinueError, StorageError):
            return False
        return False

    def _folder(self, step: int) -> Path:
        return self.home / layout.checkpoint_name(step)


def read_checkpoint(folder: Path, run_id: str | None = None) -> Restored:
    """Read a checkpoint whole and verify every byte of it against its manifest; nothing on disk changes.

    Raises `DamagedError` naming the file and, where it can, the tensor; `ForeignError` if it is not of `run_id`.
    """
    manifest = read_manifest(folder, run_id)
    for text in differences(folder, manifest, digests=False):  # before memory is taken for what a file claims to hold
        raise DamagedError(text)
    by_file: dict[str, dict[str, TensorRecord]] = {}
    for name, record in manifest.tensors.items():
        by_file.setdefault(record.file, {})[name] = record
    tensors: dict[str, Tensor] = {}
    for path, records in by_file.items():
        tensors |= _checked_tensors(folder / path, read_file(folder, path), manifest.files[path], records)
    documents = {path: _read_document(folder, path, manifest) for path in manifest.files if path not in by_file}
    state = _parse_state(documents.pop(layout.STATE_FILE, b""), folder)
    return Restored(manifest.step, tensors, documents, state, manifest.journal)


def _checked_tensors(
    path: Path, content: TensorFile, expected: FileRecord, records: Mapping[str, TensorRecord]
) -> dict[str, Tensor]:
    """Return the tensors of one file by full name once all of them, and nothing else, are what was written."""
    keys = {record.key: name for name, record in records.items()}
    if keys.keys() != content.tensors.keys() or len(keys) != len(records):
        odd = sorted(keys.keys() ^ content.tensors.keys())
        raise DamagedError(f"{path} does not hold the tensors that were written: {', '.join(odd[:3])}")
    tensors = {}
    for name, record in records.items():
        tensor = content.tensors[record.key]
        actual = (dtype_name(tensor.dtype), tuple(tensor.shape), content.digests[record.key])
        if actual != (record.dtype, record.shape, record.digest):
            raise DamagedError(f"{path}: tensor {name!r} does not hold what was written (digest differs)")
        tensors[name] = tensor
    if content.record != expected:
        raise DamagedError(describe_difference(path, expected, content.record))
    return tensors


def _parse_state(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        state = json.loads(content)
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise DamagedError(f"{folder / layout.STATE_FILE} is missing or is not an object")
    return state


def _read_document(folder: Path, path: str, manifest: Manifest) -> bytes:
    content = files.read_whole(folder, path)
    actual = FileRecord(len(content), digest(content))
    if actual != manifest.files[path]:
        raise DamagedError(describe_difference(folder / path, manifest.files[path], actual))
    return content
