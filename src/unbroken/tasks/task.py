"""What a task offers to the commands: its configuration, what identifies a run, and how to build the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unbroken.base.config import closest, shown
from unbroken.base.errors import ConfigError
from unbroken.tasks.common import RunConfig
from unbroken.tasks.course import Course

if TYPE_CHECKING:
    from unbroken.run.job import Job  # brings torch, which nobody waits for whose configuration has a mistake

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A run's inputs, read and checked, before any model is loaded.

    `identity` holds the digests that belong to the contract; `row_digests` 8 bytes a row, little-endian, to name
    the first row that differs later; `weights_bytes` the size of what is trained. `load(cache)` loads the model,
    raising `ConfigError` if it cannot, and returns what builds the job with its cache in a folder. `notes` say what a
    person should know about where the inputs came from.
    """

    identity: dict[str, Any]
    row_digests: bytes
    weights_bytes: int
    parent: dict[str, Any] | None
    load: Callable[[], Callable[[Path, Progress], Job]]
    notes: tuple[str, ...] = ()


class Task(Protocol):
    """A module `unbroken.tasks.NAME.task`: one kind of learning."""

    CONFIG: type[RunConfig]

    def course(self, config: Any, contract: Mapping[str, Any]) -> Course:
        """Return the steps and rates that a configuration makes of the data a contract names."""
        ...

    def prepare(self, config: Any, cache: Path | None, run: Path | None = None) -> Prepared:
        """Read and check the inputs of a run; `cache` is the run's, where it exists already.

        `run` is the one whose state will be restored, if any is: where its checkpoints hold the whole model, they
        stand in for a base model that is gone.
        """
        ...


TASKS = {
    "embed": "unbroken.tasks.embed.task",
    "classify": "unbroken.tasks.classify.task",
    "adapt": "unbroken.tasks.adapt.task",
}


def find_task(name: object, origin: str = "") -> Task:
    """Return the task called `name`, given in `origin`. Raises `ConfigError` with the nearest name there is."""
    if not isinstance(name, str) or name not in TASKS:
        hint = closest(str(name), TASKS)
        place = f"{origin}: " if origin else ""
        if name is None:
            raise ConfigError(f"{place}key 'task' is missing", next_step=f"add `task: {' | '.join(TASKS)}`")
        raise ConfigError(
            f"{place}task: {shown(name)} is not known",
            next_step=f"did you mean '{hint}'?" if hint else f"there are: {', '.join(TASKS)}",
        )
    module: Any = import_module(TASKS[name])
    return module  # type: ignore[no-any-return]
