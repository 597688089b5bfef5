"""What identifies a run: its configuration with nothing left open, and its inputs; compared when it goes on."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unbroken.base.errors import CannotContinueError
from unbroken.plan.plan import ORDER
from unbroken.plan.source import first_difference
from unbroken.run import contract
from unbroken.store import layout
from unbroken.tasks.common import TrainingConfig
from unbroken.tasks.task import Prepared

CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"


def resolve_threads(config: TrainingConfig, recorded: contract.Contract | None) -> int:
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


def plain_values(config: TrainingConfig) -> dict[str, Any]:
    """Return every value of a configuration as JSON; rows in memory become a remark."""
    values = {key: getattr(config, key) for key in type(config).model_fields}
    for key in ("train_data", "eval_data"):
        if values[key] is not None and not isinstance(values[key], str):
            values[key] = f"<{len(values[key])} rows in memory>"
    return values


def compose_contract(config: TrainingConfig, prepared: Prepared, threads: int, device: str) -> contract.Contract:
    """Return what must not change under the run, on the threads and the device that `auto` came to mean."""
    identity = config.resolved_identity()
    if config.load_best_model_at_end:  # then evaluation chooses the model
        identity["eval_steps"] = config.eval_steps
    return {"config": identity | {"threads": threads, "device": device, "order": ORDER}} | prepared.identity


def check_contract(
    root: Path,
    recorded: contract.Contract,
    asked: contract.Contract,
    prepared: Prepared,
    origins: Mapping[str, str],
    row_digests: bytes | None = None,
) -> None:
    """Raise `CannotContinueError` unless this is the run it was; changed data name the first differing row.

    `row_digests` are those it was started with where they do not lie in `root` (its mirror's).
    """
    if recorded["data"] != asked["data"]:
        source = f" ({origins['train_data']})" if "train_data" in origins else ""
        where = first_changed_row(root, prepared.row_digests, row_digests)
        raise CannotContinueError(
            f"the training data are not those {root} was started with: "
            f"{recorded['data']['examples']} rows then, {asked['data']['examples']} now{source}; {where}",
            next_step="put the data back, choose a new output_dir, or --restart to start over",
        )
    contract.require_same(recorded, asked, run=str(root), origins=origins)


def first_changed_row(root: Path, row_digests: bytes, known: bytes | None = None) -> str:
    """Say in words which row is the first to differ from those the run was started with (`known`, if not in `root`)."""
    try:
        content = (root / layout.DATA_DIGESTS_FILE).read_bytes() if known is None else known
        before = np.frombuffer(content, dtype="<u8")
    except (OSError, ValueError):
        return f"{layout.DATA_DIGESTS_FILE} is missing or cut, so the row cannot be named"
    row = first_difference(before, np.frombuffer(row_digests, dtype="<u8"))
    return "columns or roles differ" if row is None else f"the first row that differs is row {row + 1}"
