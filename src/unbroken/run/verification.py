"""What a verification found, as values: every count is of something that was looked at, all else is `unchecked`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unbroken.base.errors import CannotContinueError, UnbrokenError, VerificationError
from unbroken.base.words import number_of
from unbroken.run.evidence import spans


@dataclass(frozen=True)
class Problem:
    """Something that is not as recorded. `differs` is what of it: a value of a step, a tensor, a file."""

    what: str
    why: str = ""
    step: int | None = None
    differs: str = ""
    next_step: str = ""


@dataclass
class Replayed:
    """Steps `first` to `last`, made again from the state after `start` steps, which came from `origin`."""

    start: int
    first: int
    last: int
    origin: str
    chosen: str  # why these steps
    identical: int = 0
    unrecorded: list[int] = field(default_factory=list)
    canary: bool = False
    checkpoints: list[int] = field(default_factory=list)  # those whose tensors were compared on the way
    model: bool = False  # whether the finished model was


@dataclass
class Verification:
    """All that was found out about one run."""

    run: str
    run_id: str = ""
    task: str = ""
    checkpoints: list[int] = field(default_factory=list)
    good_checkpoints: list[int] = field(default_factory=list)
    proved_marks: list[int] = field(default_factory=list)  # checkpoints behind an unbroken chain of records
    journal_records: int = 0
    recorded_steps: int = 0
    unproved_steps: list[int] = field(default_factory=list)
    drifts: list[int] = field(default_factory=list)
    model_files: int | None = None  # files of the finished model that are as recorded; None: there is none
    evaluations: int = 0
    data: str = "not compared"
    base_model: str = "not compared"
    replays: list[Replayed] = field(default_factory=list)
    tensors_compared: int = 0
    tensors_identical: int = 0
    environment_changes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    not_replayed: str = ""  # why nothing could be replayed although it was to be

    @property
    def identical_steps(self) -> int:
        """How many steps were made again and have the bits of their records."""
        return sum(replay.identical for replay in self.replays)

    @property
    def verdict(self) -> str:
        """What was checked and how it came out, and no more than that."""
        if self.problems:
            return "something is not as recorded"
        if self.not_replayed:
            return "nothing was replayed"
        checked = [f"{number_of(len(self.good_checkpoints), 'checkpoint')} and the journal hold what was written"]
        for replay in self.replays:
            if replay.identical:
                checked.append(f"{_steps(replay)} identical to the bit")
            elif replay.canary:
                checked.append(f"the step after {replay.start} has the loss and gradient norm foreseen")
        if self.tensors_identical:
            checked.append(f"{number_of(self.tensors_identical, 'tensor')} identical to the bit")
        return "; ".join(checked)

    @property
    def failure(self) -> UnbrokenError | None:
        """The first thing that is not as recorded, else why it could not be told; None if all is right."""
        if self.problems:
            first, more = self.problems[0], len(self.problems) - 1
            others = f" (and {number_of(more, 'other difference')})" if more else ""
            return VerificationError(first.what + others, why=first.why, next_step=first.next_step)
        if self.not_replayed:
            return CannotContinueError(f"{self.run} was not replayed: {self.not_replayed}")
        return None

    def flat(self) -> dict[str, Any]:
        """Return everything as JSON has it, one flat object; lists hold steps or lines."""
        first = self.problems[0] if self.problems else None
        return {
            "run": self.run,
            "run_id": self.run_id,
            "task": self.task,
            "verified": self.failure is None,
            "verdict": self.verdict,
            "checkpoints": self.checkpoints,
            "checkpoints_good": self.good_checkpoints,
            "checkpoints_with_proved_journal": self.proved_marks,
            "journal_records": self.journal_records,
            "recorded_steps": self.recorded_steps,
            "unproved_steps": self.unproved_steps,
            "drift_from": self.drifts,
            "model_files_as_recorded": self.model_files,
            "evaluations_readable": self.evaluations,
            "data": self.data,
            "base_model": self.base_model,
            "replayed_from": [replay.start for replay in self.replays],
            "replayed_first": min((replay.first for replay in self.replays if replay.identical), default=None),
            "replayed_last": max((replay.last for replay in self.replays if replay.identical), default=None),
            "identical_steps": self.identical_steps,
            "canary_identical": any(replay.canary for replay in self.replays),
            "checkpoints_compared": [step for replay in self.replays for step in replay.checkpoints],
            "finished_model_compared": any(replay.model for replay in self.replays),
            "tensors_compared": self.tensors_compared,
            "tensors_identical": self.tensors_identical,
            "environment_changes": self.environment_changes,
            "not_replayed": self.not_replayed or None,
            "not_checked": self.unchecked,
            "differences": [problem.what for problem in self.problems],
            "first_difference": first.what if first else None,
            "first_difference_step": first.step if first else None,
            "first_difference_in": first.differs if first else None,
            "likely_cause": first.why if first else None,
        }


def _steps(replay: Replayed) -> str:
    made = [step for step in range(replay.first, replay.last + 1) if step not in replay.unrecorded]
    return f"steps {spans(made)} replayed from {replay.origin},"
