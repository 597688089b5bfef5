"""What someone asked for: values, where each came from, and what a run that exists makes of those left open."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unbroken.base.config import Config, closest, load_yaml
from unbroken.base.errors import ConfigError
from unbroken.store import layout
from unbroken.store.run import read_run
from unbroken.tasks.common import RunConfig
from unbroken.tasks.origin import checkpoint_of, enclosing_run
from unbroken.tasks.task import find_task

ROWS_IN_MEMORY = re.compile(r"<\d+ rows in memory>")


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
            return cls(given, dict.fromkeys(given, "given"), **options)
        if isinstance(config, Mapping):
            return cls(dict(config), dict.fromkeys(config, "given"), **options)
        path = Path(config)
        if path.is_dir():
            return cls(recorded_values(path), dict.fromkeys(RunConfig.model_fields, str(path)), **options)
        values = load_yaml(path)
        return cls(values, dict.fromkeys(values, str(config)), **options)

    def with_values(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> Request:
        """Return the request with other values, some of them from somewhere else."""
        return replace(self, values=values, origins={**self.origins, **origins})


def resolve_config(request: Request, document: Mapping[str, Any] | None) -> RunConfig:
    """Return the configuration asked for; what it leaves open is as recorded in the run's `document`.

    Raises `ConfigError` naming the first key that is wrong.
    """
    values = dict(request.values)
    recorded = document["config"] if document is not None else {}
    values = {key: recorded[key] for key in ("task", "train_data", "eval_data") if key in recorded} | values
    misspelt = None if "task" in values else closest("task", values)
    origin = request.origins.get(misspelt or "task") or next(iter(request.origins.values()), "")
    if misspelt:
        place = f"{origin}: " if origin else ""
        raise ConfigError(f"{place}unknown key '{misspelt}'", next_step="did you mean 'task'?")
    for key in ("train_data", "eval_data"):
        if isinstance(values.get(key), str) and ROWS_IN_MEMORY.fullmatch(values[key]):
            raise ConfigError(
                f"{key}: the run was started from Python with {values[key][1:-1]}",
                next_step=f"continue it from Python with the same rows, or give a file: --set {key}=FILE",
            )
    cls = find_task(values.get("task"), origin).CONFIG
    return cls.from_values(values | (cls.left_open(recorded, values) if recorded else {}), request.origins)


def output_dir(values: Mapping[str, Any]) -> Path:
    """Return the run's folder. Raises `ConfigError` if none is given."""
    if not isinstance(values.get("output_dir"), str | os.PathLike):
        raise ConfigError("key 'output_dir' is missing", next_step="add `output_dir: runs/NAME` to the configuration")
    path = Path(values["output_dir"]).expanduser()
    return path.resolve() if path.name == ".." else path  # which is no name to be moved aside under


def recorded_values(root: Path) -> dict[str, Any]:
    """Return the configuration a run was started with. Raises `ConfigError` if the folder is no run."""
    run = enclosing_run(root)
    document = read_run(run) if run else None
    if document is None:
        raise ConfigError(f"{root} is no run (it has no {layout.RUN_FILE})", next_step="give a configuration file")
    if document["config"].get("task") == "loop":
        raise ConfigError(f"{run} is the run of a loop of your own", next_step="run your script again: it goes on")
    values = dict(document["config"]) | {"output_dir": str(run)}
    if values.get("mirror") and run is not None and Path(values["mirror"]).resolve() == run.resolve():
        values["mirror"] = None  # the mirror itself was given, to go on in
    return values


def step_asked_for(resume: bool | str | None, root: Path) -> int | None:
    """Return the step of the one checkpoint asked for, or None for the newest good one.

    Raises `ConfigError` for a path that is not there or not in this run.
    """
    if resume is None or isinstance(resume, bool) or str(resume).lower() in ("true", "false", "auto"):
        return None
    path = Path(resume).expanduser()
    if not os.path.exists(path):
        raise ConfigError(
            f"resume_from_checkpoint: {resume} is not there",
            next_step="leave it out: the run goes on from its newest good checkpoint",
        )
    run = enclosing_run(path)
    if run is None or run.resolve() != root.resolve():
        raise ConfigError(
            f"resume_from_checkpoint: {resume} is not in the run {root}",
            next_step=f"to start a new run from those weights, give them as `model: {resume}`",
        )
    return checkpoint_of(path, run, "resume_from_checkpoint")
