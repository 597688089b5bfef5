"""Whether two runs ended as the same model: files by SHA-256, steps by every value on record."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbroken.run.proof import proof
from unbroken.store import layout
from unbroken.store.journal import read_records
from unbroken.tasks.origin import newest_checkpoint

WEIGHTS = "weights"
OPTIMIZER = "optimizer state"
COMPARED = ("ids", "loss", "grad_norm", "learning_rate")  # all that a step's record holds

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Pair:
    """One step as both runs recorded it; None where one of them has no record of it."""

    number: int
    alone: Mapping[str, Any] | None
    killed: Mapping[str, Any] | None

    @property
    def same(self) -> bool:
        """Whether all recorded values are the same, to the bit."""
        if self.alone is None or self.killed is None:
            return False
        return all(same_bits(self.alone[key], self.killed[key]) for key in COMPARED)


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    sums: Mapping[str, tuple[str, str]]
    steps: tuple[Pair, ...]
    metrics: tuple[Mapping[int, Mapping[str, float]], Mapping[int, Mapping[str, float]]]
    replayed_steps: int

    @property
    def differences(self) -> list[str]:
        """Everything that is not the same, in words; empty if the runs are identical."""
        found = [f"{name}: not the same" for name, (alone, killed) in self.sums.items() if not alone or alone != killed]
        if not self.steps:
            found.append("no steps to compare")
        unlike = [pair.number for pair in self.steps if not pair.same]
        if unlike:
            found.append(f"{len(unlike)} of {len(self.steps)} steps differ, first step {unlike[0]}")
        if self.metrics[0] != self.metrics[1]:
            found.append("evaluations: not the same")
        return found

    @property
    def identical(self) -> bool:
        """Whether everything that was compared is the same."""
        return not self.differences


def compare(alone: Path, killed: Path) -> Comparison:
    """Compare two finished runs, reading the files themselves rather than what the runs say about them."""
    left, right = list(read_records(alone / layout.JOURNAL_FILE)), list(read_records(killed / layout.JOURNAL_FILE))
    sums = {name: (sha256(a), sha256(b)) for name, a, b in _files(alone, killed)}
    return Comparison(sums, pair_up(left, right), (metrics(left), metrics(right)), proof(right)["replayed_steps"])


def pair_up(alone: Records, killed: Records) -> tuple[Pair, ...]:
    """Return the steps of two journals, each number once."""
    left, right = ({r["n"]: r for r in records if r["kind"] == "step"} for records in (alone, killed))
    return tuple(Pair(n, left.get(n), right.get(n)) for n in sorted(left.keys() | right.keys()))


def metrics(records: Records) -> dict[int, Mapping[str, float]]:
    """Return the evaluations on record, by step."""
    return {record["n"]: record["metrics"] for record in records if record["kind"] == "evaluation"}


def sha256(path: Path | None) -> str:
    """Return the SHA-256 of a file, empty if it is not there."""
    if path is None or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bits(value: float | str) -> str:
    """Return the bits of a number as hexadecimal: 8 digits if float32 holds it exactly, else the 16 of float64."""
    if isinstance(value, str):  # journals hold NaN and infinities as words
        return value
    try:
        short = struct.pack(">f", value)
    except OverflowError:
        return struct.pack(">d", value).hex()
    return (short if struct.unpack(">f", short)[0] == value else struct.pack(">d", value)).hex()


def same_bits(one: Any, other: Any) -> bool:
    """Return whether two recorded values are the same; numbers to the bit, so that 0.0 is not -0.0."""
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    return type(one) is type(other) and bool(one == other)


def _files(alone: Path, killed: Path) -> list[tuple[str, Path | None, Path | None]]:
    """What is compared by content: the finished weights, and the optimizer's moments in the last checkpoint."""
    weights = f"{layout.MODEL_FOLDER}/model{layout.WEIGHTS_SUFFIX}"
    newest = [newest_checkpoint(run) for run in (alone, killed)]
    left, right = (folder / layout.OPTIMIZER_FILE if folder else None for folder in newest)
    return [(WEIGHTS, alone / weights, killed / weights), (OPTIMIZER, left, right)]
