"""Where a model comes from: a folder, a hub id, or another run, which then becomes the parent of the new one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError
from unbroken.models.folder import NoModelError
from unbroken.run.summary import checkpoint_problems
from unbroken.store import layout
from unbroken.store.files import DamagedError, digest_file
from unbroken.store.journal import read_last
from unbroken.store.manifest import describe_difference, read_manifest
from unbroken.store.run import is_run, read_run


@dataclass(frozen=True)
class Origin:
    """The folder (or hub id) a model is read from, and the run it came out of, if one did.

    `checkpoint` is the step of the run's own checkpoint that stands in for a base model that is gone.
    """

    model: str
    parent: dict[str, Any] | None = None
    checkpoint: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the model is no run's, or a run's finished one: a checkpoint's may lack what a later phase makes."""
        return self.parent is None or self.parent["step"] is None


def resolve_model(model: str, output_dir: Path | None = None) -> Origin:
    """Find the model folder that `model` names: a model folder, a run, its model/, or one of its checkpoints.

    Raises `ConfigError` if it is the run in `output_dir` itself, or a run that has no model yet, and `DamagedError`
    if the files of a run's model are not those that were written.
    """
    path = Path(model).expanduser()
    if not os.path.isdir(path):
        _require_hub_id(model, path)
        return Origin(model)
    run = enclosing_run(path)
    if run is None:
        return Origin(model)
    if output_dir is not None and run.resolve() == output_dir.resolve():
        raise ConfigError(
            f"model: {model} belongs to the run in output_dir itself",
            next_step=f"to resume it, `unbroken train {run}`; to train its result further, choose a new output_dir",
        )
    folder, step = _model_of(path, run)
    _require_sound(folder, run, step)
    document = read_run(run) or {}
    return Origin(str(folder), {"run": str(run), "run_id": document.get("run_id"), "step": step})


def model_in_checkpoint(run: Path, gone: NoModelError) -> Origin:
    """Return the model in the run's newest checkpoint that verifies, for a run whose base model is gone.

    Only for tasks whose checkpoints hold every tensor of the model. Raises `gone` if there is no such checkpoint.
    """
    document = read_run(run) or {}
    home = run / layout.CHECKPOINTS_FOLDER
    names = sorted(os.listdir(home), reverse=True) if home.is_dir() else []
    for name in names:
        step = layout.step_of(name)
        if step is not None and not checkpoint_problems(home / name, document.get("run_id")):
            return Origin(str(home / name / layout.MODEL_FOLDER), checkpoint=step)
    raise gone


def _require_hub_id(model: str, path: Path) -> None:
    """Raise `ConfigError` for what can only be a path, and leads to no folder."""
    if os.path.lexists(path):
        raise ConfigError(f"model: {model} is a file, not a model folder", next_step="give the folder")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        names = sorted(os.listdir(path.parent)) if os.path.isdir(path.parent) else []
        near = closest(path.name, names)
        missing = f"there is no folder {model}" if names else f"there is no folder {path.parent}"
        raise NoModelError(
            f"model: {missing}",
            next_step=f"did you mean '{path.with_name(near)}'?" if near else "give the path of a model folder or a run",
        )


def enclosing_run(path: Path) -> Path | None:
    """Return the run that `path` is, or lies in, no deeper than checkpoints/STEP/model/MODULE; None if in none."""
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents[:4]):
        if is_run(folder):
            return path if folder == resolved else folder
    return None


def checkpoint_of(path: Path, run: Path, key: str) -> int | None:
    """Return the step of the checkpoint that `path` is or lies in; None for the run, its checkpoints/ or its model/.

    Only a folder in RUN/checkpoints is a checkpoint, whatever others are called. Raises `ConfigError`, which names
    `key`, for anything else in the run.
    """
    parts = path.resolve().relative_to(run.resolve()).parts
    if parts in ((), (layout.CHECKPOINTS_FOLDER,), (layout.MODEL_FOLDER,)):
        return None
    step = layout.step_of(parts[1]) if parts[0] == layout.CHECKPOINTS_FOLDER else None
    if step is None:
        raise ConfigError(
            f"{key}: {path} is neither the run {run} nor one of its checkpoints",
            next_step=f"give {run}, or a folder in {run / layout.CHECKPOINTS_FOLDER}",
        )
    return step


def parse_run_at(text: str) -> tuple[Path, int | None]:
    """Return the run and the step that `RUN`, `RUN@STEP` or the path of a run's checkpoint means; None: no step given.

    Whether the run has a checkpoint of that step is not looked at. Raises `ConfigError` for what is no run, no number
    of steps, or another place in a run.
    """
    path, at, number = Path(text).expanduser(), "", ""
    if not os.path.lexists(path):  # a folder may have an @ in its name
        place, at, number = text.rpartition("@")
        path = Path(place).expanduser() if at else path
    if at and not (number.isascii() and number.isdigit()):
        raise ConfigError(f"{text}: '{number}' is no number of steps", next_step=f"write it as {place}@500")
    run = enclosing_run(path)
    if run is None:
        near = closest(path.name, sorted(os.listdir(path.parent)) if os.path.isdir(path.parent) else [])
        missing = f"{path} is no run (it has no {layout.RUN_FILE})" if os.path.lexists(path) else f"there is no {path}"
        advice = f"did you mean {path.with_name(near)}?" if near and near != path.name else "give the folder of a run"
        raise ConfigError(missing, next_step=advice)
    step = checkpoint_of(path, run, "RUN")
    if at and step is not None:
        raise ConfigError(f"{text} names a step twice", next_step=f"write {run}@{step} or {run}@{int(number)}")
    return run, int(number) if at else step


def newest_checkpoint(run: Path) -> Path | None:
    """Return the run's checkpoint folder with the highest step that has a manifest; its content is not verified."""
    folder = run / layout.CHECKPOINTS_FOLDER
    steps = [layout.step_of(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    for step in sorted((step for step in steps if step is not None), reverse=True):
        checkpoint = folder / layout.checkpoint_name(step)
        if (checkpoint / layout.MANIFEST_FILE).is_file():
            return checkpoint
    return None


def _model_of(path: Path, run: Path) -> tuple[Path, int | None]:
    """Return the model folder meant by a path inside a run, and its step (None: the finished one)."""
    step = checkpoint_of(path, run, "model")
    if step is not None:
        checkpoint = run / layout.CHECKPOINTS_FOLDER / layout.checkpoint_name(step)
        return checkpoint / layout.MODEL_FOLDER, step
    inside = path.resolve().relative_to(run.resolve()).parts
    if inside != (layout.CHECKPOINTS_FOLDER,) and (run / layout.MODEL_FOLDER).is_dir():
        return run / layout.MODEL_FOLDER, None
    newest = newest_checkpoint(run)
    if newest is None:
        raise ConfigError(f"model: the run {run} has no model yet", next_step="let it reach its first commit")
    return newest / layout.MODEL_FOLDER, layout.step_of(newest.name)


def _require_sound(folder: Path, run: Path, step: int | None) -> None:
    """Raise `DamagedError` unless a run's model folder holds what the checkpoint it is of, or came from, says."""
    last: dict[str, Any] = (read_last(run / layout.JOURNAL_FILE) or {}) if step is None else {"best": step}
    advice = f"`unbroken train {run}` places a finished model again; else choose another checkpoint"
    checkpoint = run / layout.CHECKPOINTS_FOLDER / layout.checkpoint_name(last.get("best", 0))
    if not (checkpoint / layout.MANIFEST_FILE).is_file():  # removed to save space: the weights' sums are recorded
        for path, sha256 in last.get("sha256", {}).items():
            with (folder / path).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise DamagedError(f"{folder / path} does not hold what was written (SHA-256 differs)")
        return
    inside = f"{layout.MODEL_FOLDER}/"
    for path, record in read_manifest(checkpoint).files.items():
        if path.startswith(inside):
            actual = digest_file(folder, path.removeprefix(inside))
            if actual != record:
                difference = describe_difference(folder / path.removeprefix(inside), record, actual)
                raise DamagedError(difference, next_step=advice)
