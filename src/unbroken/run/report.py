"""What happens in a run, as values; who shows them to people is not the loop's concern."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

SHOWN_ROWS = 16


@dataclass(frozen=True)
class Began:
    """A segment begins after `step` finished steps (0: a fresh start)."""

    step: int
    last_step: int
    batch_size: int
    segment: int
    to_replay: int


@dataclass(frozen=True)
class Stepped:
    """Step number `step` (from 1) is done. `loss` and `grad_norm` are of the batch, before clipping."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    num_examples: int


@dataclass(frozen=True)
class Boundary:
    """The last step on record before this segment and the first one after it, side by side."""

    recorded: dict[str, Any]
    first_new: dict[str, Any]


@dataclass(frozen=True)
class Replayed:
    """`count` of the steps `first` to `last` were on record, computed again, and are identical to the bit."""

    first: int
    last: int
    count: int


@dataclass(frozen=True)
class Committed:
    """The state after `step` is on disk and will survive anything; training stood still for `stall_seconds`."""

    step: int
    stall_seconds: float
    write_seconds: float


@dataclass(frozen=True)
class Mirrored:
    """The commit of `step` is in the mirror too, `seconds` after its turn came; training did not wait."""

    step: int
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """The metrics after `step` finished steps."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Ended:
    """The segment is over: finished, or stopped for `reason` with everything up to `step` committed.

    `proof` is about the whole run if finished, about this segment if stopped, and empty if none began.
    """

    step: int
    finished: bool
    reason: str
    model: str
    proof: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Notice:
    """Something a person should know: a fall-back, a repair, a stop request."""

    text: str


Event = Began | Stepped | Boundary | Replayed | Committed | Mirrored | Evaluated | Ended | Notice
Reporter = Callable[[Event], None]


def silent(event: Event) -> None:
    """Show nothing."""


def plain(event: Event) -> None:
    """Show the rare events as lines on stderr: what `Loop` does where nobody gave it a reporter."""
    match event:
        case Began(step, last_step, _, segment, to_replay) if segment > 1:
            line = f"segment {segment}: step {step} of {last_step} restored, {to_replay} recorded steps to replay"
        case Replayed(first, last, count):
            line = f"replayed {count} steps ({first} to {last}): identical"
        case Evaluated(step, metrics):
            line = f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        case Ended(step, finished, reason, _, _):
            line = f"finished at step {step}" if finished else f"stopped at step {step} ({reason}); run again to go on"
        case Notice(text):
            line = text
        case _:
            return
    print(line, file=sys.stderr)


def unfailing(report: Reporter) -> Reporter:
    """Return a reporter that shows what `report` shows; a stream that is closed under it never stops a run."""

    def shown(event: Event) -> None:
        with suppress(OSError, ValueError):
            report(event)

    return shown


def rows_of(ids: list[int]) -> str:
    """Name the rows of a batch as people count them, from 1; the rest of many is left out."""
    shown = ", ".join(str(number + 1) for number in ids[:SHOWN_ROWS])
    return f"row {shown}" if len(ids) == 1 else f"rows {shown}" + (", ..." if len(ids) > SHOWN_ROWS else "")
