"""One run's directory, held by one process: what it was started with, and where it stands."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from unbroken.base.errors import BusyError, CannotContinueError, StorageError
from unbroken.base.fingerprint import digest
from unbroken.run import patience
from unbroken.run.contract import Contract
from unbroken.run.patience import patiently
from unbroken.run.proof import proof
from unbroken.run.report import Ended, Event, Mirrored, Notice
from unbroken.run.stop import StopRequest
from unbroken.store import files, layout
from unbroken.store import mirror as mirror_module
from unbroken.store.checkpoints import Checkpoints, Restored, publish_model
from unbroken.store.journal import Journal, Mark, read_last
from unbroken.store.lock import RunLock
from unbroken.store.mirror import Mirror
from unbroken.store.place import FolderPlace, Place
from unbroken.store.run import create_run, is_run, mend_run, prepare_folder, read_run

ASIDE_PREFIX = "before-restart-"
FORK = "fork"  # the kind of a parent whose whole state was taken over, and of the journal's first record then
STOP_SECONDS, FINISH_SECONDS = 20.0, 600.0  # how long the mirror is waited for
HURRIED_SECONDS = 1.0  # for its thread to end, after a stop


class RunFolder:
    """An open run: its document (`run.json`), journal and checkpoints, under the run's lock."""

    def __init__(
        self, root: Path, document: dict[str, Any], lock: RunLock, keep: int, mirror: Place | None = None
    ) -> None:
        self.root = root
        self.document = document
        self.lock = lock
        self.journal = Journal(root / layout.JOURNAL_FILE, lock.require_held)
        self.checkpoints = Checkpoints(root, document["run_id"], self.journal, keep=keep)
        self.notes: list[str] = []  # what had to be mended when it was opened, in words
        self.stop = StopRequest()  # what ends the waiting for the mirror
        self.restored_from = ""  # the mirror, where this segment's process fetched the run from it
        self.mirror: Mirror | None = None
        if mirror is not None:
            self.mirror = Mirror(mirror, root, document["run_id"], self.journal, self.checkpoints.keep)
            with suppress(StorageError):  # its own thread meets it, says so, and tries again
                patiently(self.mirror.hold, mirror.name, patience.LOOK_SECONDS)
            self.checkpoints.pinned = self.mirror.pinned

    @classmethod
    def create(
        cls,
        root: Path,
        contract: Contract,
        *,
        config: Mapping[str, Any],
        keep: int,
        parent: Mapping[str, Any] | None = None,
        row_digests: bytes = b"",
        mirror: Place | None = None,
    ) -> RunFolder:
        """Make `root` a run with this contract and hold it; whole or not at all.

        Raises `ConfigError` for a folder that is in use or cannot be written in, `BusyError` if another process
        makes the same run just now.
        """
        prepare_folder(root)
        lock = RunLock(root)
        lock.acquire()
        if is_run(root):  # another process made it while this one loaded its model
            lock.release()
            raise BusyError(f"{root} has become a run of another process just now", next_step="look, and run again")
        document = {
            "run_id": uuid.uuid4().hex,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "contract": contract,
            "config": dict(config),
            "parent": parent,
            "row_digests": digest(row_digests),
        }
        files.replace_file(root / layout.DATA_DIGESTS_FILE, row_digests)
        files.replace_file(root / layout.CONFIG_FILE, yaml.safe_dump(dict(config), sort_keys=False).encode())
        create_run(root, document)
        return cls(root, document, lock, keep, mirror)

    @classmethod
    def open(cls, root: Path, *, keep: int, mirror: Place | None = None) -> RunFolder:
        """Hold an existing run; of `run.json` and its copy, one that is damaged or gone is put back from the other.

        Raises `BusyError` if another process holds it, and as `read_run` does.
        """
        lock = RunLock(root)
        lock.acquire()
        try:
            document = read_run(root)
            if document is None:
                raise CannotContinueError(f"{root} is no run (it has no {layout.RUN_FILE})")
            notes = mend_run(root)
            for folder in (root, root / layout.EVAL_FOLDER, root / layout.CACHE_FOLDER):
                files.sweep(folder, (layout.UNFINISHED_PREFIX, layout.TRASH_PREFIX))  # what a killed process was at
            opened = cls(root, document, lock, keep, mirror)
        except BaseException:
            lock.release()
            raise
        opened.notes = notes
        return opened

    @property
    def contract(self) -> Contract:
        """What the run was started with."""
        return dict(self.document["contract"])

    @property
    def cache(self) -> Path:
        """The folder for what can always be made again."""
        folder = self.root / layout.CACHE_FOLDER
        folder.mkdir(exist_ok=True)
        return folder

    def tail(self, restored: Restored | None) -> Iterator[tuple[dict[str, Any], Mark]]:
        """Yield the journal's records after a checkpoint (None: all), each with the mark that follows it."""
        return self.journal.marked_records(restored.mark if restored else None)

    @property
    def forked(self) -> bool:
        """Whether the run took over the whole state of another and so does not begin at step 0."""
        return (self.document.get("parent") or {}).get("kind") == FORK

    def has_committed(self) -> bool:
        """Tell whether the run ever had a checkpoint: a fork begins with one, others have it in their journal."""
        return self.forked or any(record["kind"] == "commit" for record in self.journal.records())

    def publish(self, step: int) -> dict[str, str]:
        """Place the model of checkpoint `step` as the run's finished model; return the SHA-256 of its weights."""
        self.lock.require_held()
        return publish_model(self.root / layout.CHECKPOINTS_FOLDER / layout.checkpoint_name(step), self.root)

    def offer(self, step: int, spared: Collection[int] = ()) -> None:
        """Have a checkpoint copied to the mirror, if there is one, with those in `spared`; returns at once."""
        if self.mirror is not None:
            self.mirror.offer(step, spared)

    def news(self) -> list[Event]:
        """Return what came of the mirror since the last call."""
        news = self.mirror.news() if self.mirror is not None else []
        return [Notice(each) if isinstance(each, str) else Mirrored(each.step, each.seconds) for each in news]

    def settle(self, step: int, best: int | None = None) -> list[Event]:
        """Wait, within bounds, until the mirror holds the commit of `step`; say whether it does.

        `best` is the step whose model is the finished one; without it the run has only stopped, and time is short.
        """
        if self.mirror is None:
            return []
        stopping = best is None or self.stop.requested
        seconds = min(STOP_SECONDS if stopping else FINISH_SECONDS, self.stop.deadline.seconds_left)
        there = self.mirror.settle(seconds, best, lambda: self.stop.requested and not stopping)
        place, held = self.mirror.place.name, self.mirror.step
        if there and held == step:
            return [*self.news(), Notice(f"the mirror {place} holds step {step}")]
        known = "no step of this segment" if held is None else f"step {held}"
        line = f"the mirror {place} does not hold the last commit, of step {step}: it holds {known}"
        return [*self.news(), Notice(f"{line}; the same command copies it")]

    def complete_mirror(self) -> list[Event]:
        """Make the mirror of a finished run whole, should the process that finished it not have come to that."""
        record = read_last(self.journal.path)
        if self.mirror is None or record is None:
            return []
        steps = self.checkpoints.steps()
        if not steps:
            return []  # removed to save space, once the run was finished
        self.offer(steps[-1], {record["best"]} & set(steps))
        return self.settle(steps[-1], record["best"] if record["best"] in steps else steps[-1])

    def proof(self) -> dict[str, Any]:
        """Return what the journal proves about the run."""
        return proof(self.journal.records())

    def finished(self) -> Ended | None:
        """Return how the run ended if it is finished; its model is placed again should it have been damaged."""
        record = read_last(self.journal.path)
        if record is None or record["kind"] != "finish":
            return None
        model = self.root / layout.MODEL_FOLDER
        try:
            self.publish(record["best"])  # changes nothing where every file is as it was
        except CannotContinueError:
            # Someone removed the checkpoint to save space; then the weights at least must be the ones recorded.
            if any(not _has_sum(model / name, sha256) for name, sha256 in record["sha256"].items()):
                raise
        return Ended(record["n"], finished=True, reason="", model=str(model), proof=self.proof())

    def close(self) -> None:
        """Let go of the run, once a commit under way has ended; what became of it the next start will see."""
        try:
            with suppress(StorageError, BusyError):
                self.checkpoints.wait()
        finally:
            if self.mirror is not None:
                longest = HURRIED_SECONDS if self.stop.requested else mirror_module.CLOSE_SECONDS
                self.mirror.close(min(longest, self.stop.deadline.seconds_left))
            self.journal.close()
            self.lock.release()


def move_aside(root: Path) -> Path:
    """Rename the run at `root`, out of the way of a new one, and return where it is now.

    Raises `BusyError` if a process is in it.
    """
    lock = RunLock(root)
    lock.acquire()
    try:
        moved = files.set_aside(root, ASIDE_PREFIX)
    finally:
        lock.release()
    files.discard(moved / layout.HOLDER_FILE)
    return moved


def move_mirror_aside(place: Place) -> Path | None:
    """Rename the run in a folder that is a mirror, as `move_aside` does; None if there is none."""
    return move_aside(place.root) if isinstance(place, FolderPlace) and is_run(place.root) else None


def _has_sum(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
