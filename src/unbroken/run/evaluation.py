"""Evaluating between steps: done once per step, never able to disturb training, and able to choose the best step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import canonical, digest, json_number
from unbroken.base.reading import read_document
from unbroken.base.seeds import chunk_seed, derive
from unbroken.base.stopping import interruptible, poll
from unbroken.run.folder import RunFolder
from unbroken.run.job import Job
from unbroken.run.replay import Replay
from unbroken.run.report import Evaluated, Notice, Reporter
from unbroken.run.state import State
from unbroken.step.generators import seeded
from unbroken.store import files, layout
from unbroken.store.journal import decode_line, encode_record


class Choice(Protocol):
    """The settings that say when to evaluate and what counts as better."""

    @property
    def eval_steps(self) -> int | None:
        """Evaluate after every so many steps; None: only at the start and the end."""

    @property
    def best_metric(self) -> str | None:
        """The metric that chooses the finished model; None: it is the last step's."""

    @property
    def greater_is_better(self) -> bool:
        """Whether more of that metric is better."""


class Evaluations:
    """Evaluates at the start, every `eval_steps` and at the end, keeping one file for each."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        choice: Choice,
        replay: Replay,
        report: Reporter,
        recorded: int = -1,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the replay of the journal after a checkpoint, before which that of step `recorded` stands already.

        `check` raises `StopNow` when an evaluation in progress is to be left.
        """
        self.job = job
        self.folder = folder
        self.choice = choice
        self.replay = replay
        self.report = report
        self.recorded = recorded
        self.check = check
        self.settled = -1  # the step whose evaluation this segment has seen to

    def due(self, step: int) -> bool:
        """Tell whether the state after `step` finished steps is evaluated."""
        every = self.choice.eval_steps
        return self.job.evaluation_id != "" and (
            step in (0, self.job.last_step) or (every is not None and step % every == 0)
        )

    def missing(self, step: int) -> bool:
        """Tell whether the evaluation of the state after `step` steps is due and was not seen to."""
        return self.due(step) and step != self.settled

    def path(self, step: int) -> Path:
        """Return the file that keeps the evaluation after `step` finished steps."""
        return self.folder.root / layout.EVAL_FOLDER / f"{layout.checkpoint_name(step)}.json"

    def settle(self, state: State, last_record: Mapping[str, Any]) -> bool:
        """Make sure the evaluation due now is done; True if it is the best so far and its state must be kept.

        An evaluation belongs to the step that `last_record` describes: one made before results drifted is not used.
        Raises `StopNow`, with nothing kept, if a stop is asked for before it is made.
        """
        if not self.missing(state.step):
            return False
        made_of = digest(canonical([self.job.evaluation_id, last_record]))
        metrics = found = done_before(self.path(state.step), made_of)
        if metrics is None:
            with interruptible(self.check), undisturbed(self.job, state.step):
                poll()
                metrics = self.job.evaluate()
            self._keep(state.step, metrics, made_of)
        self._record(state.step, metrics, again=found is not None and state.step == self.recorded)
        self.settled = state.step
        self.report(Evaluated(state.step, metrics))
        return self._choose(state, metrics)

    def _keep(self, step: int, metrics: dict[str, float], made_of: str) -> None:
        self.folder.lock.require_held()
        path = self.path(step)
        files.make_folders(path.parent)
        files.replace_file(path, encode_record({"step": step, "metrics": in_json(metrics), "of": made_of}))

    def _record(self, step: int, metrics: dict[str, float], again: bool) -> None:
        """Put an evaluation on record, once, also where a process died between its file and its record."""
        recorded, values = self.replay.evaluations.get(step), in_json(metrics)
        if recorded is None and not again:
            self.folder.journal.append({"kind": "evaluation", "n": step, "metrics": values})
        elif recorded not in (None, values):
            self.report(Notice(f"the evaluation after step {step} differs from the recorded one"))

    def _choose(self, state: State, metrics: dict[str, float]) -> bool:
        name = self.choice.best_metric
        if name is None or state.step == 0 or not self.job.phase_at(state.step - 1)[1].completes:
            return False
        if name not in metrics:
            raise ConfigError(f"metric_for_best_model: '{name}' is not among the metrics: {', '.join(metrics)}")
        if not is_better(metrics[name], state.best, self.choice):
            return False
        state.best = {"step": state.step, "metric": name, "value": metrics[name]}
        return True


def is_better(value: float, best: Mapping[str, Any] | None, choice: Choice) -> bool:
    """Tell whether an evaluated step becomes the best; of equal ones the first is."""
    sign = 1 if choice.greater_is_better else -1
    return math.isfinite(value) and (best is None or sign * value > sign * best["value"])


def in_json(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return metrics as a record holds them."""
    return {name: json_number(value) for name, value in metrics.items()}


def done_before(path: Path, made_of: str) -> dict[str, float] | None:
    """Return the metrics found at `path`, as a killed segment may have left them; None if they must be made again."""
    try:
        found = decode_line(read_document(path))
    except OSError:
        return None
    if found is None or found.get("of") != made_of:
        return None
    return {name: float(value) for name, value in found["metrics"].items()}


@contextmanager
def undisturbed(job: Job, step: int) -> Iterator[None]:
    """Evaluate in eval mode, without gradients, on random numbers of its own; leave everything as it was."""
    modes: list[tuple[Any, bool]] = [(m, m.training) for root in job.modules.values() for m in root.modules()]
    for root in job.modules.values():
        root.eval()
    try:
        with torch.no_grad(), seeded(chunk_seed(derive(job.seed, "evaluation"), step)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
