"""Fork: a new run from the state of another, with changed configuration, and what the change means in plain lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbroken.base.config import merge, shown
from unbroken.base.errors import CannotContinueError, ConfigError, StorageError
from unbroken.run import contract
from unbroken.run.mirroring import mirror_of
from unbroken.run.patience import LOOK_SECONDS, patiently
from unbroken.run.preflight import require_space
from unbroken.run.report import Notice, Reporter, plain
from unbroken.store import layout
from unbroken.store.mirror import belongs
from unbroken.tasks.common import RunConfig
from unbroken.tasks.contract import FIXED, compose_contract, plain_values, resolve_threads
from unbroken.tasks.course import PHASES
from unbroken.tasks.meaning import Side, meaning
from unbroken.tasks.origin import parse_run_at
from unbroken.tasks.request import Request, resolve_config
from unbroken.tasks.task import Prepared, Progress, find_task
from unbroken.tasks.train import CHECKPOINT_MULTIPLE

if TYPE_CHECKING:  # torch, which nobody waits for whose command has a mistake
    from unbroken.run.folder import RunFolder
    from unbroken.run.fork import Source
    from unbroken.store.checkpoints import Image, Restored

FITS_NOT = {
    "model": "the weights and the optimizer's state are those of that model",
    "adapter": "the weights and the optimizer's state grew out of that adapter",
    "tokenizer": "the same ids would stand for other words",
    "labels": "each row of the head belongs to one class, and would stand for another",
}
LOOP = "loop"


@dataclass(frozen=True)
class Forked:
    """A fork as it stands on disk; `changed` has the old and the new value of each key, `meaning` lines for people."""

    root: Path
    run_id: str
    parent: dict[str, Any]
    step: int
    total_steps: int
    changed: dict[str, tuple[Any, Any]]
    meaning: list[str]
    command: str

    def flat(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        values = {
            "run": str(self.root),
            "run_id": self.run_id,
            "step": self.step,
            "total_steps": self.total_steps,
            "changed": {key: list(pair) for key, pair in self.changed.items()},
            "meaning": self.meaning,
            "train": self.command,
        }
        shown = ("run", "run_id", "step", "manifest")
        return values | {f"parent.{key}": self.parent[key] for key in shown}


def fork(
    run: str | Path,
    output_dir: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    report: Reporter = plain,
    progress: Progress = lambda *args: None,
    origin: str = "given",
) -> Forked:
    """Make `output_dir` a new run that begins with the state of `run`, under a changed configuration.

    `run` is a run's folder, RUN@STEP, or one of its checkpoints; without a step the newest checkpoint that verifies is
    taken. Keys that `changes` leaves out, or sets to `auto`, keep the values of `run`, which is only read.
    `unbroken.train(output_dir)` carries the new run on. It is there whole or not at all.

    Raises `ConfigError` and `DataError` for what `train` would refuse too, `CannotContinueError` if the state does not
    fit what is asked for or no checkpoint verifies, `BusyError`, `StorageError`.
    """
    root, step = parse_run_at(str(run))
    target = Path(output_dir).expanduser()
    _require_plain(changes or {}, target)
    from unbroken.run.fork import read_source, require_new_run
    from unbroken.store.run import read_run

    require_new_run(target)
    document = read_run(root) or {}
    if document.get("config", {}).get("task") == LOOP:
        return _copy_loop(read_source(root, step), target, changes or {}, report)
    asked = _compose(root, document, target, dict(changes or {}), origin)
    return _carry_over(read_source(root, step), asked, target, report, progress)


@dataclass(frozen=True)
class Asked:
    """The configuration and contract of the new run, known to be one the state may be carried over to."""

    config: RunConfig
    prepared: Prepared
    threads: int
    recorded: contract.Contract
    contract: contract.Contract
    old: Side
    new: Side
    changed: dict[str, tuple[Any, Any]]


def _require_plain(changes: Mapping[str, Any], target: Path) -> None:
    if "output_dir" in changes:
        raise ConfigError(
            f"output_dir is given twice: {target} and {changes['output_dir']}",
            next_step="give the new run's folder once, after RUN",
        )


def _compose(root: Path, document: Mapping[str, Any], target: Path, changes: dict[str, Any], origin: str) -> Asked:
    """Recompose the contract under the changes. Raises `CannotContinueError` for what the state cannot fit."""
    before = document["config"]
    values = {key: merge({key: before.get(key)}, {key: value})[key] for key, value in changes.items()}
    values = {"mirror": None} | values | {"output_dir": str(target)}  # the parent's mirror is that of the parent alone
    if values.get("task", before["task"]) != before["task"]:
        raise CannotContinueError(
            f"task: {root} is a run of '{before['task']}', not of '{values['task']}'",
            why="another task trains other tensors",
            next_step=f"begin a new run from its weights: `model: {root}`",
        )
    config = resolve_config(Request(values, dict.fromkeys(values, origin)), document)
    _require_free_mirror(config.mirror, target)
    task = find_task(config.task)
    prepared = task.prepare(config, root / layout.CACHE_FOLDER, run=root)
    recorded = document["contract"]
    threads = resolve_threads(config, recorded)
    asked = compose_contract(config, prepared, threads, config.device)
    _require_fitting(root, recorded, asked, config)
    old = Side(task.CONFIG.from_values(before), recorded)
    return Asked(config, prepared, threads, recorded, asked, old, Side(config, asked), changed_keys(recorded, asked))


def _require_free_mirror(mirror: str | None, target: Path) -> None:
    """Refuse one that holds a run: `train` would. One that cannot be reached now is for `train` to meet."""
    place = mirror_of(mirror, target)
    if place is not None:
        with suppress(StorageError):
            patiently(lambda: belongs(place, ""), place.name, LOOK_SECONDS)


def _require_fitting(root: Path, recorded: contract.Contract, asked: contract.Contract, config: RunConfig) -> None:
    assert FITS_NOT.keys() == set(FIXED)
    for name, why in FITS_NOT.items():
        if recorded.get(name) != asked.get(name):
            old, new = (
                f"content {digest}" if digest else "none"
                for digest in map(_short, (recorded.get(name), asked.get(name)))
            )
            raise CannotContinueError(
                f"{name}: {old} ({root}) -> {new}: a fork keeps it",
                why=why,
                next_step=f"begin a new run from its weights instead: `model: {root}`",
            )
    for path, was, now in contract.differences(recorded["config"], asked["config"]):
        if path in config.KEPT_BY_FORKS:
            raise CannotContinueError(
                f"{path}: {shown(was)} ({root}) -> {shown(now)}: a fork keeps it",
                why="the trained weights and the optimizer's state would be those of another function",
                next_step="begin a new run with it: the same configuration, and another output_dir",
            )


def changed_keys(recorded: contract.Contract, asked: contract.Contract) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ by the names people give them, each with the old and the new value."""
    changed: dict[str, tuple[Any, Any]] = {}
    for path, old, new in contract.differences(recorded, asked):
        group, _, rest = path.partition(".")
        if group == "config":
            changed[rest] = (old, new)
        elif group == "data":
            sides = (f"{side['data']['examples']} rows ({side['data']['digest'][:8]})" for side in (recorded, asked))
            changed["train_data"] = (next(sides), next(sides))
        else:
            changed[group] = (_short(old), _short(new))
    return changed


def _short(content: Any) -> str | None:
    """Return the beginning of a digest, or of that of what only one side has."""
    found = content.get("digest") if isinstance(content, Mapping) else content
    return found and str(found)[:8]


def _carry_over(source: Source, asked: Asked, target: Path, report: Reporter, progress: Progress) -> Forked:
    """Build the new run's job, put the state into it, and commit it as the new run's own."""
    from unbroken.run.fork import begun, bring_cache, coming, commit, parent_of
    from unbroken.tasks.device import resolve_device

    for text in (*source.notes, *asked.prepared.notes):
        report(Notice(text))
    total = asked.new.course.total_steps
    require_forkable = getattr(find_task(asked.config.task), "require_forkable", None)  # where phases may not fit
    if require_forkable is not None:
        require_forkable(asked.old, asked.new, source.step)
    if total < source.step or (total == source.step and asked.changed):
        raise CannotContinueError(
            f"the new run would have {total} steps, and {source.root} is at step {source.step} there",
            why="there would be nothing left to train",
            next_step=("" if asked.new.course.kind == PHASES else f"set max_steps to more than {source.step}, or ")
            + f"fork an earlier step: {source.root}@STEP",
        )
    require_space(
        target, asked.prepared.weights_bytes * (CHECKPOINT_MULTIPLE * (asked.config.save_total_limit + 1) + 1)
    )
    device = str(resolve_device(asked.config.device, None if "device" in asked.changed else source.root))
    build = asked.prepared.load()
    parent = parent_of(source, asked.changed)
    values = plain_values(asked.config) | {"threads": asked.threads, "device": device}
    made = asked.contract | {"config": asked.contract["config"] | {"device": device}}
    images = [] if asked.changed else best_before(source, report)
    from unbroken.run.folder import RunFolder

    def create(place: Path) -> RunFolder:
        return RunFolder.create(
            place,
            made,
            config=values,
            keep=asked.config.save_total_limit,
            parent=parent,
            row_digests=asked.prepared.row_digests,
        )

    with coming(target, create) as folder:
        bring_cache(source.root, folder.cache)
        image = restored_into(build(folder.cache, progress), source, fresh=bool(asked.changed))
        best = source.best if not asked.changed and (images or at_best(source)) else None
        commit(folder, [*images, begun(image, best)], parent, total)
        run_id = folder.document["run_id"]
    lines = meaning(str(source.root), source.step, asked.old, asked.new, asked.changed)
    return Forked(target, run_id, parent, source.step, total, asked.changed, lines, train_command(target))


def restored_into(job: Any, source: Source, *, fresh: bool) -> Image:
    """Return the state as the new run's first checkpoint.

    With `fresh` the optimizer's options are the new run's, and so is what no step has trained yet and one will: a head
    before its phase.

    Raises `CannotContinueError` if the state does not fit the job.
    """
    from unbroken.run.fork import untrained
    from unbroken.run.state import State, begin_phase, group_options

    state = State.initial(job)
    trained, optimizer = begin_phase(job, job.phase_at(source.step)[0], state.movable)
    options = group_options(optimizer, trained)
    restored, ahead = source.restored, untrained(job, source.step, state.movable) if fresh else []
    if not restored.state["optimizer_numbers"] and not any(name.startswith("optimizer/") for name in restored.tensors):
        restored = replace(restored, state={**restored.state, "groups": options})  # a phase begins here
    try:
        _require_same_optimizer(restored, options)
        state.restore(restored)
        for parameter, value in ahead:
            parameter.data.copy_(value)
    except CannotContinueError as misfit:
        raise CannotContinueError(
            f"the state of {source.root} at step {source.step} does not fit: {misfit.what}",
            why=misfit.why,
            next_step=f"begin a new run from its weights, with a new optimizer: `model: {source.folder}`",
        ) from misfit
    image = state.image()
    kept = {"last_record": source.restored.state["last_record"]} | ({"groups": options} if fresh else {})
    return replace(image, state={**image.state, **kept})


def _require_same_optimizer(restored: Restored, options: list[dict[str, Any]]) -> None:
    """Raise `CannotContinueError` if the optimizer knows other options than the one whose state it would take over."""
    for saved, now in zip(restored.state["groups"], options, strict=False):
        if saved.keys() != now.keys():
            odd = ", ".join(sorted(saved.keys() ^ now.keys()))
            raise CannotContinueError(f"it belongs to another optimizer (options that only one of the two has: {odd})")


def at_best(source: Source) -> bool:
    """Tell whether the best evaluation so far is that of the checkpoint itself."""
    return source.best is not None and source.best["step"] == source.step


def best_before(source: Source, report: Reporter) -> list[Image]:
    """Return the checkpoint of the best evaluation before the one forked, which may become the finished model."""
    from unbroken.run.fork import begun, copied, read_source

    if source.best is None or at_best(source):
        return []
    try:
        best = read_source(source.root, source.best["step"])
    except CannotContinueError as gone:
        report(Notice(f"the best evaluation so far, that of step {source.best['step']}, is given up: {gone.what}"))
        return []
    return [begun(copied(best), best.best)]


def _copy_loop(source: Source, target: Path, changes: Mapping[str, Any], report: Reporter) -> Forked:
    """Copy the run of a user's own loop; what it is stands in the user's script, so nothing can be changed here."""
    from unbroken.run.folder import RunFolder
    from unbroken.run.fork import begun, coming, commit, copied, parent_of

    if changes:
        raise CannotContinueError(
            f"{source.root} is the run of a loop of your own, and '{next(iter(changes))}' stands in your script",
            next_step="fork it without --set for a copy that your script goes on with (the folder as output_dir), or "
            f"load the weights in {source.folder / layout.MODEL_FOLDER} into your modules for a new run",
        )
    for text in source.notes:
        report(Notice(text))
    images, parent = best_before(source, report), parent_of(source, {})
    document = source.document
    total = int(document["contract"]["config"]["steps"])
    rows = source.root / layout.DATA_DIGESTS_FILE

    def create(place: Path) -> RunFolder:
        return RunFolder.create(
            place,
            document["contract"],
            config=document["config"],
            keep=2,
            parent=parent,
            row_digests=rows.read_bytes() if rows.is_file() else b"",
        )

    with coming(target, create) as folder:
        best = source.best if images or at_best(source) else None
        commit(folder, [*images, begun(copied(source), best)], parent, total)
        run_id = folder.document["run_id"]
    lines = [
        f"nothing is changed: from step {source.step} it goes on as {source.root} would, to the bit",
        "your script carries it on, unchanged but for output_dir",
    ]
    return Forked(target, run_id, parent, source.step, total, {}, lines, f'your script, with Loop("{target}", ...)')


def train_command(target: Path) -> str:
    """Return the command that carries the new run on."""
    return f"unbroken train {shlex.quote(str(target))}"
