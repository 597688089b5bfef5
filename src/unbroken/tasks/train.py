"""Start a run, continue it, or say that it is finished: always the right one of the three."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unbroken.base.config import Config, load_yaml
from unbroken.base.errors import CannotContinueError, ConfigError
from unbroken.plan.source import first_difference
from unbroken.run import contract, environment
from unbroken.run.cadence import Cadence
from unbroken.run.engine import Settings
from unbroken.run.engine import train as run_job
from unbroken.run.folder import RunFolder
from unbroken.run.preflight import require_new_folder, require_space
from unbroken.run.report import Ended, Notice, Reporter, plain
from unbroken.run.stop import StopRequest
from unbroken.store import files, layout
from unbroken.store.run import read_run
from unbroken.tasks.common import TrainingConfig
from unbroken.tasks.origin import enclosing_run
from unbroken.tasks.task import Prepared, Progress, find_task

# weights, and two Adam moments of the same size
CHECKPOINT_MULTIPLE = 3


@dataclass(frozen=True)
class Request:
    """What someone asked for: the values given, where each came from, and how to treat a run that exists."""

    values: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)
    resume_from_checkpoint: bool | str | None = None
    restart: bool = False
    accept_drift: bool = False

    @classmethod
    def of(cls, config: Config | Mapping[str, Any] | str | os.PathLike[str], **options: Any) -> Request:
        """Take a configuration object, plain values, a YAML file, or the folder of a run."""
        if isinstance(config, Config):
            given = {key: getattr(config, key) for key in config.model_fields_set | {"task"}}
            return cls(given, **options)
        if isinstance(config, Mapping):
            return cls(dict(config), **options)
        path = Path(config)
        if path.is_dir():
            return cls(recorded_values(path), dict.fromkeys(TrainingConfig.model_fields, str(path)), **options)
        values = load_yaml(path)
        return cls(values, dict.fromkeys(values, str(path)), **options)

    def with_values(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> Request:
        """Return the request with other values, some of them from somewhere else."""
        return replace(self, values=values, origins={**self.origins, **origins})


def train(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    *,
    resume_from_checkpoint: bool | str | None = None,
    restart: bool = False,
    accept_drift: bool = False,
    report: Reporter = plain,
) -> Ended:
    """Carry the run that `config` describes to its end and return how it ended.

    A new folder starts a run, an unfinished run continues from its last commit, a finished one says so. `config` is
    an `EmbedConfig` (or another task's), a mapping, a YAML file, or the folder of a run. `resume_from_checkpoint`
    may be True, the run, its checkpoints folder, or one checkpoint; it is never needed. `restart` moves a run that
    stands in the way aside; `accept_drift` goes on where results no longer repeat to the bit.

    Raises `ConfigError`, `DataError`, `CannotContinueError`, `BusyError`, `TrainingError` or `StorageError`; what was
    committed before stands.
    """
    request = Request.of(
        config, resume_from_checkpoint=resume_from_checkpoint, restart=restart, accept_drift=accept_drift
    )
    return carry_out(request, report, StopRequest())


def carry_out(request: Request, report: Reporter, stop: StopRequest, progress: Progress = lambda *args: None) -> Ended:
    """Do what `train` promises for a request."""
    root = output_dir(request.values)
    if request.restart and read_run(root) is not None:
        report(Notice(f"moved the earlier run to {files.set_aside(root, 'before-restart-')}"))
    existing = read_run(root)
    values = dict(request.values)
    if existing is not None:
        values = recorded_identity(existing, values) | values
    config = find_task(values.get("task")).CONFIG.from_values(values, request.origins)
    step = step_asked_for(request.resume_from_checkpoint, root)
    folder = RunFolder.open(root, keep=config.save_total_limit) if existing is not None else None
    try:
        return _carry_out(config, request, folder, step, report, stop, progress)
    finally:
        if folder is not None:
            folder.close()


def _carry_out(
    config: TrainingConfig,
    request: Request,
    folder: RunFolder | None,
    step: int | None,
    report: Reporter,
    stop: StopRequest,
    progress: Progress,
) -> Ended:
    root = Path(config.output_dir)
    if folder is None:
        require_new_folder(root)
    cache = root / layout.CACHE_FOLDER if folder else None
    prepared = find_task(config.task).prepare(config, cache)
    threads = resolve_threads(config, folder)
    asked = compose_contract(config, prepared, threads)
    if folder is not None:
        check_contract(folder, asked, prepared, request.origins)
        finished = folder.finished()
        if finished is not None:
            report(finished)
            return finished
    environment.pin(threads)
    build = prepared.load()
    new = folder is None
    if folder is None:
        require_space(root, prepared.weights_bytes * (CHECKPOINT_MULTIPLE * (config.save_total_limit + 1) + 1))
        folder = RunFolder.create(
            root,
            asked,
            config=plain_values(config),
            keep=config.save_total_limit,
            parent=prepared.parent,
            row_digests=prepared.row_digests,
        )
        if prepared.parent:
            report(Notice(f"new run from the weights of {prepared.parent['run']}: weights only, step 0"))
    try:
        job = build(folder.cache, progress)
        return run_job(job, folder, settings(config, request, step), report, stop)
    finally:
        if new:
            folder.close()


def output_dir(values: Mapping[str, Any]) -> Path:
    """Return the run's folder. Raises `ConfigError` if none is given."""
    if not isinstance(values.get("output_dir"), str):
        raise ConfigError("key 'output_dir' is missing", next_step="add `output_dir: runs/NAME` to the configuration")
    return Path(values["output_dir"])


def recorded_values(root: Path) -> dict[str, Any]:
    """Return the configuration a run was started with. Raises `ConfigError` if the folder is no run."""
    run = enclosing_run(root)
    document = read_run(run) if run else None
    if document is None:
        raise ConfigError(f"{root} is no run (it has no {layout.RUN_FILE})", next_step="give a configuration file")
    return dict(document["config"]) | {"output_dir": str(run)}


def recorded_identity(document: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's recorded values for what the request leaves open: keys it lacks, or gives as `auto`.

    A default that changed in a newer version must not change a run that is under way.
    """
    recorded = dict(document["config"])
    return {key: value for key, value in recorded.items() if key not in asked}


def resolve_threads(config: TrainingConfig, folder: RunFolder | None) -> int:
    """Return the number of CPU threads: as asked, as recorded, or for a new run as many as there are cores."""
    if isinstance(config.threads, int):
        return config.threads
    if folder is not None:
        return int(folder.contract["config"]["threads"])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plain_values(config: TrainingConfig) -> dict[str, Any]:
    """Return every value of a configuration as JSON; rows in memory become a remark."""
    values = {key: getattr(config, key) for key in type(config).model_fields}
    for key in ("train_data", "eval_data"):
        if values[key] is not None and not isinstance(values[key], str):
            values[key] = f"<{len(values[key])} rows in memory>"
    return values


def compose_contract(config: TrainingConfig, prepared: Prepared, threads: int) -> contract.Contract:
    """Return what must not change under the run."""
    identity = {key: getattr(config, key) for key in config.identity_keys()}
    return {"config": identity | {"threads": threads}} | prepared.identity


def check_contract(folder: RunFolder, asked: contract.Contract, prepared: Prepared, origins: Mapping[str, str]) -> None:
    """Raise `CannotContinueError` unless this is the run it was; changed data name the first differing row."""
    recorded = folder.contract
    if recorded["data"] != asked["data"]:
        before = np.frombuffer((folder.root / layout.DATA_DIGESTS_FILE).read_bytes(), dtype="<u8")
        row = first_difference(before, np.frombuffer(prepared.row_digests, dtype="<u8"))
        where = "columns or roles differ" if row is None else f"the first row that differs is row {row + 1}"
        raise CannotContinueError(
            f"the training data are not those {folder.root} was started with: "
            f"{recorded['data']['examples']} rows then, {asked['data']['examples']} now; {where}",
            next_step="put the data back, choose a new output_dir, or --restart to start over",
        )
    contract.require_same(recorded, asked, run=str(folder.root), origins=origins)


def step_asked_for(resume: bool | str | None, root: Path) -> int | None:
    """Return the step of the one checkpoint asked for, or None for the newest good one.

    Raises `ConfigError` for a path that is not in this run.
    """
    if resume is None or isinstance(resume, bool) or str(resume).lower() in ("true", "false", "auto"):
        return None
    path = Path(resume)
    run = enclosing_run(path)
    if run is None or run.resolve() != root.resolve():
        what = "is not there" if not path.exists() else f"is not in the run {root}"
        raise ConfigError(
            f"resume_from_checkpoint: {resume} {what}",
            next_step=f"to start a new run from those weights, give them as `model: {resume}`",
        )
    return layout.step_of(path.resolve().name)


def settings(config: TrainingConfig, request: Request, step: int | None) -> Settings:
    """Return what the loop may do differently from segment to segment."""
    return Settings(
        cadence=Cadence(config.resolved_save_strategy, config.save_steps, config.save_seconds),
        eval_steps=config.eval_steps,
        best_metric=config.best_metric if config.load_best_model_at_end else None,
        greater_is_better=config.greater_is_better,
        accept_drift=request.accept_drift,
        restore_step=step,
    )
