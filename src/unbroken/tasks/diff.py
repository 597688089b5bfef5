"""Two runs, or two checkpoints, side by side: what they were told, where they ran, what they did, what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unbroken.base.config import contract_of
from unbroken.base.errors import CannotContinueError, ConfigError, UnbrokenError
from unbroken.plan.source import first_difference as first_row
from unbroken.run import contract
from unbroken.run.compare import Compared, compare_tensors
from unbroken.run.environment import changes
from unbroken.run.evidence import Evidence, read_evidence
from unbroken.run.replay import CAUSES, first_difference
from unbroken.store import layout
from unbroken.store.checkpoints import read_checkpoint
from unbroken.store.manifest import read_manifest
from unbroken.store.run import read_run
from unbroken.store.tensors import read_file
from unbroken.tasks.task import TASKS, find_task


@dataclass(frozen=True)
class Side:
    """One of the two: a run, perhaps at a step."""

    root: Path
    step: int | None
    document: dict[str, Any]
    evidence: Evidence

    @property
    def home(self) -> Path:
        """The folder of its checkpoints."""
        return self.root / layout.CHECKPOINTS_FOLDER


@dataclass(frozen=True)
class Changed:
    """A value that differs; `kind` says whether it makes another run: identity, content, operational, or unknown."""

    key: str
    first: Any
    second: Any
    kind: str


@dataclass
class Diff:
    """What differs between two runs, and how much of them was compared."""

    first: str
    second: str
    config: list[Changed] = field(default_factory=list)
    inputs: list[Changed] = field(default_factory=list)
    first_changed_row: int | None = None  # counted from 1
    environment: list[str] = field(default_factory=list)
    last_steps: tuple[int, int] = (0, 0)
    steps_compared: int = 0
    equal_steps: int = 0  # before the first that differs
    first_step: int | None = None
    differs: str = ""  # what of that step: ids, learning_rate, loss, grad_norm
    records: tuple[dict[str, Any], dict[str, Any]] | None = None
    tensors: dict[str, Compared] = field(default_factory=dict)  # by what was compared
    notes: list[str] = field(default_factory=list)

    @property
    def likely_cause(self) -> str:
        """Why the first differing step differs: what makes them different runs, or else what its record tells."""
        changed = [one.key for one in (*self.config, *self.inputs) if one.kind != "operational"]
        if self.differs and changed:
            return f"they differ in {', '.join(changed)}"
        return CAUSES.get(self.differs, "")

    @property
    def same(self) -> bool:
        """Whether every step on record on both sides, and every tensor compared, is identical."""
        return self.first_step is None and not any(compared.different for compared in self.tensors.values())

    def flat(self) -> dict[str, Any]:
        """Return everything as JSON has it, one flat object."""
        values: dict[str, Any] = {
            "first": self.first,
            "second": self.second,
            "same": self.same,
            "steps_compared": self.steps_compared,
            "equal_steps": self.equal_steps,
            "first_differing_step": self.first_step,
            "differs_first_in": self.differs or None,
            "likely_cause": self.likely_cause or None,
            "last_steps": list(self.last_steps),
            "first_changed_row": self.first_changed_row,
            "environment_changes": self.environment,
            "notes": self.notes,
        }
        for side, record in zip(("first", "second"), self.records or (), strict=False):
            values |= {f"step.{side}.{key}": record.get(key) for key in ("n", *CAUSES)}
        for changed in (*self.config, *self.inputs):
            values[f"changed.{changed.key}"] = [changed.first, changed.second, changed.kind]
        for what, compared in self.tensors.items():
            different = compared.different
            values |= {
                f"tensors.{what}.compared": compared.total,
                f"tensors.{what}.identical": compared.identical,
                f"tensors.{what}.first_different": different[0].name if different else None,
                f"tensors.{what}.differing_elements": sum(one.elements for one in different),
                f"tensors.{what}.largest_difference": _largest(compared),
            }
        return values


def diff(first: tuple[Path, int | None], second: tuple[Path, int | None]) -> Diff:
    """Compare two runs, each perhaps at a step; only what both hold is compared, and nothing is written.

    Raises `ConfigError` for what is no run, `CannotContinueError` for a step without a checkpoint that verifies, or if
    there is nothing that both hold.
    """
    one, other = _open(*first), _open(*second)
    found = Diff(_name(one), _name(other))
    found.config = list(_config(one.document, other.document))
    found.inputs = list(_inputs(one.document, other.document))
    _rows(one, other, found)
    found.environment = _environments(one, other)
    _steps(one, other, found)
    _tensors(one, other, found)
    if not found.steps_compared and not found.tensors:
        raise CannotContinueError(
            f"{found.first} and {found.second} hold nothing that could be compared",
            why="no step is on record in both, and neither a checkpoint of one step nor a finished model is in both",
        )
    return found


def _open(root: Path, step: int | None) -> Side:
    document = read_run(root)
    if document is None:
        raise ConfigError(f"{root} is no run (it has no {layout.RUN_FILE})", next_step="give the folder of a run")
    try:
        evidence = read_evidence(root)
    except UnbrokenError as failure:
        evidence = Evidence(damaged=[failure.what])
    return Side(root, step, document, evidence)


def _name(side: Side) -> str:
    return str(side.root) if side.step is None else f"{side.root}@{side.step}"


def _config(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Changed]:
    for path, old, new in contract.differences(one["config"], other["config"]):
        yield Changed(path, old, new, _kind(path.partition(".")[0], one["config"].get("task")))


def _kind(key: str, task: Any) -> str:
    if task not in TASKS:
        return "unknown"
    fields = find_task(task).CONFIG
    return contract_of(fields, key) if key in fields.model_fields else "unknown"


def _inputs(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Changed]:
    """Yield the differences of the contracts beside the configuration: digests of data, model, tokenizer and so on."""
    for path, old, new in contract.differences(one["contract"], other["contract"]):
        if not path.startswith("config."):
            yield Changed(path, old, new, "content")


def _rows(one: Side, other: Side, found: Diff) -> None:
    if not any(changed.key.startswith("data.") for changed in found.inputs):
        return
    try:
        contents = [(side.root / layout.DATA_DIGESTS_FILE).read_bytes() for side in (one, other)]
        row = first_row(*(np.frombuffer(content, dtype="<u8") for content in contents))
    except (OSError, ValueError):
        found.notes.append(f"which row differs first cannot be told: {layout.DATA_DIGESTS_FILE} is missing or cut")
        return
    found.first_changed_row = None if row is None else row + 1


def _environments(one: Side, other: Side) -> list[str]:
    """Compare every segment's environment with that of the first segment there is."""
    known = [
        (f"{side.root} segment {segment.get('segment')}", segment["environment"])
        for side in (one, other)
        for segment in side.evidence.segments
        if segment.get("environment")
    ]
    return [f"{name}: {line}" for name, there in known[1:] for line in changes(known[0][1], there)]


def _steps(one: Side, other: Side, found: Diff) -> None:
    found.last_steps = (one.evidence.last, other.evidence.last)
    common = sorted(one.evidence.steps.keys() & other.evidence.steps.keys())
    for side in (one, other):
        found.notes += [f"{side.root}: {text}" for text in side.evidence.damaged]
    for number in common:
        records = one.evidence.steps[number], other.evidence.steps[number]
        found.steps_compared += 1
        found.differs = first_difference(*records)
        if found.differs:
            found.first_step, found.records = number, records
            return
        found.equal_steps += 1
    if one.evidence.last != other.evidence.last:
        longer = max((one, other), key=lambda side: side.evidence.last)
        found.notes.append(f"{longer.root} goes on to step {longer.evidence.last}: no record to compare with")


def _tensors(one: Side, other: Side, found: Diff) -> None:
    """Compare the checkpoints asked for, or the newest that both have; and the finished models, if neither is asked."""
    if one.step is not None or other.step is not None:
        first = one.step if one.step is not None else other.step
        second = other.step if other.step is not None else one.step
        assert first is not None
        assert second is not None
        what = f"checkpoint {first}" if first == second else f"checkpoints {first} and {second}"
        found.tensors[what] = compare_tensors(_checkpoint(one, first), _checkpoint(other, second))
        return
    for step in sorted(_steps_of(one) & _steps_of(other), reverse=True):
        try:
            found.tensors[f"checkpoint {step}"] = compare_tensors(_checkpoint(one, step), _checkpoint(other, step))
            break
        except UnbrokenError as failure:
            found.notes.append(failure.what)
    if one.evidence.finish is not None and other.evidence.finish is not None:
        try:
            found.tensors["the finished model"] = compare_tensors(_model(one), _model(other))
        except UnbrokenError as failure:
            found.notes.append(failure.what)


def _steps_of(side: Side) -> set[int]:
    names = [entry.name for entry in side.home.iterdir()] if side.home.is_dir() else []
    return {step for step in map(layout.step_of, names) if step is not None}


def _checkpoint(side: Side, step: int) -> dict[str, Any]:
    """Return the tensors of a checkpoint that verifies, in the order of its files."""
    folder = side.home / layout.checkpoint_name(step)
    if not folder.is_dir():
        there = ", ".join(map(str, sorted(_steps_of(side)))) or "none"
        raise CannotContinueError(f"{side.root} has no checkpoint of step {step}", next_step=f"there are: {there}")
    tensors = read_checkpoint(folder, side.document["run_id"]).tensors
    places = read_manifest(folder).tensors
    return {name: tensors[name] for name in sorted(tensors, key=lambda name: (places[name].file, places[name].key))}


def _model(side: Side) -> dict[str, Any]:
    """Return the tensors of a finished model, in the order of its files."""
    assert side.evidence.finish is not None
    found: dict[str, Any] = {}
    for path in sorted(side.evidence.finish["sha256"]):
        content = read_file(side.root / layout.MODEL_FOLDER, path).tensors
        found |= {f"{path}/{key}": content[key] for key in sorted(content)}
    return found


def _largest(compared: Compared) -> float | None:
    return max((one.largest for one in compared.different if one.largest is not None), default=None)
