"""A run and its mirror: looked at before training, restored from on a new machine.

Restoring is mirroring backwards. `run.json` comes last, so that the folder is no run until it is whole; killed
before that, the same command begins anew and keeps what already verifies.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unbroken.base.errors import CannotContinueError, ConfigError, StorageError, UnbrokenError
from unbroken.base.fingerprint import digest
from unbroken.base.stopping import poll
from unbroken.run import patience
from unbroken.run.patience import patiently
from unbroken.run.report import Notice, Reporter
from unbroken.store import files, layout
from unbroken.store.files import DamagedError
from unbroken.store.journal import Journal, Mark, proves, read_last, read_records
from unbroken.store.manifest import ForeignError, Manifest
from unbroken.store.mirror import abandoned, belongs, find_drifts
from unbroken.store.place import (
    FolderPlace,
    Place,
    byte_range,
    checkpoint_path,
    copy_checkpoint,
    open_place,
    read,
    read_marker,
)
from unbroken.store.run import encode_run, is_run


def mirror_of(target: str | None, root: Path) -> Place | None:
    """Return the place that is to mirror the run at `root`; touches nothing. None without a target.

    Raises `ConfigError` if it lies in the run or the run in it, or cannot be reached with what is installed.
    """
    if not target:
        return None
    place = open_place(target)
    if isinstance(place, FolderPlace):
        there, here = place.root.resolve(), root.resolve()
        if there.is_relative_to(here) or here.is_relative_to(there):
            raise ConfigError(
                f"mirror {place.name} and output_dir {root} lie in each other",
                why="a lost disk would take both",
                next_step="give the mirror a place on another disk or machine",
            )
    return place


def run_in_mirror(place: Place, root: Path, local: Mapping[str, Any] | None, *, restart: bool) -> dict[str, Any] | None:
    """Return the document of the run to restore from the mirror, None if there is none or it is not needed.

    `local` is the document of the run at `root`. With it, a mirror that cannot be looked at is met again, and said,
    while training; without it, whether there is a run to go on with could not be told. Raises `CannotContinueError`
    if the mirror holds another run, and for `restart` where a mirror cannot be moved aside; `StorageError`.
    """
    if local is not None:
        try:
            if patiently(lambda: belongs(place, local["run_id"]), place.name, patience.LOOK_SECONDS) and restart:
                _require_movable(place)
        except CannotContinueError:
            raise
        except UnbrokenError:
            if restart:
                raise
        return None
    try:
        document = patiently(lambda: _look(place), place.name, patience.LOOK_SECONDS)
    except StorageError as failure:
        raise StorageError(
            failure.what,
            why=f"{root} is no run yet, and whether the mirror holds one to go on with cannot be told",
            next_step=f"{failure.next_step}, or leave `mirror` out to begin a new run",
        ) from failure
    if document is not None and restart:
        _require_movable(place)
        return None
    return document


def _look(place: Place) -> dict[str, Any] | None:
    document = place.document()
    if document is None:
        belongs(place, "")  # or there are files of someone else
    return document


def say_new(root: Path, place: Place, report: Reporter) -> None:
    """Say that a run begins: to whom expected one to go on, the mirror's address is wrong or its disk not mounted."""
    report(Notice(f"neither {root} nor its mirror {place.name} holds a run: a new one begins"))


def _require_movable(place: Place) -> None:
    if not place.movable:
        raise CannotContinueError(
            f"the mirror {place.name} holds the run that --restart would replace",
            why="it cannot be renamed there, and is not deleted",
            next_step="give the new run another mirror: --set mirror=URL",
        )


def row_digests_in(place: Place) -> bytes:
    """Return the digests of the rows the mirrored run was started with; nothing if they are missing or damaged."""
    try:
        content = read(place, layout.DATA_DIGESTS_FILE)
        return content if digest(content) == (place.document() or {}).get("row_digests") else b""
    except (CannotContinueError, StorageError):
        return b""


def restore_run(root: Path, place: Place, document: Mapping[str, Any]) -> list[str]:
    """Make `root` the run that the mirror holds: with its newest checkpoint that verifies, and its journal.

    Returns in words what was passed over. Raises `CannotContinueError`, and `root` is no run then, if the mirror has
    checkpoints or knows of commits and none verifies; `BusyError` and `StorageError`.
    """
    files.make_folders(root)
    local, run_id = FolderPlace(root), str(document["run_id"])
    local.hold()
    try:
        if is_run(root):  # another process was faster
            return []
        files.replace_file(root / layout.RESTORING_FILE, b"")
        files.replace_with(root / layout.JOURNAL_FILE, _polled(place.journal_blocks()))
        step, notes = fetch_newest(local, place, run_id, -1)
        if not local.steps() and (place.steps() or _knows_of_commits(root)):
            raise CannotContinueError(
                f"no checkpoint in the mirror {place.name} verifies",
                why="; ".join(notes) or "they are gone",
                next_step="put an intact copy back into it, or begin anew with another output_dir and mirror",
            )
        journal = Journal(root / layout.JOURNAL_FILE)
        _reopen(journal, step, place.name)
        journal.close()
        for file in (layout.DATA_DIGESTS_FILE, layout.CONFIG_FILE):
            local.put(file, read(place, file))
        local.put(layout.RUN_FILE, encode_run(document))  # its copy is written when the run is opened
        files.discard(root / layout.RESTORING_FILE)
        return notes
    finally:
        local.release()


def catch_up(journal: Journal, place: Place, run_id: str) -> tuple[int | None, list[str]]:
    """Fetch the mirror's newest good checkpoint if it is newer than every good one the run has, and its journal.

    For the process that holds the run. Returns the step fetched, if one was, and what was passed over, in words.
    """
    local = FolderPlace(journal.path.parent)
    try:
        newest = max(place.steps(), default=-1)
        if newest <= _newest_good(local, run_id, above=newest):
            return None, []
        above = _newest_good(local, run_id)
        offered, notes = _offered(place, run_id, above, find_drifts(journal.path))
        if not offered:
            return None, notes
        joined, earlier = _join_journal(journal, place, offered[0].journal)
        step = None
        try:
            step, notes = fetch_newest(local, place, run_id, above)
        finally:
            if step is None and earlier is not None:
                journal.take_over(earlier)
    except StorageError as failure:
        return None, [f"nothing was fetched from the mirror {place.name}: {failure}"]
    if step is not None and joined:
        _reopen(journal, step, place.name)
        kept = f"; the one that was here has grown apart from it and is kept as {earlier.name}" if earlier else ""
        notes.append(f"the journal was fetched from the mirror too{kept}")
    return step, notes


def _join_journal(journal: Journal, place: Place, mark: Mark) -> tuple[bool, Path | None]:
    """Take the mirror's journal over if it proves what came before `mark` and the one here does not.

    Returns whether it was, and where the one that was here is kept: nowhere if it is the beginning of the other.
    Raises `StorageError` if drift was accepted here that the mirror does not know of.
    """
    if journal.proves(mark):
        return False, None
    new = journal.path.with_name(f"{layout.UNFINISHED_PREFIX}{journal.path.name}-{files.nonce()}")
    try:
        files.create_file(new, _polled(place.journal_blocks()))
        if not proves(new, mark):
            return False, None
        if not set(find_drifts(journal.path)) <= set(find_drifts(new)):
            raise StorageError("it knows nothing of the drift that was accepted here")
        poll()
        return True, journal.take_over(new, "" if _begins(new, journal.path) else layout.EARLIER_PREFIX)
    finally:
        files.discard(new)


def _begins(longer: Path, path: Path) -> bool:
    """Return whether a file begins with all that another holds."""
    size = path.stat().st_size
    pairs = zip(byte_range(longer, 0, size), byte_range(path, 0, size), strict=False)
    return size <= longer.stat().st_size and all(one == other for one, other in pairs)


def _polled(blocks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    for block in blocks:
        poll()
        yield block


def _offered(
    place: Place, run_id: str, above: int, drifts: Collection[tuple[int, int]]
) -> tuple[list[Manifest], list[str]]:
    """Return the manifests of what may be fetched, the newest first, and in words what may not."""
    found, notes = list[Manifest](), list[str]()
    for step in sorted((step for step in place.steps() if step > above), reverse=True):
        try:
            manifest, _ = read_marker(place, step, run_id)
        except ForeignError as foreign:
            notes.append(f"{foreign.what}; it was left alone")
        except DamagedError as damage:
            notes.append(f"checkpoint of step {step} in the mirror: {damage.what}; passed over")
        else:
            if not abandoned(manifest, drifts):
                found.append(manifest)
    return found, notes


def fetch_newest(local: FolderPlace, place: Place, run_id: str, above: int) -> tuple[int | None, list[str]]:
    """Copy the newest checkpoint of a step beyond `above` that verifies, with the one it names as the best.

    Every byte is compared with the manifest before the checkpoint has its name here.
    """
    offered, notes = _offered(place, run_id, above, find_drifts(local.root / layout.JOURNAL_FILE))
    for step in [manifest.step for manifest in offered]:
        try:
            copy_checkpoint(place, local, step, run_id, poll, digests=True)
            best = json.loads(read(local, checkpoint_path(step, layout.SEGMENT_FILE)))["best"]
            if best is not None:
                copy_checkpoint(place, local, best["step"], run_id, poll, digests=True)
        except (DamagedError, ForeignError) as damage:
            notes.append(f"checkpoint of step {step} in the mirror: {damage.what}; passed over")
            if step in local.steps():  # whole, but of no use without the best one
                local.clear(step)
        else:
            return step, notes
    return None, notes


def _reopen(journal: Journal, step: int | None, name: str) -> None:
    """Have a run that was finished make its last steps again where the checkpoint of the last one is not to be had."""
    last = read_last(journal.path)
    if last is not None and last["kind"] == "finish" and last["n"] != step:
        journal.append({"kind": "restored", "n": step or 0, "from": name})
        journal.sync()


def _newest_good(local: FolderPlace, run_id: str, above: int = -1) -> int:
    """Return the newest step whose checkpoint verifies, -1 if none does; steps below `above` are not looked at."""
    for step in reversed(local.steps()):
        if step < above:
            break
        try:
            if not local.lacks(step, read_marker(local, step, run_id)[0], digests=True):
                return step
        except CannotContinueError:
            continue
    return -1


def _knows_of_commits(root: Path) -> bool:
    return any(record["kind"] == "commit" for record in read_records(root / layout.JOURNAL_FILE))


def bring_here(root: Path, place: Place, document: Mapping[str, Any], report: Reporter) -> str:
    """Restore the run from its mirror, as `restore_run` does, saying so; return the mirror's name."""
    report(Notice(f"{root} is not here; the mirror {place.name} holds the run: restoring it"))
    for text in patiently(lambda: restore_run(root, place, document), place.name, patience.STALL_SECONDS):
        report(Notice(text))
    return place.name


def bring_newer(journal: Journal, place: Place, run_id: str, report: Reporter) -> str:
    """Fetch what `catch_up` fetches, saying so; return the mirror's name if something was, else nothing."""
    try:
        patiently(place.steps, place.name, patience.LOOK_SECONDS)
        step, notes = patiently(lambda: catch_up(journal, place, run_id), place.name, patience.STALL_SECONDS)
    except StorageError as failure:
        step, notes = None, [f"nothing was fetched from the mirror {place.name}: {failure}"]
    for text in notes:
        report(Notice(text))
    if step is None:
        return ""
    report(Notice(f"no checkpoint here is as new as that of step {step} in the mirror {place.name}: fetched it"))
    return place.name
