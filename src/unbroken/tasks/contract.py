"""What identifies a run: its configuration with nothing left open, and its inputs; compared when it goes on."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unbroken.base.config import plain
from unbroken.base.errors import CannotContinueError
from unbroken.base.fingerprint import digest
from unbroken.base.reading import read_document
from unbroken.plan.source import first_difference
from unbroken.run import contract
from unbroken.run.mirroring import row_digests_in
from unbroken.store import layout
from unbroken.store.place import FolderPlace, Place
from unbroken.store.run import read_run
from unbroken.tasks.common import RunConfig
from unbroken.tasks.task import Prepared

FIXED = ("model", "adapter", "tokenizer", "labels")  # what a run's state fits, and a fork of it keeps
CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"


def resolve_threads(config: RunConfig, recorded: contract.Contract | None) -> int:
    """Return the number of CPU threads: as asked, as recorded, or for a new run as many as there are processors."""
    if isinstance(config.threads, int):
        return config.threads
    return int(recorded["config"]["threads"]) if recorded is not None else available_processors()


def available_processors(quota_file: Path = CPU_QUOTA_FILE) -> int:
    """Return how many processors this process may use: those it may run on, or fewer where a container has a quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no quota, or no such file
        return count


def plain_values(config: RunConfig) -> dict[str, Any]:
    """Return every value of a configuration as JSON; rows in memory become a remark."""
    values = {key: plain(getattr(config, key)) for key in type(config).model_fields}
    for key in ("train_data", "eval_data"):
        if values[key] is not None and not isinstance(values[key], str):
            values[key] = f"<{len(values[key])} rows in memory>"
    return values


def compose_contract(config: RunConfig, prepared: Prepared, threads: int, device: str) -> contract.Contract:
    """Return what must not change under the run, on the threads and the device that `auto` came to mean."""
    identity = config.resolved_identity()
    if config.load_best_model_at_end:  # then evaluation chooses the model
        identity["eval_steps"] = config.eval_steps
    return {"config": identity | {"threads": threads, "device": device, "order": config.order}} | prepared.identity


def check_contract(
    root: Path,
    recorded: contract.Contract,
    asked: contract.Contract,
    prepared: Prepared,
    config: RunConfig,
    origins: Mapping[str, str],
    mirror: Place | None = None,
) -> None:
    """Raise `CannotContinueError` unless this is the run it was; changed data name the first differing row.

    Where a fork is a way out, its command is given. `mirror` is where the run lies if it does not lie in `root` yet.
    """
    known = recorded_row_digests(root) if mirror is None else row_digests_in(mirror)
    if recorded["config"] != asked["config"] and known and known == prepared.row_digests:
        recorded = recorded | {"data": asked["data"]}  # the same rows: what is made of them the configuration says
    there = root if mirror is None else mirror.root if isinstance(mirror, FolderPlace) else None
    fork = None if there is None else fork_for(there, recorded, asked, config)
    name, anew, movable = str(root), "choose a new output_dir", True
    if mirror is not None:
        name, anew, movable = f"the run in the mirror {mirror.name}", "give another mirror", mirror.movable
    if recorded["data"] != asked["data"]:
        source = f" ({origins['train_data']})" if "train_data" in origins else ""
        where = first_changed_row(root, prepared.row_digests, known)
        raise CannotContinueError(
            f"the training data are not those {name} was started with: "
            f"{recorded['data']['examples']} rows then, {asked['data']['examples']} now{source}; {where}",
            next_step="put the data back, "
            + contract.ways_out(anew, fork, "--restart to start over" if movable else ""),
        )
    contract.require_same(recorded, asked, run=name, origins=origins, fork=fork, anew=anew, movable=movable)


def fork_for(root: Path, recorded: contract.Contract, asked: contract.Contract, config: RunConfig) -> str | None:
    """Return the command of the fork that has what was asked for; None where the state would not fit it.

    None also where rows are in memory: no command can name them.
    """
    if any(not isinstance(rows, str | None) for rows in (config.train_data, config.eval_data)):
        return None
    given = plain_values(config)
    changes: dict[str, Any] = {}
    for path, _, new in contract.differences(recorded, asked):
        group, _, key = path.partition(".")
        if group in FIXED or (group == "config" and (key == "task" or key in config.KEPT_BY_FORKS)):
            return None
        if group == "data":
            changes["train_data"] = given["train_data"]
            if given.get("columns"):
                changes["columns"] = given["columns"]
        elif group in ("eval_data", "teacher"):
            changes[group] = given.get(group)
        elif key != "order":  # that of this version of unbroken: a fork takes it by itself
            changes[key] = new
    return contract.fork_command(str(root), changes)


def recorded_row_digests(root: Path) -> bytes:
    """Return the digests of the rows a run was started with; nothing where they are missing or damaged."""
    try:
        content = read_document(root / layout.DATA_DIGESTS_FILE)
    except OSError:
        return b""
    return content if digest(content) == (read_run(root) or {}).get("row_digests") else b""


def first_changed_row(root: Path, row_digests: bytes, known: bytes | None = None) -> str:
    """Say in words which row is the first to differ from those the run was started with (`known`, if not in `root`)."""
    content = recorded_row_digests(root) if known is None else known
    if not content:
        return f"{layout.DATA_DIGESTS_FILE} is missing or damaged, so the row cannot be named"
    before = np.frombuffer(content, dtype="<u8")
    row = first_difference(before, np.frombuffer(row_digests, dtype="<u8"))
    return (
        "no row differs, but columns, roles or a schema do"
        if row is None
        else f"the first row that differs is row {row + 1}"
    )
