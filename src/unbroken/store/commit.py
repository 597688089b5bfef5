"""Commit: the old checkpoint or the new one, never between, and training hardly waits.

The state is copied into a staging buffer at a step boundary. What only an update changes is copied by the writer's
thread while the next forward and backward passes run, and the next update waits for it (Mohan et al., CheckFreq, FAST
2021). That thread then writes aside, syncs, and renames (steps 2 to 7 of resume.md 2(c)). A thread, not a process: a
forked process would inherit the run's lock and outlive a kill. It leaves the interpreter lock alone while it copies,
hashes and writes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbroken.base.errors import StorageError
from unbroken.base.fingerprint import canonical, digest
from unbroken.store import files, layout
from unbroken.store.files import DamagedError, FileRecord
from unbroken.store.journal import Mark
from unbroken.store.manifest import (
    ForeignError,
    Manifest,
    TensorRecord,
    describe_difference,
    differences,
    read_manifest,
    stays_inside,
)
from unbroken.store.tensors import ALIGNMENT, DTYPES, Slot, arrange, bytes_of, header

SPACE_FACTOR = 1.1  # what a checkpoint needs on disk beside its own bytes: folders, rounding, the journal
SPARE_FILES = 16


@dataclass(frozen=True)
class Placed:
    """A tensor and where it goes: `file` relative to the checkpoint, `key` the name inside that file.

    `steady` promises that nothing changes it until `Checkpoints.settle` was called: it may be copied until then.
    """

    file: str
    key: str
    tensor: Tensor
    steady: bool = False


@dataclass(frozen=True)
class Image:
    """All that a checkpoint keeps: tensors by fully qualified name, documents by path, and a JSON state."""

    step: int
    tensors: Mapping[str, Placed]
    documents: Mapping[str, bytes]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class StagedFile:
    """One safetensors file, ready to be written: its header, its data in the staging buffer, names by key."""

    path: str
    header: bytes
    data: memoryview
    slots: list[Slot]
    names: dict[str, str]


@dataclass(frozen=True)
class Pending:
    """A steady tensor that is not copied yet, and torch's count of the changes to it when it was to be."""

    tensor: Tensor
    region: Tensor
    slot: Slot
    version: int

    def copy(self) -> None:
        """Copy it. Raises `RuntimeError` if it was changed: the copy would be of no step at all."""
        _copy(self.tensor, self.region, self.slot)
        if self.tensor._version != self.version:
            raise RuntimeError(f"{self.slot.key} was changed while a commit was copying it")


@dataclass(frozen=True)
class Snapshot:
    """An image that no longer changes once it is `complete`; the staging buffer is in use until it is written."""

    step: int
    tensor_files: list[StagedFile]
    documents: dict[str, bytes]
    mark: Mark
    pending: list[Pending]

    def complete(self) -> None:
        """Copy what is still to be copied. Raises `RuntimeError` if a steady tensor was changed meanwhile."""
        while self.pending:
            self.pending[-1].copy()
            self.pending.pop()

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        staged = sum(len(file.header) + len(file.data) for file in self.tensor_files)
        return staged + sum(map(len, self.documents.values()))


class Staging:
    """One buffer in host memory, kept between commits, that holds a copy of every tensor of an image."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, image: Image, mark: Mark) -> Snapshot:
        """Copy the image as it is now; its steady tensors are left for `Snapshot.complete`.

        The caller may change all other tensors as soon as this returns, and those after that. Tensors may be on any
        device and of any strides. The previous snapshot is overwritten.
        """
        documents = {**image.documents, layout.STATE_FILE: canonical(image.state) + b"\n"}
        by_file: dict[str, dict[str, str]] = {}
        for name, placed in image.tensors.items():
            taken = by_file.setdefault(placed.file, {}).setdefault(placed.key, name)
            assert taken == name, f"{taken} and {name} would both be {placed.key!r} in {placed.file}"
        for path in [*by_file, *documents]:
            assert stays_inside(path), f"{path!r} is not a path inside a checkpoint"
        assert not by_file.keys() & documents.keys(), "a document has the name of a tensor file"
        plans = {
            path: arrange({key: image.tensors[name].tensor for key, name in names.items()})
            for path, names in sorted(by_file.items())
        }
        self._grow(sum(_aligned(slots[-1].end) for slots in plans.values()), image)
        tensor_files, pending, start = [], list[Pending](), 0
        for path, slots in plans.items():
            region = self._buffer[start : start + slots[-1].end]
            for slot in slots:
                placed = image.tensors[by_file[path][slot.key]]
                if placed.steady:
                    pending.append(Pending(placed.tensor.detach(), region, slot, placed.tensor._version))
                else:
                    _copy(placed.tensor, region, slot)
            tensor_files.append(StagedFile(path, header(slots), region.numpy().data, slots, by_file[path]))
            start += _aligned(slots[-1].end)
        return Snapshot(image.step, tensor_files, documents, mark, pending[::-1])

    def _grow(self, size: int, image: Image) -> None:
        """Make the buffer hold `size` bytes; page-locked if there is a GPU to copy from."""
        if self._buffer.numel() < size:
            pinned = any(placed.tensor.is_cuda for placed in image.tensors.values())
            self._buffer = self._buffer[:0].clone()  # the old one goes first: never two at a time
            self._buffer = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
            assert self._buffer.data_ptr() % ALIGNMENT == 0


class Writer:
    """A thread for commits, at most one of which is under way."""

    def __init__(self) -> None:
        self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix="unbroken-commit")
        self._flight: futures.Future[Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether a commit is under way."""
        return self._flight is not None and not self._flight.done()

    def start(self, work: Callable[[], Any]) -> None:
        """Begin `work` on the thread; the result of the work before must have been collected."""
        assert self._flight is None, "a commit is under way"
        self._flight = self._pool.submit(work)

    def collect(self) -> list[Any]:
        """Wait for what is under way and return its result, once, in a list; raise what it raised, once."""
        if self._flight is None:
            return []
        flight = self._flight
        futures.wait([flight])  # an interrupt here must leave it in flight: its buffer is in use
        self._flight = None
        return [flight.result()]


def write_checkpoint(home: Path, snapshot: Snapshot, run_id: str, sync_journal: Callable[[], None]) -> list[str]:
    """Put a snapshot under its name in the folder `home`, durably: when this returns, the commit has happened.

    The journal is made durable before the name appears. Returns in words what stood in the way and was set aside.
    Raises `StorageError`; the checkpoints that stood before still stand, and the unfinished one is removed if the
    disk allows.
    """
    snapshot.complete()
    _preflight(home, snapshot)
    name = layout.checkpoint_name(snapshot.step)
    aside = home / f"{layout.UNFINISHED_PREFIX}{name}-{os.getpid()}-{files.nonce()}"
    try:
        files.make_folder(aside)
        manifest = _fill(aside, snapshot, run_id)
        sync_journal()
        return _publish(aside, home / name, manifest)
    except BaseException:
        files.discard(aside)
        raise


def _preflight(home: Path, snapshot: Snapshot) -> None:
    """Refuse early what a disk has no room for: a file that fails halfway helps nobody."""
    need, free = int(snapshot.size * SPACE_FACTOR), files.free_bytes(home)
    if free < need:
        raise StorageError(
            f"cannot write {home}: it needs {need / 1e6:.1f} MB and {free / 1e6:.1f} MB are free",
            next_step="free some space on that disk and run the same command again",
        )
    inodes = files.free_inodes(home)
    if inodes is not None and inodes < len(snapshot.tensor_files) + len(snapshot.documents) + SPARE_FILES:
        raise StorageError(f"cannot write {home}: only {inodes} more files fit", next_step="delete some files there")


def _fill(aside: Path, snapshot: Snapshot, run_id: str) -> Manifest:
    """Write every file of the checkpoint into the new folder `aside`, the manifest last; all of it is durable."""
    files.make_parents(aside, [*(file.path for file in snapshot.tensor_files), *snapshot.documents])
    records: dict[str, FileRecord] = {}
    tensors: dict[str, TensorRecord] = {}
    for file in snapshot.tensor_files:
        for slot in file.slots:
            own = digest(file.data[slot.begin : slot.end])
            tensors[file.names[slot.key]] = TensorRecord(file.path, slot.key, slot.dtype, slot.shape, own)
        size = len(file.header) + len(file.data)
        records[file.path] = files.create_file(aside / file.path, [file.header, file.data], size)
    for path, content in sorted(snapshot.documents.items()):
        records[path] = files.create_file(aside / path, [content])
    files.sync_parents(aside, records)
    manifest = Manifest(run_id, snapshot.step, records, tensors, snapshot.mark)
    files.create_file(aside / layout.MANIFEST_FILE, [manifest.encode()])
    files.sync_folder(aside)
    return manifest


def _publish(aside: Path, final: Path, manifest: Manifest) -> list[str]:
    """Give the finished folder its name; what has that name already is kept if it is the same, or set aside."""
    notes = []
    if not files.rename_new(aside, final):
        prefix, reason = _obstacle(final, manifest)
        if prefix:
            moved = files.take_place(aside, final, prefix)
            notes.append(f"{final.name}: {reason}; moved to {moved.name}")
        else:
            files.remove_tree(aside)
    files.sync_folder(final.parent)  # the commit point
    return notes


def _obstacle(final: Path, manifest: Manifest) -> tuple[str, str]:
    """Say where the folder that has our name must go and why; ("", "") if it is this very checkpoint, intact."""
    try:
        standing = read_manifest(final, manifest.run_id)
    except ForeignError as foreign:
        return layout.FOREIGN_PREFIX, foreign.what
    except DamagedError as damage:
        return layout.BROKEN_PREFIX, damage.what
    if not standing.same_content(manifest):
        return layout.BROKEN_PREFIX, "this step came out differently before"
    found = differences(final, standing)
    return (layout.BROKEN_PREFIX, found[0]) if found else ("", "")


def publish_model(checkpoint: Path, root: Path) -> dict[str, str]:
    """Place the model of a checkpoint as the finished model of the run at `root`: whole or not at all.

    Returns the SHA-256 of each weights file, by its path inside the model folder. Doing it again changes nothing.
    Only for the holder of the run's lock. Raises `DamagedError` if the checkpoint does not hold what was written,
    and `StorageError`.
    """
    inside = f"{layout.MODEL_FOLDER}/"
    records = read_manifest(checkpoint).files
    wanted = {path.removeprefix(inside): record for path, record in records.items() if path.startswith(inside)}
    final = root / layout.MODEL_FOLDER
    files.sweep(root, (layout.UNFINISHED_PREFIX, layout.TRASH_PREFIX))
    if wanted and not _holds(final, wanted):
        aside = root / f"{layout.UNFINISHED_PREFIX}{layout.MODEL_FOLDER}-{files.nonce()}"
        try:
            _copy_model(checkpoint / layout.MODEL_FOLDER, aside, wanted)
            _place_model(aside, final)
        except BaseException:
            files.discard(aside)
            raise
    files.sync_folder(root)  # also when it was there: whoever placed it may have died before this
    return {path: _sha256(final, path) for path in sorted(wanted) if path.endswith(layout.WEIGHTS_SUFFIX)}


def _place_model(aside: Path, final: Path) -> None:
    """Give a finished copy the model's name; an earlier, different model goes once the new one is durable."""
    if files.rename_new(aside, final):
        return
    if files.exchange(aside, final):
        files.sync_folder(final.parent)
        files.remove_tree(aside)
    else:
        files.remove_tree(final)
        files.rename_new(aside, final)


def _holds(folder: Path, wanted: Mapping[str, FileRecord]) -> bool:
    try:
        return all(files.digest_file(folder, path) == record for path, record in wanted.items())
    except DamagedError:
        return False


def _copy_model(source: Path, aside: Path, wanted: Mapping[str, FileRecord]) -> None:
    """Copy the files of a checkpoint's model, durably, comparing digests on the way."""
    files.make_folder(aside)
    files.make_parents(aside, wanted)
    for path, record in wanted.items():
        with files.opened(source, path) as (handle, size):
            copied = files.create_file(aside / path, files.read_blocks(handle, size, source / path), record.size)
        if copied != record:
            raise DamagedError(describe_difference(source / path, record, copied))
    files.sync_parents(aside, wanted)
    files.sync_folder(aside)


def _sha256(folder: Path, path: str) -> str:
    state = hashlib.sha256()
    with files.opened(folder, path) as (handle, size):
        for block in files.read_blocks(handle, size, folder / path):
            state.update(block)
    return state.hexdigest()


@torch.no_grad()
def _copy(tensor: Tensor, region: Tensor, slot: Slot) -> None:
    """Copy one tensor to its place, on this thread alone.

    Measured on two busy cores, 272 MB: 18 to 34 ms so, 25 to 900 ms with torch's own copy, whose threads wait for
    each other at every tensor.
    """
    if slot.begin == slot.end:
        return
    target = region[slot.begin : slot.end]
    if tensor.device.type == "cpu":
        target.numpy()[:] = bytes_of(tensor.contiguous())
    else:
        target.view(DTYPES[slot.dtype]).view(slot.shape).copy_(tensor)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
