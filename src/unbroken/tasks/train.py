"""Start a run, continue it, or say that it is finished: always the right one of the three."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbroken.base.config import Config
from unbroken.base.errors import BusyError, ConfigError, DataError, UnbrokenError
from unbroken.base.stopping import StopNow, interruptible, poll
from unbroken.run.cadence import Cadence
from unbroken.run.deadline import Deadline
from unbroken.run.mirroring import bring_here, bring_newer, mirror_of, run_in_mirror, say_new
from unbroken.run.preflight import (
    require_descriptors,
    require_device_memory,
    require_new_folder,
    require_ready,
    require_space,
    require_writable,
)
from unbroken.run.report import Ended, Notice, Reporter, plain, unfailing
from unbroken.run.stop import StopRequest
from unbroken.store import layout
from unbroken.store.journal import read_last
from unbroken.store.place import Place
from unbroken.store.run import is_run, read_run
from unbroken.tasks.common import RunConfig
from unbroken.tasks.contract import check_contract, compose_contract, plain_values, resolve_threads
from unbroken.tasks.request import Request, output_dir, resolve_config, step_asked_for
from unbroken.tasks.task import Prepared, Progress, find_task

if TYPE_CHECKING:  # both bring torch: two seconds that nobody waits for whose configuration has a mistake
    from unbroken.run.folder import RunFolder
    from unbroken.run.job import Job
    from unbroken.run.settings import Settings

# weights, and two Adam moments of the same size
CHECKPOINT_MULTIPLE = 3


def train(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    *,
    resume_from_checkpoint: bool | str | None = None,
    restart: bool = False,
    accept_drift: bool = False,
    stop_at: str | float | datetime | None = None,
    report: Reporter = plain,
) -> Ended:
    """Carry the run that `config` describes to its end and return how it ended.

    A new folder starts a run, an unfinished run continues from its last commit, a finished one says so. `config` is
    an `EmbedConfig` (or another task's), a mapping, a YAML file, or the folder of a run. `resume_from_checkpoint`
    may be True, the run, its checkpoints folder, or one checkpoint; it is never needed. `restart` moves a run that
    stands in the way aside; `accept_drift` goes on where results no longer repeat to the bit.
    `stop_at` (`17:30`, `2026-11-22T17:30`, `+3h50m`, Unix seconds, a `datetime`) stops in time to have committed by
    then. After a stop by it or by a signal `Ended.finished` is false. Signal handlers are as before the call.

    Raises `ConfigError`, `DataError`, `CannotContinueError`, `BusyError`, `TrainingError` or `StorageError`; what was
    committed before stands.
    """
    request = Request.of(
        config, resume_from_checkpoint=resume_from_checkpoint, restart=restart, accept_drift=accept_drift
    )
    return carry_out(request, report, StopRequest(Deadline.of(stop_at)))


class InputsGoneError(ConfigError):
    """A finished run whose data or model can no longer be read: it needs them no more."""

    def __init__(self, root: Path, failure: UnbrokenError) -> None:
        super().__init__(failure.what, why=failure.why, next_step=failure.next_step)
        self.root = root


@dataclass(frozen=True)
class Start:
    """A request that holds: all that can be wrong with it short of loading the model has been looked at.

    `document` is that of the run as it stands in `root` or is to be fetched from the mirror (`fetch`), None if there
    is to be a new one.
    """

    root: Path
    config: RunConfig
    document: Mapping[str, Any] | None
    prepared: Prepared
    threads: int
    step: int | None
    mirror: Place | None = None
    fetch: bool = False


def carry_out(request: Request, report: Reporter, stop: StopRequest, progress: Progress = lambda *args: None) -> Ended:
    """Do what `train` promises for a request; nothing is written before all of it is known to hold.

    A stop before the first step leaves what is in progress; one later finishes the step and commits.
    """
    report = unfailing(report)
    with stop.listening():
        try:
            with interruptible(stop.check):
                poll()
                start = look_over(request)
            if start.document is None:
                return _begin(start, request, report, stop, progress)
            return _continue(start, request, report, stop, progress)
        except InputsGoneError as gone:
            return _finished_without_inputs(gone, report)
        except StopNow:
            report(Notice(f"stopped before the first step ({stop.reason}); nothing is lost"))
            return Ended(0, finished=False, reason=stop.reason, model="")


@contextmanager
def set_up(folder: RunFolder, stop: StopRequest) -> Iterator[None]:
    """Journal a stop inside the block: one that comes before this process has begun a segment of the run it holds."""
    try:
        yield
    except StopNow:
        step = max(folder.checkpoints.steps(), default=0)
        folder.journal.append({"kind": "stop", "n": step, "reason": stop.reason, "in_set_up": True})
        folder.journal.sync()
        raise


def look_over(request: Request) -> Start:
    """Check a request against the files and folders it names, quick checks first; writes nothing, needs no torch."""
    if not isinstance(request.values.get("output_dir"), str | os.PathLike):
        resolve_config(request, None)  # names the key that is misspelt, if one is
    root = output_dir(request.values)
    document = None if request.restart else read_run(root)
    config = resolve_config(request, document)
    require_descriptors()
    mirror = mirror_of(config.mirror, root)
    fetch = False
    if mirror is not None:
        there = run_in_mirror(mirror, root, read_run(root), restart=request.restart)
        if there is not None:
            document, fetch, config = there, True, resolve_config(request, there)
    step = step_asked_for(request.resume_from_checkpoint, root)
    if request.restart and step is not None:
        raise ConfigError("--restart starts over, --resume_from_checkpoint goes on", next_step="give one of them")
    if request.restart and is_run(root):
        require_movable(root)
    elif document is None or fetch:
        require_new_folder(root)
    try:
        here = None if document is None or fetch else root
        task = find_task(config.task)
        prepared = task.prepare(config, here and here / layout.CACHE_FOLDER, here)
    except (ConfigError, DataError) as failure:
        if document is not None and is_finished(root):
            raise InputsGoneError(root, failure) from failure
        raise
    recorded = document["contract"] if document else None
    threads = resolve_threads(config, recorded)
    if recorded is not None:
        asked = compose_contract(config, prepared, threads, device=config.device)
        assert mirror is not None or not fetch
        check_contract(root, recorded, asked, prepared, config, request.origins, mirror if fetch else None)
        if not fetch and not is_finished(root):
            require_ready(root, config.save_total_limit)
    if recorded is None or fetch:
        checkpoints = config.save_total_limit + 1 + (mirror is not None)  # one more while it is copied
        require_space(root, prepared.weights_bytes * (CHECKPOINT_MULTIPLE * checkpoints + 1))
    return Start(root, config, document, prepared, threads, step, mirror, fetch)


def _begin(start: Start, request: Request, report: Reporter, stop: StopRequest, progress: Progress) -> Ended:
    """Load the model, make the run, train."""
    from unbroken.run import environment
    from unbroken.run.folder import RunFolder, move_aside, move_mirror_aside
    from unbroken.tasks.device import resolve_device

    config, prepared = start.config, start.prepared
    with interruptible(stop.check):
        poll()
        environment.pin(start.threads)
        build = prepared.load()
        device = str(resolve_device(config.device))
        poll()
    if request.restart and is_run(start.root):
        report(Notice(f"moved the earlier run to {move_aside(start.root)}"))
    if request.restart and start.mirror is not None:
        moved = move_mirror_aside(start.mirror)
        if moved is not None:
            report(Notice(f"moved the earlier run's mirror to {moved}"))
    elif start.mirror is not None:
        say_new(start.root, start.mirror, report)
    folder = RunFolder.create(
        start.root,
        compose_contract(config, prepared, start.threads, device),
        config=plain_values(config) | {"threads": start.threads, "device": device},
        keep=config.save_total_limit,
        parent=prepared.parent,
        row_digests=prepared.row_digests,
        mirror=start.mirror,
    )
    folder.stop = stop
    for text in prepared.notes:
        report(Notice(text))
    if prepared.parent:
        report(Notice(weights_only(prepared.parent)))
    try:
        return _train(build, folder, settings(config, request, start.step), report, stop, progress)
    finally:
        folder.close()


def weights_only(parent: Mapping[str, Any]) -> str:
    """Say what a new run takes over from its parent, and what is not meant by that."""
    if parent.get("run") is None:
        return f"new run from the weights of the adapter {parent['adapter']}: weights only, step 0"
    again = shlex.quote(str(parent["run"]))
    return (
        f"new run from the weights of {parent['run']}: weights only, step 0; to resume that run: unbroken train {again}"
    )


def _continue(start: Start, request: Request, report: Reporter, stop: StopRequest, progress: Progress) -> Ended:
    """Take hold of the run and train on from where it stands, or say that it is finished."""
    from unbroken.run import environment
    from unbroken.run.folder import RunFolder
    from unbroken.tasks.device import resolve_device

    fetched = ""
    if start.mirror is not None and start.fetch and start.document is not None:
        with interruptible(stop.check):
            fetched = bring_here(start.root, start.mirror, start.document, report)
    folder = RunFolder.open(start.root, keep=start.config.save_total_limit, mirror=start.mirror)
    folder.stop = stop
    try:
        for text in folder.notes:
            report(Notice(text))
        if folder.document != start.document:
            raise BusyError(f"{start.root} was replaced by another process just now", next_step="look, and run again")
        if start.mirror is not None and not start.fetch:
            with set_up(folder, stop), interruptible(stop.check):
                fetched = bring_newer(folder.journal, start.mirror, folder.document["run_id"], report)
        folder.restored_from = fetched
        finished = folder.finished()
        if finished is not None:
            for event in folder.complete_mirror():
                report(event)
            report(finished)
            return finished
        for text in start.prepared.notes:
            report(Notice(text))
        environment.pin(start.threads)
        require_device_memory(start.root, resolve_device(start.config.device, start.root))
        with set_up(folder, stop), interruptible(stop.check):
            poll()
            build = start.prepared.load()
        return _train(build, folder, settings(start.config, request, start.step), report, stop, progress)
    finally:
        folder.close()


def _finished_without_inputs(gone: InputsGoneError, report: Reporter) -> Ended:
    """Say that a run is finished although what it was made from could not be compared."""
    from unbroken.run.folder import RunFolder

    folder = RunFolder.open(gone.root, keep=2)
    try:
        for text in folder.notes:
            report(Notice(text))
        ended = folder.finished()
    finally:
        folder.close()
    if ended is None:
        raise gone
    report(Notice(f"{gone.what}; the run is finished and needs it no more"))
    report(ended)
    return ended


def _train(
    build: Callable[[Path, Progress], Job],
    folder: RunFolder,
    how: Settings,
    report: Reporter,
    stop: StopRequest,
    progress: Progress,
) -> Ended:
    from unbroken.run.engine import train as run_job
    from unbroken.tasks.exhausted import explained

    with explained(folder), set_up(folder, stop):
        with interruptible(stop.check):
            poll()
            job = build(folder.cache, progress)
            poll()
        return run_job(job, folder, how, report, stop)


def is_finished(root: Path) -> bool:
    """Tell whether the last thing a run's journal says is that it is finished."""
    last = read_last(root / layout.JOURNAL_FILE)
    return last is not None and last["kind"] == "finish"


def require_movable(root: Path) -> None:
    """Raise `ConfigError` unless the run at `root` can be renamed where it is, and the command be given again."""
    if Path.cwd().is_relative_to(root.resolve()):
        raise ConfigError(
            f"--restart would move {root.resolve()} aside, the folder this command is given in",
            next_step="change to another folder and give the run's path as output_dir",
        )
    require_writable(root.absolute().parent)


def settings(config: RunConfig, request: Request, step: int | None) -> Settings:
    """Return what the loop may do differently from segment to segment."""
    from unbroken.run.settings import Settings

    return Settings(
        cadence=Cadence(config.resolved_save_strategy, config.save_steps, config.save_seconds),
        eval_steps=config.eval_steps,
        best_metric=config.best_metric if config.load_best_model_at_end else None,
        greater_is_better=config.greater_is_better,
        accept_drift=request.accept_drift,
        restore_step=step,
    )
