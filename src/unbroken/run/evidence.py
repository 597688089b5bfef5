"""What a run's journal tells, read without its lock and without changing it: which record stands for each step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from unbroken.run.replay import first_difference
from unbroken.store import layout
from unbroken.store.journal import START, Mark, read_marked


@dataclass(frozen=True)
class Stretch:
    """Steps `first` to `last`, between two accepted drifts: the state after one leads to the next, to the bit."""

    first: int
    last: int


@dataclass
class Evidence:
    """The records of a journal that stand. `begin` is the step a fork begins with, 0 in other runs.

    An accepted drift takes back the records from its step on: `steps` holds those made instead, `drifts` where.
    """

    begin: int = 0
    num_records: int = 0
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    made_in: dict[int, int] = field(default_factory=dict)  # step -> index of its segment
    segments: list[dict[str, Any]] = field(default_factory=list)
    drifts: list[int] = field(default_factory=list)
    contradictions: list[int] = field(default_factory=list)  # steps with two records that differ
    canary: dict[str, Any] | None = None
    finish: dict[str, Any] | None = None
    damaged: list[str] = field(default_factory=list)
    _proved: set[Mark] = field(default_factory=lambda: {START})

    @property
    def last(self) -> int:
        """The last recorded step."""
        return max(self.steps, default=self.begin)

    @property
    def missing(self) -> list[int]:
        """The steps that were made but have no record: nothing is known of them."""
        return [step for step in range(self.begin + 1, self.last + 1) if step not in self.steps]

    @property
    def stretches(self) -> list[Stretch]:
        """The steps from the first to the last recorded, divided where drift was accepted."""
        bounds = [self.begin + 1, *self.drifts, self.last + 1]
        return [Stretch(first, after - 1) for first, after in pairwise(bounds) if after > first]

    def proves(self, mark: Mark) -> bool:
        """Return whether every record before `mark` is there, undamaged and in order."""
        return mark in self._proved

    def environment(self, step: int) -> dict[str, Any] | None:
        """Return where a recorded step was made, None if that is not known."""
        index = self.made_in.get(step, -1)
        return self.segments[index].get("environment") if index >= 0 else None

    def take(self, record: dict[str, Any], mark: Mark) -> None:
        """Take one record and the mark that follows it."""
        self.num_records += 1
        if not self.damaged:
            self._proved.add(mark)
        match record["kind"]:
            case "fork":
                self.begin = record["n"]
            case "segment":
                self.segments.append(record)
            case "step":
                self._take_step(record)
            case "drift":
                self._forget_from(record["n"])
            case "canary":
                self.canary = record
                self.made_in[record["n"]] = len(self.segments) - 1
            case "finish":
                self.finish = record

    def _take_step(self, record: dict[str, Any]) -> None:
        number = record["n"]
        if number in self.steps and first_difference(self.steps[number], record):
            self.contradictions.append(number)
        self.steps[number] = record
        self.made_in[number] = len(self.segments) - 1

    def _forget_from(self, step: int) -> None:
        self.steps = {number: record for number, record in self.steps.items() if number < step}
        self.drifts = [*(earlier for earlier in self.drifts if earlier < step), step]
        if self.canary is not None and self.canary["n"] >= step:
            self.canary = None


def read_evidence(root: Path) -> Evidence:
    """Read a run's journal. Raises `StorageError` if there is none or it cannot be read."""
    evidence = Evidence()
    for record, mark in read_marked(root / layout.JOURNAL_FILE, evidence.damaged):
        try:
            evidence.take(record, mark)
        except (KeyError, TypeError):
            evidence.damaged.append(f"{layout.JOURNAL_FILE}: the record before byte {mark.offset} lacks what it tells")
    return evidence


def spans(steps: Iterable[int]) -> str:
    """Return ascending steps in words: 3, 7 to 9."""
    found: list[list[int]] = []
    for step in steps:
        if found and step == found[-1][1] + 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in found)
