"""The mirror: a copy of a run at another place, kept by a thread of its own behind the writer of checkpoints.

Training never waits for it. The newest commit wins: what could not be copied before the next one is left out. The
journal goes first, as far as it reaches, so that it covers each checkpoint that is there. What the place refuses is
said once and tried again, later and later, and at the end.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from unbroken.base.errors import BusyError, CannotContinueError, StorageError, UnbrokenError
from unbroken.base.stopping import interruptible
from unbroken.store import layout
from unbroken.store.files import DamagedError
from unbroken.store.journal import Journal, decode_line
from unbroken.store.manifest import ForeignError, Manifest
from unbroken.store.place import (
    BEGUN,
    FolderPlace,
    Place,
    checkpoint_path,
    copy_checkpoint,
    read,
    read_marker,
    verified,
)
from unbroken.store.run import encode_run

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 600.0  # seconds until a place that refused is tried again
JOURNAL_SECONDS = 10.0  # how old the copy of the journal may get between two commits
CLOSE_SECONDS = 5.0
PULSE_SECONDS = 0.2


@dataclass(frozen=True)
class Mirrored:
    """The place holds the checkpoint of `step` and the journal up to it."""

    step: int
    seconds: float


class Mirror:
    """Keeps the run at `root` copied to `place`. Creating this object touches nothing and starts nothing.

    For the process that holds the run. `offer` after each commit; `news` tells what became of it.
    """

    def __init__(self, place: Place, root: Path, run_id: str, journal: Journal, keep: int) -> None:
        self.place = place
        self.step: int | None = None  # the newest step known to be there
        self._run_id, self._journal, self._keep = run_id, journal, keep
        self._source = FolderPlace(root)
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wanted: tuple[int, frozenset[int]] | None = None
        self._under_way: tuple[int, frozenset[int]] | None = None
        self._finished: int | None = None  # the step whose model is the run's, once it has one
        self._news: list[Mirrored | str] = []
        self._there: set[int] = set()  # steps this process copied, or found there
        self._sound: set[int] = set()  # those of them whose every byte it wrote or compared
        self._best: dict[int, set[int]] = {}  # by step, what its checkpoint names as the best
        self._drifts: list[tuple[int, int]] = []
        self._drifts_end = 0  # how much of the journal they were sought in
        self._journal_end: int | None = None  # how much of the journal is there
        self._introduced = self._leaving = False
        self._urgent = self._hurried = self._settled = (
            False  # someone waits; also when this attempt began; all is there
        )
        self._pause = self._not_before = self._journal_at = 0.0
        self._said = ""  # the kind of failure people know of

    def hold(self) -> None:
        """Keep other runs' processes out of the place. Raises `BusyError` if one is in it already.

        Anything else in the way is for the thread to meet, say, and try again.
        """
        try:
            self.place.hold()
        except BusyError:
            raise
        except UnbrokenError:
            return

    def offer(self, step: int, spared: Collection[int] = ()) -> None:
        """Have the checkpoint of `step` copied, and those in `spared` that are not there. Returns at once."""
        with self._turn:
            self._wanted = (step, frozenset(spared))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="unbroken-mirror", daemon=True)
                self._thread.start()
            self._turn.notify_all()

    def pinned(self) -> frozenset[int]:
        """Return the steps that are being copied, or are next: they must stay where they are."""
        with self._turn:
            return frozenset(step for each in (self._wanted, self._under_way) if each for step in (each[0], *each[1]))

    def news(self) -> list[Mirrored | str]:
        """Return what happened since the last call: checkpoints that arrived, and in words what stood in the way."""
        with self._turn:
            news, self._news = self._news, []
            return news

    def look_again(self) -> None:
        """Remove what drift has made another run's past, before anything else is copied."""
        with self._turn:
            self._introduced = False

    def settle(self, seconds: float, finished: int | None = None, leave: Callable[[], bool] = lambda: False) -> bool:
        """Wait until all that was offered, and the journal, is there, or an attempt failed, or `seconds` are over.

        `finished` is the step whose model is the run's. Returns whether everything is there; soon once `leave` is true.
        """
        end = time.monotonic() + seconds
        with self._turn:
            if self._thread is None:
                return False
            self._finished, self._urgent, self._settled = finished, True, False
            self._turn.notify_all()
            while self._urgent and (rest := end - time.monotonic()) > 0 and not leave():
                self._turn.wait(min(rest, PULSE_SECONDS))
            self._urgent = False
            return self._settled

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """End the thread, within `seconds`; a copy under way is left unfinished."""
        with self._turn:
            self._leaving = True
            self._turn.notify_all()
            thread = self._thread
        if thread is None:
            self.place.release()
        else:
            thread.join(seconds)  # it gives the place back itself: it may still be waiting for an answer

    def _work(self) -> None:
        try:
            while self._next():
                try:
                    with interruptible(self._tick):  # what is read here to be compared, too
                        self._copy()
                except _LeavingError:
                    break
                except UnbrokenError as failure:
                    self._failed(failure)
                except Exception as failure:  # noqa: BLE001 - whatever it is, it must not stop training
                    self._failed(StorageError(f"{type(failure).__name__}: {failure}"))
        finally:
            self.place.release()

    def _next(self) -> bool:
        """Wait until there is something to copy; False when it is time to leave."""
        with self._turn:
            self._under_way = None
            while not self._leaving:
                now = time.monotonic()
                behind = self._journal_end != self._journal.end
                if self._urgent and self._wanted is None and not behind and self._finished is None:
                    self._urgent, self._settled = False, True
                    self._turn.notify_all()
                pressing = self._wanted is not None or (behind and now >= self._journal_at)
                if self._urgent or (pressing and now >= self._not_before):
                    self._under_way, self._wanted, self._hurried = self._wanted, None, self._urgent
                    return True
                self._turn.wait(max(self._not_before - now, 0.1) if pressing else JOURNAL_SECONDS)
            return False

    def _copy(self) -> None:
        """Bring the place up to date."""
        began = time.perf_counter()
        self._introduce()
        self._copy_journal()
        with self._turn:
            wanted, finished = self._under_way, self._finished
        if wanted is not None:
            step, spared = wanted
            for each in [*sorted(spared & set(self._source.steps()) - {step} - self._there), step]:
                written = copy_checkpoint(self._source, self.place, each, self._run_id, self._tick, digests=True)
                self._there.add(each)
                if written or self.place.near:
                    self._sound.add(each)
                if written:
                    self._best.pop(each, None)
            self._become_run()
            self._arrived(Mirrored(step, time.perf_counter() - began))
            self._retire(spared)
        if finished is not None:
            manifest, _ = read_marker(self._source, finished, self._run_id)
            self.place.put_model(manifest, verified(self._source, finished, self._tick))
            with self._turn:
                self._finished = None

    def _introduce(self) -> None:
        """Say whose mirror this is, once; refuse to touch another run's."""
        if self._introduced:
            return
        self._introduced = True  # until `look_again`, or a failure
        self.place.hold()
        if not belongs(self.place, self._run_id):
            self.place.put(layout.MIRRORING_FILE, self._run_id.encode())
            for file in (layout.DATA_DIGESTS_FILE, layout.CONFIG_FILE):
                self.place.put(file, read(self._source, file))
        end = self._journal.end
        self._drifts += find_drifts(self._journal.path, self._drifts_end)
        self._drifts_end = end
        for step in self.place.steps() if self._drifts else []:
            manifest = self._marker(step)
            if manifest is not None and abandoned(manifest, self._drifts):
                self.place.remove(step)
                self._there.discard(step)
                self._sound.discard(step)
                self._best.pop(step, None)

    def _become_run(self) -> None:
        """Make the place a run, once it holds a checkpoint: before that there is nothing to go on from."""
        if layout.MIRRORING_FILE in self.place.names():
            document = self._source.document()  # from its copy, should run.json have been damaged meanwhile
            if document is None:
                raise DamagedError(f"{self._source.root / layout.RUN_FILE} is gone, and so is its copy")
            self.place.put(layout.RUN_FILE, encode_run(document))
            self.place.drop(layout.MIRRORING_FILE)

    def _copy_journal(self) -> None:
        end = self._journal.end
        if self._journal_end is None:
            self._journal_end = self.place.journal_end(self._journal.path)
        if self._journal_end != end:
            held, self._journal_end = self._journal_end, None  # unknown until it is done
            aside = self.place.extend_journal(self._journal.path, held, end)
            if aside:
                self._say(f"the mirror {self.place.name} held a journal that is not this run's beginning: see {aside}")
        self._journal_end = end
        self._journal_at = time.monotonic() + JOURNAL_SECONDS

    def _say(self, text: str) -> None:
        with self._turn:
            self._news.append(text)

    def _arrived(self, news: Mirrored) -> None:
        with self._turn:
            self.step = news.step
            if self._said:
                self._news.append(f"the mirror {self.place.name} works again")
            self._said, self._pause, self._not_before = "", 0.0, 0.0
            self._news.append(news)

    def _retire(self, spared: frozenset[int]) -> None:
        """Keep the newest checkpoints known to be sound, and all until there are enough; sweep unfinished ones.

        With each goes the one that was the best by then: neither can be restored without the other.
        """
        kept, needed = 0, set(spared)
        for step in reversed(self.place.steps()):
            self._tick()
            if step not in self._sound and self._marker(step) is None:
                if not self._is_foreign(step):
                    self.place.remove(step)
            elif kept < self._keep:
                kept += step in self._sound
                needed |= self._best_by(step)
            elif step not in needed:
                self.place.remove(step)

    def _best_by(self, step: int) -> set[int]:
        """Return the step a checkpoint in the place names as the best so far; nothing if none or it cannot be told."""
        if step not in self._best:
            try:
                best = json.loads(read(self.place, checkpoint_path(step, layout.SEGMENT_FILE)))["best"]
                self._best[step] = {best["step"]} if best else set()
            except (DamagedError, ValueError, KeyError, TypeError):
                return set()
        return self._best[step]

    def _marker(self, step: int) -> Manifest | None:
        try:
            return read_marker(self.place, step, self._run_id)[0]
        except CannotContinueError:
            return None

    def _is_foreign(self, step: int) -> bool:
        """Whether there is a manifest that is not ours: of another run, or of a newer version."""
        try:
            read_marker(self.place, step, self._run_id)
        except ForeignError:
            return True
        except DamagedError:
            return False
        except CannotContinueError:
            return True
        return False

    def _failed(self, failure: UnbrokenError) -> None:
        """Say it if it is news, put back what was to be copied, and wait longer than before."""
        cause = failure.__cause__
        kind = f"{type(failure).__name__} {type(cause).__name__} {getattr(cause, 'errno', '')}"
        with self._turn:
            if self._wanted is None:
                self._wanted = self._under_way
            self._under_way = None
            self._introduced, self._journal_end = False, None
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            self._not_before = time.monotonic() + self._pause
            if kind != self._said:
                self._news.append(f"the mirror is behind, training goes on: {failure}; it is tried again")
            self._said = kind
            self._urgent = self._urgent and not self._hurried  # one attempt more for who came while this one failed
            self._turn.notify_all()

    def _tick(self) -> None:
        if self._leaving:
            raise _LeavingError("the process ends")


class _LeavingError(StorageError):
    """The process ends and the copy under way is given up."""


def belongs(place: Place, run_id: str) -> bool:
    """Return whether the place holds this run; False if it is free for it.

    Raises `CannotContinueError` if it holds another run, or files of someone else, and `StorageError` if it could not
    be made where it is to lie.
    """
    document = place.document()
    if document is None:
        place.require_home()
        names = place.names()
        ours = {layout.HOLDER_FILE} | (BEGUN if layout.MIRRORING_FILE in names else set())
        foreign = [name for name in names if name not in ours and not name.startswith(".")]
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise CannotContinueError(
                f"the mirror {place.name} holds files ({shown}) but is no run",
                why="they would be mixed with the run's",
                next_step="give the mirror a place of its own",
            )
        return False
    if document.get("run_id") != run_id:
        raise CannotContinueError(
            f"the mirror {place.name} holds another run (begun {document.get('created', 'earlier')})",
            why="it is not overwritten",
            next_step="give each run a mirror of its own",
        )
    return True


def find_drifts(journal: Path, start: int = 0) -> list[tuple[int, int]]:
    """Return where in a journal, from a line on, drift was accepted: (place in bytes, first step that differed)."""
    found, offset = [], start
    with journal.open("rb") as file:
        file.seek(start)
        for line in file:
            record = decode_line(line) if b'"drift"' in line else None
            if record is not None and record["kind"] == "drift":
                found.append((offset, int(record["n"])))
            offset += len(line)
    return found


def abandoned(manifest: Manifest, drifts: Collection[tuple[int, int]]) -> bool:
    """Return whether a checkpoint is of steps that were made again later with other results."""
    return any(offset >= manifest.journal.offset and step <= manifest.step for offset, step in drifts)
