"""The demo from beginning to end."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from unbroken.base.errors import ConfigError, VerificationError
from unbroken.store import layout
from unbroken.store.run import is_run
from unbroken.views.demo.arm import Arm, Instant, Pace, Sight, carry_on, draw_instants, measure_pace
from unbroken.views.demo.comparison import OPTIMIZER, WEIGHTS, Comparison, compare
from unbroken.views.demo.screen import Screen
from unbroken.views.demo.stage import ALONE, KILLED, NUM_STEPS, SAVE_STEPS, Stage, find_model

MOST_KILLS = 20


@dataclass(frozen=True)
class Outcome:
    """What came of a demo."""

    comparison: Comparison
    arm: Arm
    seconds: float

    def values(self) -> dict[str, Any]:
        """Return the outcome as flat values."""
        found = self.comparison
        evaluated = found.metrics[1]
        values: dict[str, Any] = {
            "identical": found.identical,
            "differences": "; ".join(found.differences),
            "kills": len(self.arm.kills),
            "steps": len(found.steps),
            "identical_steps": sum(pair.same for pair in found.steps),
            "replayed_steps": found.replayed_steps,
        }
        for number, kill in enumerate(self.arm.kills, 1):
            values |= {
                f"kill_{number}.moment": kill.moment,
                f"kill_{number}.recorded_step": kill.step,
                f"kill_{number}.committed_step": kill.safe_step,
            }
        for name in (WEIGHTS, OPTIMIZER):
            alone, killed = found.sums[name]
            key = name.replace(" ", "_")
            values |= {f"{key}.sha256.alone": alone, f"{key}.sha256.killed": killed}
        if evaluated:
            for when, step in (("before", min(evaluated)), ("after", max(evaluated))):
                values |= {f"{name}.{when}": value for name, value in evaluated[step].items()}
        return values | {"folder": str(self.arm.folder.parent), "seconds": round(self.seconds, 1)}


def play(folder: Path, kills: int, seed: int | None, screen: Screen, *, results: bool = True) -> Outcome:
    """Train twice, kill one, compare; show it on `screen`, the closing parts only with `results`.

    Raises `ConfigError` if the model is not installed, the folder is somebody else's, or `kills` is out of range;
    `BusyError` if a demo is running there; `VerificationError` if no kill struck or a step did not repeat.
    """
    if not 1 <= kills <= MOST_KILLS:
        raise ConfigError(f"--kills {kills}: expected 1 to {MOST_KILLS}")
    model, stage, begun = find_model(), Stage(folder), time.monotonic()
    draw = random.SystemRandom() if seed is None else random.Random(seed)
    instants = draw_instants(kills, NUM_STEPS, SAVE_STEPS, draw)
    with stage.held(model), ending_on_terminate():
        screen.opening(stage.config)
        killed = run_both(stage, instants, screen)
        found = compare(folder / ALONE, killed.folder)
        if not killed.kills:
            raise VerificationError("no kill struck before the run was finished", next_step="run the demo again")
        outcome = Outcome(found, killed, time.monotonic() - begun)
        if results:
            screen.comparison(found, killed.kills)
            if found.identical:
                screen.learning(found, learned(model, killed.folder))
            screen.closing(stage.config, killed.folder, time.monotonic() - begun, size_of(folder))
    return outcome


def learned(model: Path, run: Path) -> Any:
    """Return what was learned; imports torch, so only now, when no training wants the cores."""
    from unbroken.views.demo.learning import what_was_learned

    return what_was_learned(model, run / layout.MODEL_FOLDER)


def run_both(stage: Stage, instants: Sequence[Instant], screen: Screen) -> Arm:
    """Carry both arms to their end; return the one that was killed."""
    alone, killed = (Arm(name, stage.config, stage.folder / name) for name in (ALONE, KILLED))
    current = alone
    try:
        screen.heading(1, "Left alone", alone)
        pace = run_arm(alone, (), Pace(), screen)
        current = killed
        times = f"{len(instants)} time{'s' * (len(instants) != 1)}"
        screen.heading(2, f"Killed {times}, at random; the same command each time", killed)
        run_arm(killed, instants, pace, screen)
        screen.legend()
    except KeyboardInterrupt:
        screen.stopped(current if is_run(current.folder) else None)
        raise
    return killed


def run_arm(arm: Arm, instants: Sequence[Instant], pace: Pace, screen: Screen) -> Pace:
    """Carry one arm to its end, shown live; return how fast it went."""
    arrivals: list[float] = []
    with screen.watching() as timelines:

        def show(sight: Sight) -> None:
            if sight.finished or sight.kill:
                timelines.ended(sight)
                return
            arrivals.extend([sight.seconds] * (len(sight.steps) - len(arrivals)))
            timelines.show(sight)

        carry_on(arm, instants, pace, show)
    return measure_pace(arrivals)


@contextmanager
def ending_on_terminate() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does: with its children."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
