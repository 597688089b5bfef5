"""Recorded steps made again in memory, from a checkpoint or from the beginning, and compared to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from unbroken.base.errors import CannotContinueError, TrainingError, UnbrokenError
from unbroken.base.fingerprint import canonical
from unbroken.base.words import number_of
from unbroken.run import environment
from unbroken.run.compare import compare_tensors
from unbroken.run.digests import FORGED, model_tensors
from unbroken.run.evidence import Evidence, Stretch, spans
from unbroken.run.job import Job
from unbroken.run.replay import CAUSES, first_difference
from unbroken.run.stepping import Steps
from unbroken.run.verification import Problem, Replayed, Verification
from unbroken.store import layout
from unbroken.store.checkpoints import Restored, read_checkpoint
from unbroken.store.manifest import read_manifest

DEFAULT_STEPS = 20
STATE_KEYS = ("step", "phase", "optimizer_numbers", "groups", "extras")
INSIDE_MODEL = f"{layout.MODEL_FOLDER}/"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Window:
    """What to make again: from the state after `start` steps to that after `last`; None: from the base model."""

    start: int
    last: int
    chosen: str
    state: Restored | None = None


def open_windows(
    root: Path, evidence: Evidence, found: Verification, *, step: int | None, steps: int | None, everything: bool
) -> list[Window]:
    """Choose windows as `choose_windows` does, and read the states they start from.

    A run that trains may retire one of those just now: it is then forgotten, and the windows chosen anew.
    """
    while True:
        chosen = choose_windows(evidence, found.good_checkpoints, step=step, steps=steps, everything=everything)
        windows = []
        for window in chosen:
            if not window.start and not evidence.begin:
                windows.append(window)
                continue
            folder = checkpoint_folder(root, window.start)
            try:
                windows.append(replace(window, state=read_checkpoint(folder, found.run_id)))
            except CannotContinueError:
                if folder.is_dir():
                    raise
                found.good_checkpoints.remove(window.start)
                found.checkpoints.remove(window.start)
                break
        else:
            return windows


def checkpoint_folder(root: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint."""
    return root / layout.CHECKPOINTS_FOLDER / layout.checkpoint_name(step)


def choose_windows(
    evidence: Evidence, sound: Sequence[int], *, step: int | None, steps: int | None, everything: bool
) -> list[Window]:
    """Return which recorded steps to make again; `sound` are the steps of the checkpoints that verify.

    `everything`: all that can be reached. Otherwise one window, from `step` on or from the oldest checkpoint, over
    `steps` steps, or to the next checkpoint, or at most 20 where none follows. No window crosses an accepted drift.
    Raises `CannotContinueError` if nothing is recorded there or there is no state to start from.
    """
    last = f"records end at step {evidence.last}"
    if step is not None and step >= evidence.last and not _foreseen(evidence, step):
        earlier = max(evidence.begin, evidence.last - 1)
        raise CannotContinueError(f"nothing is recorded after step {step}", why=last, next_step=f"try @{earlier}")
    starts = {stretch: _starts(evidence, stretch, sound) for stretch in evidence.stretches}
    if everything:
        found = [Window(min(from_), stretch.last, "all that is recorded") for stretch, from_ in starts.items() if from_]
    elif step is not None:
        found = [_window_at(evidence, starts, sound, step, steps)]
    else:
        found = _default(evidence, starts, sound, steps)
    if not found:
        raise CannotContinueError("there is nothing to replay: no recorded step follows a state that is there")
    return found


def _starts(evidence: Evidence, stretch: Stretch, sound: Sequence[int]) -> list[int]:
    """Return the states from which steps of a stretch can be made: its checkpoints, and the beginning of the run."""
    beginning = stretch.first == 1 and evidence.begin == 0
    lowest = stretch.first if stretch.first in evidence.drifts else stretch.first - 1
    found = {step for step in sound if lowest <= step < stretch.last}
    return sorted(found | ({0} if beginning else set()))


def _default(
    evidence: Evidence, starts: dict[Stretch, list[int]], sound: Sequence[int], steps: int | None
) -> list[Window]:
    from_checkpoint = sorted(
        (start, stretch.last) for stretch, found in starts.items() for start in found if start in sound
    )
    if from_checkpoint:
        start, last = from_checkpoint[0]
        end, why = _end(start, last, sound, steps)
        return [Window(start, end, f"from the oldest checkpoint {why}")]
    newest = max(sound, default=None)
    if newest is not None and _foreseen(evidence, newest):
        return [Window(newest, newest, "the step that was foreseen when the run stopped")]
    for stretch, found in starts.items():
        if found:
            end, why = _end(found[0], stretch.last, sound, steps)
            return [Window(found[0], end, f"from the beginning, since no step follows a checkpoint, {why}")]
    return []


def _window_at(
    evidence: Evidence, starts: dict[Stretch, list[int]], sound: Sequence[int], step: int, steps: int | None
) -> Window:
    if step in sound and step >= evidence.last:
        return Window(step, step, "the step that was foreseen when the run stopped")
    stretch = next((one for one in starts if one.first <= step + 1 <= one.last), None)
    before = [start for start in starts[stretch] if start <= step] if stretch else []
    if stretch is None or not before:
        there = ", ".join(map(str, sorted({start for found in starts.values() for start in found}))) or "none"
        raise CannotContinueError(
            f"no state from which step {step + 1} could be made again is there",
            next_step=f"steps with one: {there}",
        )
    end, why = _end(step, stretch.last, sound, steps)
    at = f"from step {step}, as asked," if before[-1] == step else f"from the last state before step {step}, as asked,"
    return Window(before[-1], end, f"{at} {why}")


def _end(start: int, last: int, sound: Sequence[int], steps: int | None) -> tuple[int, str]:
    """Return the last step of a window, and why it is that one."""
    if steps is not None:
        return min(last, start + steps), f"for {number_of(steps, 'step')}"
    following = min((step for step in sound if start < step <= last), default=None)
    if following is not None and (start in sound or following <= start + DEFAULT_STEPS):  # there tensors are compared
        return following, "to the next one" if start in sound else "to the next checkpoint"
    end = min(last, start + DEFAULT_STEPS)
    return end, "to the last record" if end == last else f"for {DEFAULT_STEPS} steps"


def _foreseen(evidence: Evidence, step: int) -> bool:
    return evidence.canary is not None and evidence.canary["n"] == step + 1 and step + 1 not in evidence.steps


def replay(
    job: Job, root: Path, evidence: Evidence, windows: Sequence[Window], found: Verification, progress: Progress
) -> None:
    """Make the windows' steps again and put into `found` what was compared and what differs; nothing is written."""
    replayer = Replayer(job, root, evidence, found, progress)
    for window in windows:
        replayer.make(window)
    made = {step for replay in found.replays for step in range(replay.first, replay.last + 1)}
    left = [step for step in sorted(evidence.steps) if step not in made]
    if left:
        found.unchecked.append(f"steps {spans(left)} were not replayed")
    seen = {step for replay in found.replays for step in replay.checkpoints}
    unseen = [str(step) for step in found.good_checkpoints if step not in seen]
    if unseen:
        which = f"checkpoint{'' if len(unseen) == 1 else 's'} {', '.join(unseen)}"
        found.unchecked.append(f"the tensors of {which} were compared with their digests only")
    if evidence.finish is not None and not any(replay.model for replay in found.replays):
        found.unchecked.append("the tensors of the finished model were compared with its SHA-256 only")


class Replayer:
    """Makes steps of one job in memory; the windows come in ascending order."""

    def __init__(self, job: Job, root: Path, evidence: Evidence, found: Verification, progress: Progress) -> None:
        self.root = root
        self.evidence = evidence
        self.found = found
        self.progress = progress
        self.steps = Steps(job)
        self.known = False  # whether the journal tells where the step under way was made
        self.environment = environment.numerics(next(iter(self.steps.state.trained.values())).device)

    def make(self, window: Window) -> None:
        """Make the steps of one window, compare each record, and each checkpoint on the way, with what is there."""
        origin = f"checkpoint {window.start}" if window.state else "the base model"
        now = Replayed(window.start, window.start + 1, window.start, origin, window.chosen)
        self.found.replays.append(now)
        if window.state and not self._restore(window.state):
            return
        state = self.steps.state
        while state.step < window.last:
            if not self._step(now):
                return
            self._compare_checkpoint(now)
            self._compare_model(now)
            self.progress("replaying: step", state.step, window.last)
        if _foreseen(self.evidence, state.step):
            assert self.evidence.canary is not None
            self._note_environment(state.step + 1)
            now.canary = self._same(self.evidence.canary, self.steps.foresee())

    def _restore(self, restored: Restored) -> bool:
        try:
            self.steps.state.restore(restored)
        except CannotContinueError as failure:
            step = restored.step
            self.found.problems.append(Problem(f"checkpoint {step} cannot be restored: {failure.what}", FORGED, step))
            return False
        return True

    def _step(self, now: Replayed) -> bool:
        """Make one step; False if it differs from its record, and all that follows is therefore another run."""
        number = self.steps.state.step + 1
        self._note_environment(number)
        recorded = self.evidence.steps.get(number)
        try:
            record = self.steps.make()
        except TrainingError as failure:
            what = f"step {number} does not repeat: {failure.what}"
            self.found.problems.append(Problem(what, self._cause("loss"), number, "grad_norm"))
            return False
        now.last = number
        if recorded is None:
            now.unrecorded.append(number)
            return True
        if not self._same(recorded, record):
            return False
        now.identical += 1
        return True

    def _same(self, recorded: dict[str, Any], computed: dict[str, Any]) -> bool:
        key = first_difference(recorded, computed)
        if not key:
            return True
        number = recorded["n"]
        what = f"step {number} does not repeat: {key} was {recorded[key]}, is now {computed[key]}"
        self.found.problems.append(Problem(what, self._cause(key), number, key))
        return False

    def _compare_checkpoint(self, now: Replayed) -> None:
        """Compare every tensor and optimizer slot with the checkpoint of this step, if there is one that verifies."""
        step = self.steps.state.step
        if step not in self.found.good_checkpoints:
            return
        try:
            restored = read_checkpoint(checkpoint_folder(self.root, step), self.found.run_id)
            places = read_manifest(checkpoint_folder(self.root, step)).tensors
        except UnbrokenError:
            return  # a run that trains has retired it meanwhile
        image = self.steps.state.image()
        order = sorted(restored.tensors, key=lambda name: (places[name].file, places[name].key))
        ours = {name: placed.tensor for name, placed in image.tensors.items()}
        theirs = {name: restored.tensors[name] for name in order}
        same = self._compare(f"checkpoint {step}", theirs, ours)
        self._compare_numbers(restored, image.state, same)
        now.checkpoints.append(step)

    def _compare_numbers(self, restored: Restored, state: Any, tensors_same: bool) -> None:
        """Compare what a checkpoint holds beside tensors: the optimizer's numbers and options, a loop's extras."""
        for key in STATE_KEYS:
            if tensors_same and canonical(restored.state.get(key)) != canonical(state[key]):
                what = f"step {restored.step}: {key!r} of checkpoint {restored.step} is not what the steps give"
                self.found.problems.append(Problem(what, FORGED, restored.step, key))

    def _compare_model(self, now: Replayed) -> None:
        """Compare the finished model, if it is that of this step."""
        finish, step = self.evidence.finish, self.steps.state.step
        if finish is None or finish["best"] != step:
            return
        image = self.steps.state.image()
        ours = {name: placed for name, placed in image.tensors.items() if placed.file.startswith(INSIDE_MODEL)}
        names = {name: (placed.file.removeprefix(INSIDE_MODEL), placed.key) for name, placed in ours.items()}
        try:
            theirs = model_tensors(self.root, names)
        except UnbrokenError as failure:
            self.found.unchecked.append(f"the tensors of the finished model: {failure.what}")
            return
        self._compare("the finished model", theirs, {name: placed.tensor for name, placed in ours.items()})
        now.model = True

    def _compare(self, whose: str, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> bool:
        compared, step = compare_tensors(theirs, ours), self.steps.state.step
        self.found.tensors_compared += compared.total
        self.found.tensors_identical += compared.identical
        if compared.different:
            first, count = compared.different[0], len(compared.different)
            others = f" and {number_of(count - 1, 'tensor')} more" if count > 1 else ""
            what = f"step {step}: {whose} does not hold what the steps give: {first.text}{others}"
            self.found.problems.append(Problem(what, self._cause("", FORGED), step, first.name))
        return not compared.different

    def _note_environment(self, number: int) -> None:
        """Note what differs between here and the place where a step was made."""
        then = self.evidence.environment(number)
        self.known = then is not None
        for line in environment.changes(then, self.environment) if then else []:
            if line not in self.found.environment_changes:
                self.found.environment_changes.append(line)

    def _cause(self, key: str, default: str = "") -> str:
        """Return the likely cause of a difference; a changed environment is named beside it."""
        cause = CAUSES.get(key, default)
        if self.found.environment_changes:
            changes = ", ".join(self.found.environment_changes)
            return f"{cause}; the environment is not the one it was made in: {changes}"
        same = "; versions, processor and threads are those of the segment that made it"
        return cause + same * bool(key and self.known)
