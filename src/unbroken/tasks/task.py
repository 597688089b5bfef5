"""What a task offers to the commands: its configuration, what identifies a run, and how to build the job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError
from unbroken.run.job import Job
from unbroken.tasks.common import TrainingConfig

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A run's inputs, read and checked, before any model is loaded.

    `identity` holds the digests that belong to the contract; `row_digests` 8 bytes a row, little-endian, to name
    the first row that differs later; `weights_bytes` the size of what is trained. `load(cache)` loads the model,
    raising `ConfigError` if it cannot, and returns what builds the job with its cache in a folder.
    """

    identity: dict[str, Any]
    row_digests: bytes
    weights_bytes: int
    parent: dict[str, Any] | None
    load: Callable[[], Callable[[Path, Progress], Job]]


class Task(Protocol):
    """A module `unbroken.tasks.NAME.task`: one kind of learning."""

    CONFIG: type[TrainingConfig]

    def prepare(self, config: Any, cache: Path | None) -> Prepared:
        """Read and check the inputs of a run; `cache` is the run's, where it exists already."""
        ...


TASKS = {"embed": "unbroken.tasks.embed.task"}


def find_task(name: object) -> Task:
    """Return the task called `name`. Raises `ConfigError` with the nearest name there is."""
    if name not in TASKS:
        hint = closest(str(name), TASKS)
        known = ", ".join(TASKS)
        raise ConfigError(
            "key 'task' is missing" if name is None else f"task: {name!r} is not known",
            next_step=f"did you mean '{hint}'?" if hint else f"there are: {known}",
        )
    module: Any = import_module(TASKS[str(name)])
    return module  # type: ignore[no-any-return]
