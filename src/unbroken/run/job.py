"""What a task hands to the loop: values and functions, no class hierarchy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter

from unbroken.plan.plan import Draws
from unbroken.step.adamw import Optimizer
from unbroken.step.gradients import Scope


def nothing_to_evaluate() -> dict[str, float]:
    """Stand in for an evaluation where a job has none."""
    return {}


def nothing_to_write_back() -> bool:
    """Stand in where training keeps every tensor under the name it is saved by."""
    return False


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with one plan, schedule and optimizer; it ends before step number `end_step` begins.

    `trains` tells by fully qualified name which parameters move; without it each keeps its `requires_grad`.
    Without `learning_rate` the optimizer's own rate is left alone. `draws_per_step` is how many separately seeded
    stretches (chunks, and the loss) one step has at most: it spaces the seeds of successive steps. `encode` and
    `gradients` are the phase's own where they are not the job's. The model after a step of a phase that does not
    `completes` it lacks something still: it is never chosen as the best.
    """

    name: str
    end_step: int
    plan: Draws
    optimizer: Callable[[Mapping[str, Parameter]], Optimizer]
    learning_rate: Callable[[int], float] | None
    trains: Callable[[str], bool] | None = None
    max_grad_norm: float | None = 1.0
    draws_per_step: int = 1
    encode: Callable[[Any, int], Any] | None = None
    gradients: Callable[[Any, Scope], Tensor] | None = None
    completes: bool = True


@dataclass(frozen=True)
class Job:
    """Everything the loop executes.

    `modules` are the roots of fully qualified names and hold every tensor that training may change.
    `encode(ids, epoch)` makes the batch of those examples and depends on nothing else.
    `gradients(batch, scope)` leaves gradients in the parameters and returns the detached loss; a user's own loop
    has none, its body does that.
    `layout(name)` says in which file of a checkpoint, under which key, a tensor lives; `documents()` gives the
    other files of the model folder. `evaluation_id` names what `evaluate` measures on; empty: nothing is evaluated.
    `rows` gives the rows of the data that examples are, where not every row is one.
    `write_back()` brings the modules' tensors up to date where training keeps part of one in another, and returns
    whether that changed a bit. It is called before a commit's image is taken, when nothing is being copied, and
    after a restore, when it must change nothing.
    """

    seed: int
    phases: tuple[Phase, ...]
    modules: Mapping[str, nn.Module]
    encode: Callable[[Any, int], Any]
    gradients: Callable[[Any, Scope], Tensor] | None
    layout: Callable[[str], tuple[str, str]]
    documents: Callable[[], Mapping[str, bytes]]
    evaluate: Callable[[], dict[str, float]] = nothing_to_evaluate
    evaluation_id: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[list[int]], list[int]] = list
    write_back: Callable[[], bool] = nothing_to_write_back

    @property
    def last_step(self) -> int:
        """Number of steps in the whole run."""
        return self.phases[-1].end_step

    def phase_at(self, step: int) -> tuple[int, Phase]:
        """Return the index and the phase that step number `step` (from 0) belongs to."""
        for index, phase in enumerate(self.phases):
            if step < phase.end_step:
                return index, phase
        return len(self.phases) - 1, self.phases[-1]

    def first_step(self, index: int) -> int:
        """Return the number of the first step of phase `index`."""
        return self.phases[index - 1].end_step if index else 0
