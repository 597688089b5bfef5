"""From where a segment goes on: the newest checkpoint with which the finished model can still be had."""

from __future__ import annotations

import json
from typing import Any

from unbroken.base.errors import CannotContinueError
from unbroken.run.evaluation import Choice, is_better
from unbroken.run.folder import RunFolder
from unbroken.run.replay import Replay
from unbroken.store import layout
from unbroken.store.checkpoints import Restored


def resume_point(folder: RunFolder, choice: Choice, step: int | None) -> tuple[Restored | None, Replay]:
    """Return the checkpoint to go on from, None for the very beginning, and the replay of the journal after it.

    It is the newest, or that of `step`, unless the best one before it is broken or gone. Then it is the newest one
    before that: a step is a function of the state before it, so replaying finds the same best again. Raises
    `CannotContinueError` if the run has no state left to go on from.
    """
    checkpoints = folder.checkpoints
    restored = checkpoints.restore(step)
    if restored is None and folder.has_committed():
        raise checkpoints_gone(folder)
    replay = replay_after(folder, restored)
    while restored is not None and (best := chosen_before(restored)):
        if will_choose(replay, choice, best, restored.step):
            break
        problem = checkpoints.put_aside_if_broken(best["step"])
        if not problem:
            break
        restored = None  # before the memory of another is taken
        restored = checkpoints.restore_before(best["step"])
        if restored is None and folder.forked:
            raise best_gone(folder, best["step"], problem)
        back = f"step {restored.step}" if restored else "the beginning"
        checkpoints.notes.append(
            f"the checkpoint of step {best['step']}, the best so far, {problem}; "
            f"going back to {back}: the steps from there on are made again and compared"
        )
        replay = replay_after(folder, restored)
    return restored, replay


def replay_after(folder: RunFolder, restored: Restored | None) -> Replay:
    """Return what the journal holds to be compared with after a checkpoint."""
    return Replay(folder.tail(restored), restored.step if restored else 0)


def chosen_before(restored: Restored) -> dict[str, Any] | None:
    """Return the best evaluated step so far, as a checkpoint has it on record; None if it is this one, or none is."""
    best: dict[str, Any] | None = json.loads(restored.documents[layout.SEGMENT_FILE])["best"]
    return None if best is None or best["step"] == restored.step else best


def will_choose(replay: Replay, choice: Choice, best: dict[str, Any], step: int) -> bool:
    """Tell whether one of the steps to be made again after `step` is on record as better than `best`.

    Then `best` is needed no more, and retention may have removed it when the better one was committed.
    """
    values = (metrics.get(best["metric"]) for number, metrics in replay.evaluations.items() if number >= step)
    return any(is_better(float(value), best, choice) for value in values if value is not None)


def checkpoints_gone(folder: RunFolder) -> CannotContinueError:
    """Return the refusal to begin again where hours of training may be lost by it."""
    drifted = ", ".join(folder.checkpoints.drifted())
    return CannotContinueError(
        f"{folder.root} has recorded commits, but its checkpoints are gone",
        why=f"those of the steps that were to be made again, with other results, were put aside: {drifted}"
        if drifted
        else "",
        next_step="put the checkpoints folder back, or --restart to start over",
    )


def best_gone(folder: RunFolder, step: int, problem: str) -> CannotContinueError:
    """Return the refusal of a fork whose best step can neither be had nor be made again."""
    return CannotContinueError(
        f"{folder.root}: the checkpoint of step {step}, the best so far, {problem}",
        why="the finished model is the best one, and no earlier checkpoint is left to make it again from",
        next_step=f"put an intact copy of it back as checkpoints/{layout.checkpoint_name(step)}, or fork again",
    )
