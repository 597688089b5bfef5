"""A run as its folder tells it: read only, without its lock, while it trains, and when parts of it are damaged."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unbroken.base.errors import CannotContinueError, UnbrokenError
from unbroken.run.proof import proof
from unbroken.store import files, layout
from unbroken.store.held import is_held
from unbroken.store.journal import read_records
from unbroken.store.lock import holder
from unbroken.store.manifest import differences, read_manifest
from unbroken.store.run import is_run, read_run, run_problems

SILENT = "ended without a word (killed, power lost, or an error)"
MAIN_METRICS = ("ndcg@10", "spearman_cosine", "cosine_accuracy", "accuracy", "f1")
IN_MEMORY = "<"  # how a recorded configuration begins that names rows in memory instead of a file


@dataclass
class Segment:
    """One process's stretch of a run. `before` is the last recorded step it went on from, `after` its first step."""

    number: int
    began: str | None
    host: str
    pid: int | None
    from_step: int
    to_step: int
    environment: dict[str, Any]
    folder: str = ""
    command: list[str] = field(default_factory=list)
    replayed: int = 0
    ended: str = SILENT
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


@dataclass
class CheckpointSummary:
    """One checkpoint of a run. `problems` says what is wrong with it; None: nobody looked."""

    step: int
    size_bytes: int
    problems: list[str] | None = None


@dataclass
class RunSummary:
    """Everything there is to say about a run. `problems` has one line for each thing that is damaged or missing."""

    path: str
    name: str
    state: str = "not begun"
    step: int = 0
    total_steps: int | None = None
    run_id: str | None = None
    created: str | None = None
    parent: dict[str, Any] | None = None
    task: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metric: str | None = None
    best_metric: float | None = None
    last_metric: float | None = None
    size_bytes: int = 0
    num_segments: int = 0
    segments: list[Segment] = field(default_factory=list)
    checkpoints: list[CheckpointSummary] = field(default_factory=list)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    proof: dict[str, Any] = field(default_factory=dict)
    held_by: dict[str, Any] | None = None
    stopped_in_set_up: str | None = None
    resume: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def newest_good_step(self) -> int | None:
        """The step of the newest checkpoint that verified."""
        return max((checkpoint.step for checkpoint in self.checkpoints if checkpoint.problems == []), default=None)

    def flat(self) -> dict[str, Any]:
        """Return everything as JSON has it: configuration, data and proof under dotted keys, the rest by name."""
        values = asdict(self)
        for group in ("config", "data", "proof"):
            values |= {f"{group}.{key}": value for key, value in values.pop(group).items()}
        return values


def looks_like_run(root: Path) -> bool:
    """Tell whether a folder is a run, or was one before its `run.json` went missing."""
    return is_run(root) or (root / layout.JOURNAL_FILE).is_file()


def find_runs(folder: Path) -> list[Path]:
    """Return the runs in a folder, and in the folders of that folder that are no runs themselves."""
    found: list[Path] = []
    for child in _folders(folder):
        found += [child] if looks_like_run(child) else filter(looks_like_run, _folders(child))
    return found


def list_run(root: Path) -> RunSummary:
    """Return what a list of runs shows: no checkpoint is verified."""
    summary, _ = _read(root)
    return summary


def describe_run(root: Path) -> RunSummary:
    """Return all there is to say about a run, every digest of every checkpoint compared."""
    summary, steps = _read(root)
    for segment in summary.segments:
        if segment.from_step:
            segment.before, segment.after = steps.get(segment.from_step), steps.get(segment.from_step + 1)
    try:
        summary.proof = proof(read_records(root / layout.JOURNAL_FILE))
    except UnbrokenError:
        summary.proof = {}  # named among the problems already
    summary.checkpoints = list(_checkpoints(root, summary.run_id))
    if summary.checkpoints and summary.newest_good_step is None:
        summary.problems.append("no checkpoint verifies: the run cannot go on")
    broken = [name for name in _names(root / layout.CHECKPOINTS_FOLDER) if name.startswith(layout.BROKEN_PREFIX)]
    if broken:
        summary.problems.append(f"broken checkpoints were set aside earlier: {', '.join(broken)}")
    return summary


def resume_command(summary: RunSummary) -> str | None:
    """Return the command that carries the run on; None if there is nothing to carry on."""
    if summary.state == "finished" or summary.run_id is None:
        return None
    in_memory = str(summary.config.get("train_data", IN_MEMORY)).startswith(IN_MEMORY)
    last = summary.segments[-1] if summary.segments else None
    if in_memory and last is not None and last.command:
        return f"cd {shlex.quote(last.folder)} && {shlex.join(last.command)}"
    return "the Python call that began it" if in_memory else f"unbroken train {shlex.quote(summary.path)}"


def _read(root: Path) -> tuple[RunSummary, dict[int, dict[str, Any]]]:
    """Return the summary but for checkpoints and proof, and every recorded step's loss and learning rate."""
    held = is_held(root)  # asked first: a run that ends while its journal is read must not look killed
    summary = RunSummary(str(root), root.resolve().name, size_bytes=folder_bytes(root))
    try:
        document = read_run(root) or {}
        if not document:
            summary.problems.append(f"{layout.RUN_FILE} is missing: what this run is cannot be told")
        summary.problems += run_problems(root)
    except UnbrokenError as damage:
        summary.problems.append(damage.what)
        document = {}
    contract = document.get("contract", {})
    summary.run_id, summary.created = document.get("run_id"), document.get("created")
    summary.parent, summary.config = document.get("parent"), document.get("config", {})
    summary.task, summary.data = summary.config.get("task"), contract.get("data", {})
    tally = Tally(summary)
    damaged: list[str] = []
    try:
        for record in read_records(root / layout.JOURNAL_FILE, damaged):
            tally.take(record)
    except (UnbrokenError, KeyError, TypeError) as damage:
        damaged.append(f"{layout.JOURNAL_FILE} cannot be read: {damage}")
    summary.problems += damaged
    summary.num_segments = len(summary.segments)
    _stand(summary, held, holder(root))
    _metrics(summary)
    if not document:
        summary.state = "damaged"
    summary.resume = resume_command(summary)
    return summary, tally.steps


class Tally:
    """Reads the journal's records, in order, into a summary."""

    def __init__(self, summary: RunSummary) -> None:
        self.summary = summary
        self.steps: dict[int, dict[str, Any]] = {}

    def take(self, record: Mapping[str, Any]) -> None:
        """Take one record."""
        match record["kind"]:
            case "fork":
                self.summary.state = "forked"
                self.summary.total_steps = record["last_step"]
                self._reach(record["n"])
            case "segment":
                self._begin(record)
            case "step":
                kept = ("n", "loss", "learning_rate")
                self.steps[record["n"]] = {key: record[key] for key in kept}
                self._reach(record["n"])
            case "replay":
                self._reach(record["last"])
                if self.summary.segments:
                    self.summary.segments[-1].replayed += record["count"]
            case "evaluation":
                self.summary.evaluations[record["n"]] = record["metrics"]
            case "stop" if record.get("in_set_up"):
                self.summary.stopped_in_set_up = record["reason"]
            case "stop":
                self._end(record["n"], f"stopped: {record['reason']}")
            case "refusal":
                self._end(record["n"] - 1, f"refused: {record['text']}")
            case "failure":
                self._end(record["n"], f"failed: {record['text']}")
            case "failed_step":
                self._end(record["n"] - 1, f"step {record['n']} failed: {record['text']}")
            case "finish":
                self._end(record["n"], "finished")
                self.summary.total_steps = record["n"]

    def _begin(self, record: Mapping[str, Any]) -> None:
        step, self.summary.stopped_in_set_up = record["step"], None
        self.summary.total_steps = record.get("last_step", self.summary.total_steps)
        self.summary.segments.append(
            Segment(
                number=record["segment"],
                began=record.get("began"),
                host=record.get("host", ""),
                pid=record.get("pid"),
                from_step=step,
                to_step=step,
                environment=record.get("environment", {}),
                folder=record.get("folder", ""),
                command=list(record.get("command", [])),
            )
        )

    def _reach(self, step: int) -> None:
        self.summary.step = max(self.summary.step, step)
        if self.summary.segments:
            last = self.summary.segments[-1]
            last.to_step = max(last.to_step, step)

    def _end(self, step: int, how: str) -> None:
        self._reach(step)
        if self.summary.segments:
            self.summary.segments[-1].ended = how


def _stand(summary: RunSummary, held: bool | None, names: dict[str, Any] | None) -> None:
    """Say whether the run is finished, stopped, killed, refused, or running now."""
    if summary.segments:
        ended = summary.segments[-1].ended
        summary.state = "killed" if ended == SILENT else ended.partition(":")[0]
    if held or (held is None and names is not None):
        summary.held_by = names or {}
        if summary.state != "finished":
            summary.state = "running" if held else f"killed, or running on {(names or {}).get('host')}"
            if summary.segments and summary.segments[-1].ended == SILENT:
                summary.segments[-1].ended = summary.state


def _metrics(summary: RunSummary) -> None:
    """Pick the metric a run is judged by, its best value and its last."""
    if not summary.evaluations:
        return
    last = summary.evaluations[max(summary.evaluations)]
    wanted = (summary.config.get("metric_for_best_model"), *MAIN_METRICS, *last)
    name = next((name for name in wanted if name in last), None)
    if name is None:
        return
    values = [metrics[name] for metrics in summary.evaluations.values() if name in metrics]
    better = max if summary.config.get("greater_is_better", True) else min
    summary.metric, summary.best_metric, summary.last_metric = name, better(values), last[name]


def _checkpoints(root: Path, run_id: str | None) -> Iterator[CheckpointSummary]:
    home = root / layout.CHECKPOINTS_FOLDER
    for name in _names(home):
        step, folder = layout.step_of(name), home / name
        if step is None:
            continue
        problems = checkpoint_problems(folder, run_id)
        if folder.is_dir():  # a run that trains may have retired it meanwhile
            yield CheckpointSummary(step, folder_bytes(folder), problems)


def checkpoint_problems(folder: Path, run_id: str | None = None) -> list[str]:
    """Return in words all that is wrong with a checkpoint, every digest compared; nothing if it is good."""
    try:
        return differences(folder, read_manifest(folder, run_id))
    except CannotContinueError as problem:
        return [problem.what]
    except UnbrokenError as problem:
        return [f"cannot be read now: {problem.what}"]


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder; links are not followed, what vanishes meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def _folders(folder: Path) -> Iterable[Path]:
    return [folder / name for name in _names(folder) if not name.startswith(".") and (folder / name).is_dir()]


def _names(folder: Path) -> list[str]:
    try:
        return files.list_folder(folder)
    except UnbrokenError:
        return []
