"""Look before a run starts or goes on: everything `train` would refuse, and what it would not notice.

Nothing is written, neither in the run nor in a cache, and the run's lock is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unbroken.base.errors import BusyError, CannotContinueError, UnbrokenError
from unbroken.run import contract
from unbroken.run.findings import Section
from unbroken.run.mirroring import mirror_of, run_in_mirror
from unbroken.run.preflight import (
    Demand,
    existing_ancestor,
    measured_demand,
    require_new_folder,
    require_ready,
    require_space,
)
from unbroken.run.resources import free_device_bytes, free_host_bytes
from unbroken.run.summary import RunSummary, describe_run
from unbroken.store import files
from unbroken.store.lock import describe
from unbroken.store.run import read_run
from unbroken.tasks.common import RunConfig
from unbroken.tasks.contract import check_contract, compose_contract, plain_values, resolve_threads
from unbroken.tasks.request import Request, output_dir, resolve_config, step_asked_for
from unbroken.tasks.task import TASKS, Prepared, Progress, Task, find_task
from unbroken.tasks.train import CHECKPOINT_MULTIPLE

if TYPE_CHECKING:
    import torch  # two seconds that nobody waits for whose configuration has a mistake

MB = 1e6
LIBRARIES_BYTES = 500_000_000  # Python, torch and their working memory, roughly


class TaskCheck(Protocol):
    """What a task's module `check` offers as `open_check(config, progress, run)`, `run` being the one to go on with."""

    @property
    def sections(self) -> Sequence[Callable[[], Section]]:
        """What to look at before a new run: data, model, lengths and so on."""

    @property
    def total_steps(self) -> int:
        """How many steps the run has."""

    @property
    def device(self) -> torch.device:
        """Where it is trained."""

    def steps(self) -> Section:
        """How long the run is."""

    def memory(self) -> dict[str, int]:
        """Bytes of the `weights` that train, of those `frozen` if any are, and, roughly, `activations`."""

    def time_steps(self) -> Section:
        """Measure a few steps without updating anything."""


@dataclass
class Checked:
    """What was found; `problems` are what `train` would refuse for, the first of them with its exit code."""

    sections: list[Section] = field(default_factory=list)
    problems: list[UnbrokenError] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """What the command ends with; being held by another process counts only if nothing else is wrong."""
        grave = [problem for problem in self.problems if not isinstance(problem, BusyError)] or self.problems
        return grave[0].exit_code if grave else 0

    def attempt(self, look: Callable[[], Section | None]) -> bool:
        """Add a section, or the problem that was met on the way; True if there was none."""
        try:
            section = look()
        except UnbrokenError as problem:
            if str(problem) not in map(str, self.problems):
                self.problems.append(problem)
            return False
        if section is not None:
            self.sections.append(section)
        return True


def check(request: Request, *, time_steps: bool = False, progress: Progress = lambda *args: None) -> Checked:
    """Look at everything a request names; before a new run at its inputs, before a resume at the contract."""
    found = Checked()
    free = free_host_bytes()  # before the model is loaded here
    try:
        root = output_dir(request.values)
        document = read_run(root)
        config = resolve_config(request, document)
        step_asked_for(request.resume_from_checkpoint, root)
    except UnbrokenError as problem:
        found.problems.append(problem)
        return found
    recorded = dict(document["contract"]) if document is not None else None
    threads = resolve_threads(config, recorded)
    found.sections.append(_configuration(config, request, threads))
    task = find_task(config.task)
    module: Any = import_module(TASKS[config.task].rpartition(".")[0] + ".check")
    looker: TaskCheck = module.open_check(config, progress, None if recorded is None else root)
    done = 0
    if recorded is None:
        found.attempt(partial(require_new_folder, root))
        found.attempt(lambda: _refused_inputs(task, config))
        for look in looker.sections:
            found.attempt(look)
    else:
        stand = describe_run(root)
        done = stand.step if stand.state == "finished" else stand.newest_good_step or 0
        found.attempt(lambda: _run(stand, looker.total_steps, done))
        found.attempt(partial(require_free, stand))
        if stand.state not in ("finished", "running"):
            found.attempt(partial(require_ready, root, config.save_total_limit))
        found.attempt(
            lambda: _contract(root, recorded, task.prepare(config, None, root), config, threads, found, request)
        )
        found.attempt(lambda: _environment(stand, looker.device, threads))
    if config.mirror:
        found.attempt(lambda: _mirror(root, document, task, config, request))
    found.attempt(looker.steps)
    found.attempt(lambda: _memory(looker, free, None if recorded is None else measured_demand(root)))
    found.attempt(lambda: _disk(root, looker, config, new=recorded is None, found=found))
    if time_steps and not found.problems:
        found.attempt(lambda: _time(looker, done, threads))
    return found


def require_free(stand: RunSummary) -> None:
    """Raise `BusyError` if a process holds the run, `CannotContinueError` if it stands and cannot go on."""
    if stand.state == "running":
        raise BusyError(f"{stand.path} is in use by {describe(stand.held_by or None)}", next_step="wait for it to end")
    if stand.state != "finished" and stand.checkpoints and stand.newest_good_step is None:
        raise CannotContinueError(
            f"no checkpoint of {stand.path} verifies",
            why="; ".join(problem for checkpoint in stand.checkpoints for problem in checkpoint.problems or []),
            next_step="put an intact copy back into checkpoints/, or start over with --restart",
        )


def _configuration(config: RunConfig, request: Request, threads: int) -> Section:
    """Show what was given and is not the default, with its origin; every value used is among the details."""
    used = plain_values(config) | {"threads": threads, "save_strategy": config.resolved_save_strategy}
    fields = type(config).model_fields
    given = {
        key: {"value": used[key], "from": request.origins.get(key, "given")}
        for key in request.values
        if key in fields
        and request.values[key] != "auto"
        and (key == "task" or getattr(config, key) != fields[key].get_default(call_default_factory=True))
    }
    return Section(
        "configuration", {"threads": threads, "keys_at_their_default": len(used) - len(given), "given": given}, used
    )


def _refused_inputs(task: Task, config: RunConfig) -> None:
    """Read all inputs as `train` does, for what it would refuse."""
    task.prepare(config, None)


def _run(stand: RunSummary, total_steps: int, done: int) -> Section:
    """Where an existing run stands, and what is left of it."""
    values = {
        "path": stand.path,
        "state": stand.state,
        "held_by": describe(stand.held_by) if stand.held_by else "nobody",
        "recorded_steps": stand.step,
        "newest_checkpoint_that_verifies": "none" if stand.newest_good_step is None else stand.newest_good_step,
        "steps_left": max(0, total_steps - done),
        "steps_to_replay": max(0, stand.step - done),
    }
    broken = [problem for checkpoint in stand.checkpoints for problem in checkpoint.problems or []]
    return Section("run", values, {"run_id": stand.run_id}, (*stand.problems, *broken))


def _contract(
    root: Path,
    recorded: contract.Contract,
    prepared: Prepared,
    config: RunConfig,
    threads: int,
    found: Checked,
    request: Request,
) -> Section:
    """Compare what was asked for with what the run was started with, and refuse as `train` would."""
    asked = compose_contract(config, prepared, threads, config.device)
    changed = contract.differences(recorded, asked)
    found.attempt(lambda: check_contract(root, recorded, asked, prepared, config, request.origins))
    values: dict[str, Any] = {
        "rows": asked["data"]["examples"],
        "rows_then": recorded["data"]["examples"],
        "data_as_recorded": asked["data"] == recorded["data"],
        "differences": len(changed),
    }
    if changed:
        values["differing"] = {
            path.removeprefix("config."): {
                "this_run": old,
                "asked": new,
                "from": request.origins.get(path.removeprefix("config.").partition(".")[0], ""),
            }
            for path, old, new in changed
        }
    return Section("contract", values, warnings=prepared.notes)


def _mirror(root: Path, document: Mapping[str, Any] | None, task: Task, config: RunConfig, request: Request) -> Section:
    """What the mirror holds; a run that `train` would restore from it is compared with what was asked for."""
    place = mirror_of(config.mirror, root)
    assert place is not None
    there = run_in_mirror(place, root, document, restart=request.restart)
    steps = place.steps()
    if there is not None:
        then = resolve_config(request, there)
        recorded, prepared = dict(there["contract"]), task.prepare(then, None)
        asked = compose_contract(then, prepared, resolve_threads(then, recorded), then.device)
        check_contract(root, recorded, asked, prepared, then, request.origins, place)
    values = {
        "place": place.name,
        "newest_step": steps[-1] if steps else "none",
        "train_restores_from_it": there is not None,
    }
    return Section("mirror", values)


def _environment(stand: RunSummary, device: torch.device, threads: int) -> Section | None:
    """Compare the machine and the libraries with those of the last segment: they may change bits, no more is known."""
    from unbroken.run import environment

    if not stand.segments:
        return None
    now = environment.numerics(device) | {"threads": threads}
    changed = environment.changes(stand.segments[-1].environment, now)
    notes = [f"{line}: the replayed steps will show whether results still repeat" for line in changed]
    return Section("environment", {"changes": len(changed)}, warnings=tuple(notes))


def _memory(looker: TaskCheck, free: int | None, demand: Demand | None) -> Section:
    """Estimate the memory at its peak: Adam keeps two numbers for each trained one, a commit copies all three.

    A run that has made commits has been measured, which says more than any estimate.
    """
    needed = looker.memory()
    weights, staging = needed["weights"], CHECKPOINT_MULTIPLE * needed["weights"]
    frozen = needed.get("frozen", 0)
    on_device = frozen + 4 * weights + needed["activations"]
    left = free if looker.device.type == "cpu" else free_device_bytes(looker.device)
    if looker.device.type == "cpu":
        on_device += staging + LIBRARIES_BYTES
    values = {
        "weights_bytes": weights,
        "gradients_bytes": weights,
        "adam_bytes": 2 * weights,
        "activations_of_a_chunk_bytes": needed["activations"],
        "staging_buffer_bytes": staging,
        "python_and_libraries_bytes": LIBRARIES_BYTES,
        "needed_bytes": on_device,
        "free_bytes": left,
    }
    if frozen:
        values["frozen_weights_bytes"] = frozen
    if demand is not None:
        values["measured_peak_bytes"] = demand.host_bytes
        if demand.device_bytes:
            values["measured_peak_of_the_device_bytes"] = demand.device_bytes
    notes = []
    if demand is None and left is not None and on_device > left:
        notes.append(
            f"about {on_device / MB:,.0f} MB are needed and {left / MB:,.0f} MB are free: "
            "a smaller micro_batch_size or max_length needs less"
        )
    return Section("memory", values, warnings=tuple(notes))


def _disk(root: Path, looker: TaskCheck, config: RunConfig, *, new: bool, found: Checked) -> Section:
    """Compare what the checkpoints and the model take with what is free; `train` refuses where it is too little."""
    weights = looker.memory()["weights"]
    one = CHECKPOINT_MULTIPLE * weights
    needed = one * (config.save_total_limit + 1) + weights if new else one + weights
    values = {
        "checkpoint_bytes": one,
        "checkpoints_kept": config.save_total_limit,
        "model_bytes": weights,
        "needed_bytes": needed,
        "free_bytes": files.free_bytes(existing_ancestor(root)),
    }
    if new:
        found.attempt(partial(require_space, root, needed))
    return Section("disk", values)


def _time(looker: TaskCheck, done: int, threads: int) -> Section:
    """Measure steps, and say how long those that are left will take."""
    from unbroken.run import environment

    environment.pin(threads)
    section = looker.time_steps()
    left = section.values["step_seconds"] * max(0, looker.total_steps - done)
    return Section(section.title, {**section.values, "left_seconds": left}, section.details)
