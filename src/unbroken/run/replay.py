"""The free proof: steps the journal already holds are computed again on every resume, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unbroken.base.errors import CannotContinueError
from unbroken.store.journal import Mark

# In the order in which a step computes them: the first that differs tells where to look.
CAUSES = {
    "ids": "other examples were drawn: data, plan or seed changed",
    "learning_rate": "the schedule changed",
    "loss": "the forward pass gives other bits: threads, library versions, processor or device, "
    "or a state that was not restored as it was",
    "grad_norm": "the backward pass gives other bits: threads, library versions, processor or device",
}


class Replay:
    """Compares steps with what the journal recorded for them after the restored checkpoint."""

    def __init__(self, tail: Iterable[tuple[dict[str, Any], Mark]], step: int) -> None:
        """Take the records after the checkpoint of `step` (0: the whole journal), each with the mark after it."""
        self.recorded: dict[int, dict[str, Any]] = {}
        self.canary: dict[int, dict[str, Any]] = {}
        self.evaluations: dict[int, dict[str, float]] = {}
        self.segments: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        # A commit of a replayed step must point behind that step's record, not to the journal's end:
        # otherwise the steps recorded after it would be lost as evidence.
        self.marks: dict[int, Mark] = {}
        for record, mark in tail:
            number = record.get("n", -1)
            if record["kind"] == "step" and number > step:
                self.recorded[number] = record
                self.marks[number] = mark
            elif record["kind"] == "segment":
                self.segments.append(record)
            elif record["kind"] == "failed_step":
                self.failures.append(record)
            elif record["kind"] == "drift":
                self._forget_from(number)
            elif record["kind"] == "canary" and number > step:
                self.canary[number] = record
            elif record["kind"] == "evaluation":
                self.evaluations[number] = record["metrics"]
        self.end = max(self.recorded.keys() | self.canary.keys(), default=step)
        self.compared: list[int] = []

    def __len__(self) -> int:
        return len(self.recorded)

    def drift(self, step: int) -> None:
        """Expect nothing from `step` on: the run goes on with other results from there."""
        self._forget_from(step)
        self.end = max(self.recorded.keys() | self.canary.keys(), default=step)

    def _forget_from(self, step: int) -> None:
        for held in (self.recorded, self.canary, self.marks, self.evaluations):
            for number in [number for number in held if number >= step]:
                del held[number]

    def matches(self, record: dict[str, Any]) -> bool:
        """Compare one finished step; True if the journal holds it already and it is identical.

        Raises `CannotContinueError` naming the step, what differs first, and the likely cause.
        """
        number = record["n"]
        earlier = self.recorded.get(number) or self.canary.get(number)
        if earlier is None:
            return False
        key = first_difference(earlier, record)
        if key:
            raise difference(number, key, earlier[key], record[key], CAUSES[key])
        self.compared.append(number)
        return number in self.recorded


def first_difference(recorded: Mapping[str, Any], computed: Mapping[str, Any]) -> str:
    """Return which value of a step is the first to differ between two records of it; empty if none is."""
    return next((key for key in CAUSES if key in recorded and recorded[key] != computed[key]), "")


def difference(number: int, key: str, recorded: Any, computed: Any, cause: str) -> CannotContinueError:
    """Return the refusal for the first value that differs."""
    return CannotContinueError(
        f"step {number} does not repeat: {key} was {recorded}, is now {computed}",
        why=f"{cause}; nothing was committed after the difference",
        next_step="restore the environment the run began in (`unbroken show RUN` lists it), or go on inexactly "
        "with --accept-drift",
    )
