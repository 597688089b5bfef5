"""What must not change under a user's own loop, and how a change is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unbroken.base.errors import CannotContinueError, ConfigError
from unbroken.base.fingerprint import canonical, digest
from unbroken.plan.plan import ORDER, Plan
from unbroken.plan.source import first_difference
from unbroken.run.contract import Contract, differences
from unbroken.run.job import Job, Phase
from unbroken.run.mirroring import row_digests_in
from unbroken.run.state import held_tensors
from unbroken.store import layout
from unbroken.store.place import Place
from unbroken.tasks.loop_extras import encode

MOST_SHOWN = 6
WAYS_OUT = (
    "undo the change, choose a new output_dir, or start over with Loop(restart=True), which moves this run aside; "
    "in a notebook, make modules, optimizer and scheduler anew before Loop"
)


def describe(
    job: Job,
    optimizer: Optimizer,
    extras: Mapping[str, Any],
    digests: NDArray[np.uint64],
    fingerprint: str | None,
) -> Contract:
    """Return everything about a loop that must be the same at every start, as JSON."""
    phase = job.phases[0]
    plan = phase.plan
    assert isinstance(plan, Plan), "a loop shuffles its rows"
    contract = {
        "config": {
            "task": "loop",
            "batch_size": plan.batch_size,
            "steps": phase.end_step,
            "seed": plan.seed,
            "shuffle": plan.shuffle,
            "drop_last": plan.drop_last,
            "order": ORDER,
            "max_grad_norm": phase.max_grad_norm,
            "threads": torch.get_num_threads(),
        },
        "learning_rate": describe_rate(phase),
        "optimizer": describe_optimizer(job, optimizer, scheduled=phase.learning_rate is not None),
        "extras": {name: describe_extra(name, thing) for name, thing in extras.items()},
        "modules": {
            name: "x".join(map(str, tensor.shape))
            + f" {str(tensor.dtype).removeprefix('torch.')}"
            + (" frozen" if isinstance(tensor, Parameter) and not tensor.requires_grad else "")
            for name, tensor in held_tensors(job.modules)
        },
        "data": {"examples": plan.num_examples, "digest": fingerprint or digest(digests.tobytes())},
    }
    return dict(json.loads(canonical(contract)))


def describe_rate(phase: Phase) -> dict[str, Any] | None:
    """Return what tells one learning rate function from another: its values."""
    if phase.learning_rate is None:
        return None
    rates = [float(phase.learning_rate(step)) for step in range(phase.end_step)]
    return {"first": rates[0], "highest": max(rates), "last": rates[-1], "digest": digest(canonical(rates))}


def describe_optimizer(job: Job, optimizer: Optimizer, *, scheduled: bool) -> dict[str, Any]:
    """Return an optimizer's class, and each group's options and parameters. Raises `ConfigError` for odd options."""
    names = {id(tensor): name for name, tensor in held_tensors(job.modules)}
    groups = {}
    for index, group in enumerate(optimizer.param_groups):
        options = {}
        for key, value in group.items():
            if key == "params":
                continue
            options[key] = list(value) if isinstance(value, tuple) else value
            parts = options[key] if isinstance(options[key], list) else [value]
            if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
                raise ConfigError(
                    f"optimizer option '{key}' is a {type(value).__name__}",
                    why="it could not be restored",
                    next_step="give a plain number",
                )
        options["lr"] = None if scheduled else options.pop("initial_lr", options["lr"])  # a scheduler moves lr
        members = [names.get(id(parameter), "?") for parameter in group["params"]]
        options["parameters"] = f"{len(members)} ({digest(canonical(members))[:8]})"
        groups[str(index)] = options
    return {"class": type(optimizer).__name__, "groups": groups}


def describe_extra(name: str, thing: Any) -> Any:
    """Return an extra's class and, of a scheduler, the state it begins with: restoring would hide a change of it."""
    if not isinstance(thing, LRScheduler):
        return type(thing).__name__
    return {"class": type(thing).__name__, "begins with": encode(thing.state_dict(), name)}


def require_unchanged(
    root: Path, recorded: Contract, asked: Contract, digests: NDArray[np.uint64], mirror: Place | None = None
) -> None:
    """Raise `CannotContinueError` naming what differs from how the run was started, both values each.

    `mirror` is where the run lies if it does not lie in `root` yet.
    """
    name, ways, other, known = str(root), WAYS_OUT, "choose another output_dir", None
    if mirror is not None:
        name, other, known = f"the run in the mirror {mirror.name}", "give another mirror", row_digests_in(mirror)
        ways = f"undo the change, or {other} for a new run"
    if recorded.get("config", {}).get("task") != "loop":
        raise CannotContinueError(f"{name} is a run of another kind", next_step=other)
    if recorded["data"] != asked["data"]:
        try:
            content = (root / layout.DATA_DIGESTS_FILE).read_bytes() if known is None else known
            before = np.frombuffer(content, dtype="<u8")
        except (OSError, ValueError):
            before = np.empty(0, dtype=np.uint64)
        row = first_difference(before, digests) if len(before) and len(digests) else None
        where = "" if row is None else f"; the first row that differs is row {row + 1}"
        raise CannotContinueError(
            f"the data are not those {name} was started with: {recorded['data']['examples']} rows then, "
            f"{asked['data']['examples']} now{where}",
            next_step=ways,
        )
    changed = differences(recorded, asked)
    if not changed:
        return
    lines = [
        f"{path.removeprefix('config.')}: {old!r} (this run) -> {new!r} (now)"
        for path, old, new in changed[:MOST_SHOWN]
    ]
    if len(changed) > MOST_SHOWN:
        lines.append(f"and {len(changed) - MOST_SHOWN} more")
    raise CannotContinueError(
        f"{name} was started with another loop: {', '.join(lines)}",
        why="going on would make neither the one result nor the other",
        next_step=ways,
    )


def require_scheduler_held(optimizer: Optimizer, extras: Mapping[str, Any], *, own_rate: bool) -> None:
    """Raise `ConfigError` for a torch scheduler that no commit would hold, or two masters of the learning rate."""
    schedulers = [thing for thing in extras.values() if isinstance(thing, LRScheduler)]
    if own_rate and (schedulers or any("initial_lr" in group for group in optimizer.param_groups)):
        raise ConfigError("the learning rate is given twice: as learning_rate and by a scheduler of the optimizer")
    rates = {group["lr"] for group in optimizer.param_groups if "lr_scale" not in group}
    if own_rate and len(rates) > 1:
        raise ConfigError(
            f"learning_rate gives every parameter group the same rate, but the optimizer's differ: {sorted(rates)}",
            next_step="give each group an 'lr_scale', or use a torch scheduler and pass it in extras",
        )
    if not own_rate and not schedulers and any("initial_lr" in group for group in optimizer.param_groups):
        raise ConfigError(
            "the optimizer has a learning rate scheduler that is not among the extras",
            why="after a stop it would begin anew",
            next_step="pass it: Loop(extras={'scheduler': scheduler})",
        )
