"""A new run from the state of another: the one is only read, the other is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from unbroken.base.errors import BusyError, CannotContinueError, ConfigError
from unbroken.base.fingerprint import canonical, digest
from unbroken.run.folder import FORK, RunFolder
from unbroken.run.job import Job
from unbroken.run.preflight import existing_ancestor, require_new_folder, require_writable
from unbroken.run.state import held_tensors
from unbroken.store import files, layout
from unbroken.store.checkpoints import Image, Placed, Restored, read_checkpoint
from unbroken.store.files import DamagedError
from unbroken.store.lock import RunLock
from unbroken.store.manifest import ForeignError, read_manifest
from unbroken.store.run import is_run, read_run


@dataclass(frozen=True)
class Source:
    """The checkpoint a fork begins with, verified; `manifest` is the digest of its MANIFEST.json."""

    root: Path
    document: dict[str, Any]
    folder: Path
    restored: Restored
    manifest: str
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """How many steps were finished."""
        return self.restored.step

    @property
    def best(self) -> dict[str, Any] | None:
        """The best evaluation up to here."""
        best = json.loads(self.restored.documents[layout.SEGMENT_FILE])["best"]
        return dict(best) if best else None


def read_source(root: Path, step: int | None) -> Source:
    """Read the checkpoint of `step`, or the newest that verifies; nothing is moved, written or locked.

    Raises `CannotContinueError` if the one asked for is missing or broken, or if none verifies.
    """
    document = read_run(root)
    if document is None:
        raise ConfigError(f"{root} is no run (it has no {layout.RUN_FILE})")
    home = root / layout.CHECKPOINTS_FOLDER
    steps = sorted(number for name in files.list_folder(home) if (number := layout.step_of(name)) is not None)
    there = ", ".join(map(str, steps)) or "none"
    if step is not None and step not in steps:
        raise CannotContinueError(f"{root} has no checkpoint of step {step}", next_step=f"steps there are: {there}")
    notes: list[str] = []
    for number in [step] if step is not None else reversed(steps):
        try:
            return _read(root, document, home / layout.checkpoint_name(number), notes)
        except (DamagedError, ForeignError) as damage:
            notes.append(f"the checkpoint of step {number} was passed over: {damage.what}")
            if step is not None:
                raise CannotContinueError(
                    f"the checkpoint of step {step} is broken: {damage.what}",
                    next_step=f"leave @{step} out for the newest one that verifies; steps there are: {there}",
                ) from damage
    if notes:
        raise CannotContinueError(f"no checkpoint of {root} verifies", why="; ".join(notes))
    raise CannotContinueError(f"{root} has no checkpoint yet", next_step="let it reach its first commit")


def _read(root: Path, document: dict[str, Any], folder: Path, notes: list[str]) -> Source:
    restored = read_checkpoint(folder, document["run_id"])
    manifest = digest(files.read_whole(folder, layout.MANIFEST_FILE))
    return Source(root, document, folder, restored, manifest, tuple(notes))


def copied(source: Source) -> Image:
    """Return the image of a checkpoint as it is, every tensor at its place."""
    places = read_manifest(source.folder, source.document["run_id"]).tensors
    tensors = {
        name: Placed(places[name].file, places[name].key, tensor) for name, tensor in source.restored.tensors.items()
    }
    return Image(source.step, tensors, source.restored.documents, source.restored.state)


def begun(image: Image, best: Mapping[str, Any] | None) -> Image:
    """Return the image as that of a run no segment of which has begun."""
    segment = canonical({"segment": 0, "best": dict(best) if best else None})
    return replace(image, documents={**image.documents, layout.SEGMENT_FILE: segment})


def untrained(job: Job, step: int, movable: Mapping[str, bool]) -> list[tuple[Parameter, Tensor]]:
    """Return the parameters that no step up to `step` has trained and a later one will, with copies of their values."""

    def trains(number: int, name: str) -> bool:
        chosen = job.phases[number].trains
        return movable[name] if chosen is None else chosen(name)

    begun = [number for number in range(len(job.phases)) if job.first_step(number) < step]
    ahead = range(len(begun), len(job.phases))
    return [
        (parameter, parameter.detach().clone())
        for name, parameter in held_tensors(job.modules)
        if isinstance(parameter, Parameter)
        and any(trains(number, name) for number in ahead)
        and not any(trains(number, name) for number in begun)
    ]


def parent_of(source: Source, changed: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Return what a fork records of the run it comes from, and of that run's own parent."""
    return {
        "kind": FORK,
        "run": str(source.root),
        "run_id": source.document["run_id"],
        "step": source.step,
        "manifest": source.manifest,
        "changed": {key: list(values) for key, values in changed.items()},
        "parent": source.document.get("parent"),
    }


def require_new_run(target: Path) -> None:
    """Raise `ConfigError` unless `target` is absent or empty, outside any run, in a place that can be written in."""
    if is_run(target):
        raise ConfigError(f"{target} is a run already", next_step="choose a new or an empty folder")
    require_new_folder(target)
    if os.path.isdir(target) and os.listdir(target):
        raise ConfigError(f"{target} is not empty", next_step="choose a new or an empty folder")
    place = existing_ancestor(target)
    for folder in (place.resolve(), *place.resolve().parents):
        if is_run(folder):
            raise ConfigError(f"{target} lies in the run {folder}", next_step="choose a folder outside of it")
    require_writable(place)


@contextmanager
def coming(target: Path, open_run: Callable[[Path], RunFolder]) -> Iterator[RunFolder]:
    """Make a run beside `target`, hidden, and give it that name, durably, when the block has ended well.

    `open_run` creates it in the folder it is given. What a killed attempt left is removed first. Raises `BusyError` if
    another process makes the same run just now, `StorageError`, and `ConfigError` if the name was taken meanwhile.
    """
    files.make_folders(target.parent)
    aside = target.parent / f"{layout.UNFINISHED_PREFIX}{FORK}-{target.name}"
    _clear(aside)
    try:
        folder = open_run(aside)
        try:
            yield folder
        finally:
            folder.close()
        files.sync_folder(aside)
        if os.path.isdir(target) and not os.path.islink(target):
            with files.refusals("replace", target):
                os.rmdir(target)
        if not files.rename_new(aside, target):
            raise ConfigError(f"{target} was made by another process just now", next_step="choose another folder")
        files.sync_folder(target.parent)
    except BusyError:
        raise  # it is the other's
    except BaseException:
        files.discard(aside)
        raise


def _clear(aside: Path) -> None:
    """Remove what a dead attempt left. Raises `BusyError` if the attempt lives."""
    if os.path.lexists(aside):
        if (aside / layout.LOCK_FILE).exists():
            lock = RunLock(aside)
            lock.acquire()
            lock.release()
        files.remove_tree(aside)


def bring_cache(source: Path, cache: Path) -> None:
    """Copy what a run keeps in its cache as far as it goes: it is checked when opened, and made again if need be."""
    for name in files.list_folder(source / layout.CACHE_FOLDER):
        place = source / layout.CACHE_FOLDER / name
        try:
            shutil.copytree(place, cache / name) if place.is_dir() else shutil.copyfile(place, cache / name)
        except (OSError, shutil.Error):
            files.discard(cache / name)


def commit(folder: RunFolder, images: list[Image], parent: Mapping[str, Any], last_step: int | None) -> None:
    """Begin the journal with the fork, and commit `images` in ascending order as the new run's own checkpoints."""
    record = {"kind": FORK, "n": images[-1].step, "last_step": last_step}
    record |= {key: parent[key] for key in ("run", "run_id", "manifest", "changed")}
    folder.journal.append(record)
    for image in images:
        folder.checkpoints.commit(image)
        for done in folder.checkpoints.wait():
            folder.journal.append({"kind": "commit", "n": done.step})
    folder.journal.sync()
