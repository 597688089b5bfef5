"""One arm of the demo: real training processes, watched through the journal they write, killed for real.

Nothing here reaches into a run: what is known of it is what the journal and the checkpoints folder say.
"""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unbroken.base.errors import CannotContinueError, TrainingError, UnbrokenError, VerificationError
from unbroken.store import layout
from unbroken.store.files import list_folder
from unbroken.store.journal import read_records
from unbroken.tasks.origin import newest_checkpoint
from unbroken.views.demo.stage import LOG_SUFFIX

POLL_SECONDS = 0.02
TAIL_BYTES = 4096


@dataclass(frozen=True)
class Pace:
    """How long an undisturbed process takes here: to its first step, and from step to step."""

    start_seconds: float = 5.0
    step_seconds: float = 1.0


@dataclass(frozen=True)
class Instant:
    """When to kill: `fraction` of a step's time after step `step` is on record and, if so, a commit is on disk.

    If the record is that far already when the process starts: after `fraction` of the time a start takes.
    """

    step: int
    fraction: float
    after_commit: bool = False


@dataclass(frozen=True)
class Kill:
    """One SIGKILL that struck: the last step on record then, the last one committed, and what was going on."""

    step: int
    safe_step: int
    moment: str


@dataclass(frozen=True)
class Sight:
    """What can be seen of one process: where it began, what it replayed, what is new, what it committed."""

    number: int
    seconds: float = 0.0
    began_after: int | None = None
    to_replay: int = 0
    replayed: int = 0
    steps: tuple[int, ...] = ()
    commits: frozenset[int] = frozenset()
    loss: float | str | None = None
    last_step: int = 0
    finished: bool = False
    kill: Kill | None = None


@dataclass
class Arm:
    """A run, the command that carries it on, and its processes so far."""

    name: str
    config: Path
    folder: Path
    sights: list[Sight] = field(default_factory=list)

    @property
    def shown_command(self) -> str:
        """The command as a person types it."""
        return f"unbroken train {self.config} --set output_dir={self.folder}"

    @property
    def command(self) -> list[str]:
        """The same command; `-P`, so that no file in the current folder passes for a module."""
        return [
            *(sys.executable, "-P", "-m", "unbroken", "train"),
            *(str(self.config), "--set", f"output_dir={self.folder}"),
        ]

    @property
    def log(self) -> Path:
        """Where the processes' own messages go."""
        return self.folder.with_name(self.folder.name + LOG_SUFFIX)

    @property
    def kills(self) -> list[Kill]:
        """The kills that struck."""
        return [sight.kill for sight in self.sights if sight.kill is not None]

    @property
    def seconds(self) -> float:
        """How long its processes ran, together."""
        return sum(sight.seconds for sight in self.sights)

    def records(self) -> list[dict[str, Any]]:
        """Return the journal; empty before there is one."""
        journal = self.folder / layout.JOURNAL_FILE
        return list(read_records(journal)) if journal.exists() else []

    def safe_step(self) -> int:
        """Return the step of the newest checkpoint, 0 without one."""
        with suppress(OSError):  # retention removes folders while we look
            newest = newest_checkpoint(self.folder)
            return (layout.step_of(newest.name) or 0) if newest else 0
        return 0


def draw_instants(kills: int, last_step: int, first_commit: int, draw: random.Random) -> list[Instant]:
    """Draw when to kill: anywhere in the run, in order, at least the last one after the first commit."""
    places = [draw.uniform(0, last_step) for _ in range(kills - 1)]
    places.append(draw.uniform(first_commit + 1, last_step))
    return [Instant(int(place), math.modf(place)[0], after_commit=place > first_commit + 1) for place in sorted(places)]


def carry_on(arm: Arm, instants: Sequence[Instant], pace: Pace, show: Callable[[Sight], None]) -> None:
    """Give the arm's command again and again until it finishes, killing one process at each instant.

    `show` is called with every look at the process in progress, and with the last one. Raises what a process failed
    with.
    """
    due = list(instants)
    while not (arm.sights and arm.sights[-1].finished):
        process = Process(arm, len(arm.sights) + 1, due.pop(0) if due else None, pace)
        arm.sights.append(process.run(show))
        show(arm.sights[-1])


def measure_pace(arrivals: Sequence[float]) -> Pace:
    """Return the pace of a process from when each of its steps was seen, in seconds after its start."""
    if len(arrivals) < 2:
        return Pace()
    return Pace(arrivals[0], max(arrivals[-1] - arrivals[0], 0.0) / (len(arrivals) - 1))


class Process:
    """One process of an arm, from its start to its end or its kill."""

    def __init__(self, arm: Arm, number: int, instant: Instant | None, pace: Pace) -> None:
        self.arm = arm
        self.number = number
        self.instant = instant
        self.pace = pace
        self.records_before = len(arm.records())
        self.strike_at: float | None = None

    def run(self, show: Callable[[Sight], None]) -> Sight:
        """Start it, watch it, kill it if its time comes; it is gone when this returns or raises."""
        self.begun = time.monotonic()
        with self.arm.log.open("ab") as log:
            process = subprocess.Popen(self.arm.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            struck = self._watch(process, show)
        finally:  # whatever happens here, Ctrl-C included, no training is left running unseen
            if process.poll() is None:
                process.kill()
            process.wait()
        sight = self.look()
        if struck and process.returncode == -signal.SIGKILL:
            return replace_kill(sight, Kill(position(self.arm.records()), self.arm.safe_step(), self._moment(sight)))
        if process.returncode != 0:
            raise failure(process.returncode, self.arm)
        return Sight(**{**vars(sight), "finished": True})

    def look(self) -> Sight:
        """Return what can be seen of the process now."""
        return sight_of(self.arm.records(), self.records_before, self.number, time.monotonic() - self.begun)

    def _watch(self, process: subprocess.Popen[bytes], show: Callable[[Sight], None]) -> bool:
        """Look until the process ends; True if it was killed."""
        while process.poll() is None:
            sight = self.look()
            show(sight)
            now = time.monotonic()
            self._aim(sight, now)
            if self.strike_at is not None and now >= self.strike_at:
                process.kill()
                return True
            time.sleep(POLL_SECONDS if self.strike_at is None else max(0, min(POLL_SECONDS, self.strike_at - now)))
        return False

    def _aim(self, sight: Sight, now: float) -> None:
        """Set the time of the kill once the record has come as far as the instant says."""
        instant = self.instant
        if instant is None or self.strike_at is not None or sight.last_step < instant.step:
            return
        if instant.after_commit and not self.arm.safe_step():
            return
        whole = self.pace.step_seconds if sight.steps else self.pace.start_seconds
        self.strike_at = now + instant.fraction * whole

    def _moment(self, sight: Sight) -> str:
        """Say what the dead process was doing, from what it left behind."""
        if sight.began_after is None:
            return "during the start"
        names = list_folder(self.arm.folder / layout.CHECKPOINTS_FOLDER)
        if any(name.startswith(layout.UNFINISHED_PREFIX) for name in names):
            return "during a commit"
        if sight.to_replay and not sight.replayed:
            return "during the replay"
        return f"in step {sight.last_step + 1}" if sight.last_step else "in the first step"


def replace_kill(sight: Sight, kill: Kill) -> Sight:
    """Return the sight of a process that `kill` ended."""
    return Sight(**{**vars(sight), "kill": kill})


def position(records: Sequence[dict[str, Any]]) -> int:
    """Return the highest step on record."""
    return max((record["n"] for record in records if record["kind"] == "step"), default=0)


def sight_of(records: Sequence[dict[str, Any]], before: int, number: int, seconds: float) -> Sight:
    """Return what the records after the first `before` say about the process that wrote them."""
    own = records[before:]
    segment = next((record for record in own if record["kind"] == "segment"), None)
    if segment is None:
        return Sight(number, seconds, last_step=position(records))
    known, began = position(records[:before]), int(segment["step"])
    steps = [record for record in own if record["kind"] == "step"]
    return Sight(
        number,
        seconds,
        began_after=began,
        to_replay=max(known - began, 0),
        replayed=sum(record["count"] for record in own if record["kind"] == "replay"),
        steps=tuple(record["n"] for record in steps),
        commits=frozenset(record["n"] for record in own if record["kind"] == "commit"),
        loss=steps[-1]["loss"] if steps else None,
        last_step=position(records),
    )


def failure(code: int, arm: Arm) -> UnbrokenError:
    """Return what a process that ended by itself with `code` should be reported as, in its own words."""
    lines = arm.log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    said = said.removeprefix("unbroken: ")
    what = f"{arm.shown_command} ended with code {code}" if code >= 0 else f"the system ended it with signal {-code}"
    error: UnbrokenError
    if code == CannotContinueError.exit_code:  # a step did not repeat: the very thing the demo is there to find
        return VerificationError(what, why=said, next_step=f"its messages are in {arm.log}")
    error = TrainingError(what, why=said, next_step=f"its messages are in {arm.log}")
    error.exit_code = code if code in (2, 3, 75, 130) else TrainingError.exit_code
    return error
