"""The loop: carry a job from its last committed step to its final one.

However often the process stops on the way, the final state is the same, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unbroken.base.errors import (
    BusyError,
    CannotContinueError,
    ConfigError,
    FailsAgainError,
    StorageError,
    TrainingError,
    UnbrokenError,
)
from unbroken.base.fingerprint import canonical, digest
from unbroken.base.stopping import StopNow, interruptible, poll
from unbroken.run import environment
from unbroken.run.evaluation import Evaluations
from unbroken.run.folder import RunFolder
from unbroken.run.job import Job
from unbroken.run.proof import segment_proof
from unbroken.run.report import (
    Began,
    Boundary,
    Committed,
    Ended,
    Notice,
    Replayed,
    Reporter,
    Stepped,
    rows_of,
    silent,
    unfailing,
)
from unbroken.run.resources import peak_bytes
from unbroken.run.resuming import resume_point
from unbroken.run.settings import MOMENTS_AND_WEIGHTS, Settings
from unbroken.run.state import State
from unbroken.run.stepping import Steps
from unbroken.run.stop import StopRequest
from unbroken.store import layout
from unbroken.store.files import DamagedError


def train(job: Job, folder: RunFolder, settings: Settings, report: Reporter, stop: StopRequest) -> Ended:
    """Run `job` in `folder` from where it stands to its end, or to a stop request; say which."""
    assert job.gradients is not None, "a job without gradients is a user's own loop"
    engine = Engine(job, folder, settings, report, stop)
    try:
        for batch in engine.batches():
            engine.make_step(batch)
    except Exception as failure:
        engine.failed(failure)
        raise
    return engine.ended


class Engine:
    """The loop turned inside out: `for batch in engine.batches(): engine.step(loss)`.

    The tasks and users' own loops run on it alike.
    """

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        settings: Settings,
        report: Reporter = silent,
        stop: StopRequest | None = None,
    ) -> None:
        self.job = job
        self.folder = folder
        self.settings = settings
        self.report = unfailing(report)
        self.stop = stop or StopRequest()
        self.cadence = settings.cadence
        self.ended = Ended(0, finished=False, reason="not begun", model="")
        self._last_record: dict[str, Any] = {}
        self._committed = -1
        self._recorded = 0  # steps this segment was the first to make
        self._drifted: int | None = None
        self._left = False  # the step in progress, for a stop
        self._timed = 0  # the phase of the last step made
        self.segment = 0  # none has begun yet
        self._closed = False  # the journal says already how this segment ends

    def batches(self) -> Generator[Any, None, None]:
        """Yield the batch of each step that is left; `step(loss)` must follow each. Commits and evaluates between."""
        with self.stop.listening(), self._saying_what_stands():
            self._begin()
            if self.settings.commit_first and self.state.step == 0:
                self._commit()
                self._poll(wait=True)  # a step recorded before it is durable could not be made again
            self._settle()
            while self.state.step < self.job.last_step and not self.stop.before_step():
                number, began = self.state.step, self.stop.deadline.clock()
                self._draw = self.steps.draw()
                with self.steps.scope(0):
                    yield self.steps.encode(self._draw)
                if self._left:
                    break
                if self.state.step != number + 1:
                    raise ConfigError("the loop body ended without loop.step(loss)", why="no step was made")
                self.stop.deadline.step_took(self.stop.deadline.clock() - began)
                self._timed = self.job.phase_at(number)[0]
                self._after_step()
            self._end()

    @contextmanager
    def _saying_what_stands(self) -> Iterator[None]:
        """Have a failure of the disk say from where the run goes on."""
        try:
            yield
        except StorageError as failure:
            self.folder.lock.require_held()
            newest = self.folder.checkpoints.newest_sound
            if failure.why or newest is None:
                raise
            raise StorageError(
                failure.what, why=f"the checkpoint of step {newest} stands", next_step=failure.next_step
            ) from failure

    @property
    def state(self) -> State:
        """The state the run is in now."""
        return self.steps.state

    @property
    def _device(self) -> torch.device:
        return next(iter(self.state.trained.values())).device

    def make_step(self, batch: Any) -> None:
        """Make the whole step of a batch, or leave it with nothing moved: one that asks (`poll`) may take minutes."""
        try:
            with interruptible(self.stop.check):
                loss = self.steps.gradients(batch)
        except StopNow:
            self._left = True
            self.state.optimizer.zero_grad(set_to_none=True)
            return
        self.step(loss)

    def step(self, loss: Tensor) -> float:
        """Finish the step: backward if `loss` still has its graph, clip, update, record. Returns the loss.

        Raises `TrainingError` before any parameter moves if the gradient is not finite, and `CannotContinueError`
        if the journal holds this step with other results, or says that it failed in the same way before.
        """
        if loss.requires_grad:
            loss.backward()
        self.folder.checkpoints.settle()  # a commit may still be copying what the update changes
        try:
            record = self.steps.finish(self._draw, loss)
        except TrainingError as failure:
            raise self._failed(failure) from None
        with self._saying_what_stands():
            self._record(record)
        value = float(record["loss"])
        self.report(
            Stepped(record["n"], value, float(record["grad_norm"]), record["learning_rate"], len(self._draw.ids))
        )
        return value

    def failed(self, failure: Exception) -> None:
        """Put on record why the segment ends, as far as the disk allows; the reason itself is the caller's to tell."""
        if self.segment and not self._closed:
            text = str(failure) if isinstance(failure, UnbrokenError) else f"{type(failure).__name__}: {failure}"
            with suppress(StorageError, BusyError):
                self.folder.journal.append({"kind": "failure", "n": self.state.step, "text": text})

    def _failed(self, failure: TrainingError) -> UnbrokenError:
        """Record a step that could not be made; return the error that names it, its rows, and whether it recurs.

        A step is a function of the state before it. What failed twice in the same way will fail every time: that has
        an exit code of its own, so that nobody restarts it for ever.
        """
        number, ids = self.state.step + 1, self._draw.ids
        record = {"kind": "failed_step", "n": number, "ids": digest(ids.astype("<i8").tobytes()), "text": failure.what}
        times = 1 + sum(earlier == record for earlier in self.replay.failures)
        self.folder.journal.append(record)
        self.folder.journal.sync()
        self._closed = True
        what = f"step {number} failed: {failure.what}; its batch is {rows_of(self.job.rows(ids.tolist()))}"
        if times == 1:
            return TrainingError(what, why=failure.why, next_step=failure.next_step)
        return FailsAgainError(
            f"{what}; it has failed {times} times in this way",
            why="running the same command again will not help",
            next_step=failure.next_step,
        )

    def load(self, step: int) -> None:
        """Put the state after `step` steps in place without beginning a segment: that of a finished run."""
        self.steps = Steps(self.job)
        restored = self.folder.checkpoints.restore(step)
        assert restored is not None
        self.state.restore(restored)

    def _begin(self) -> None:
        """Restore the newest good checkpoint, if any, and note the beginning of a segment."""
        self.steps = Steps(self.job)
        self.stop.deadline.commit_has(MOMENTS_AND_WEIGHTS * sum(p.nbytes for p in self.state.trained.values()))
        with interruptible(self.stop.check):
            restored, self.replay = resume_point(self.folder, self.settings, self.settings.restore_step)
            poll()
        before: dict[str, Any] = {}
        if restored is not None:
            self.state.restore(restored)
            self._committed = restored.step
            self._last_record = restored.state["last_record"]
            before = json.loads(restored.documents[layout.SEGMENT_FILE])
            self.state.best = before["best"]
            self.folder.offer(restored.step, {before["best"]["step"]} if before["best"] else ())
        for text in self.folder.checkpoints.notes:
            self.report(Notice(text))
        recorded = before.get("evaluated", self.state.step) if before else -1
        self.evaluations = Evaluations(
            self.job, self.folder, self.settings, self.replay, self.report, recorded, self.stop.check
        )
        self._begin_segment(before)

    def _begin_segment(self, before: Mapping[str, Any]) -> None:
        self._began = self.state.step
        numerics = environment.numerics(self._device)
        self._peak = before.get("peak", {})
        earlier = self.replay.segments
        self.segment = max([before.get("segment", 0), *(record["segment"] for record in earlier)]) + 1
        self.cadence.fruitless = sum(record["step"] == self.state.step for record in earlier)
        known = earlier[-1]["environment"] if earlier else before.get("environment", numerics)
        for line in environment.changes(known, numerics):
            self.report(Notice(f"the environment changed: {line}; the replayed steps will show whether bits do"))
        self.environment = numerics
        self.folder.journal.append(
            {
                "kind": "segment",
                "segment": self.segment,
                "step": self.state.step,
                "last_step": self.job.last_step,
                "environment": numerics,
            }
            | environment.circumstances()
            | ({"restored_from": self.folder.restored_from} if self.folder.restored_from else {})
        )
        for text in self.folder.journal.damaged:
            self.report(Notice(text))
        size = self.job.phase_at(self.state.step)[1].plan.batch_size
        self.report(Began(self.state.step, self.job.last_step, size, self.segment, len(self.replay)))

    def _record(self, record: dict[str, Any]) -> None:
        try:
            held = self.replay.matches(record)
        except CannotContinueError as refusal:
            if not self.settings.accept_drift:
                self._closed = True
                self.folder.journal.append({"kind": "refusal", "n": record["n"], "text": str(refusal)})
                self.folder.journal.sync()
                raise
            self.replay.drift(record["n"])
            self._drifted = self._drifted or record["n"]
            self.folder.checkpoints.set_aside_from(record["n"])
            self.folder.journal.append({"kind": "drift", "n": record["n"], "text": str(refusal)})
            if self.folder.mirror is not None:
                self.folder.mirror.look_again()
            self.report(Notice(f"{refusal.what}; going on inexactly from step {record['n']}, as asked"))
            held = False
        if not held:
            self.folder.journal.append(record)
            if self._last_record and not self._recorded:
                self.report(Boundary(self._last_record, record))
            self._recorded += 1
        self._last_record = record
        if self.replay.compared and record["n"] == self.replay.end:
            first, last = self.replay.compared[0], self.replay.compared[-1]
            count = len(self.replay.compared)
            self.folder.journal.append({"kind": "replay", "first": first, "last": last, "count": count})
            self.report(Replayed(first, last, count))

    def _after_step(self) -> None:
        """Evaluate and commit where due. A stop commits first: the grace time may be short."""
        step = self.state.step
        self._poll()
        chosen, wanted = self._settle(), self.stop.take_commit()
        index, phase = self.job.phase_at(step)
        boundary = step == self.job.first_step(index) or step == self.job.last_step
        if self.cadence.strategy == "epoch" and not boundary:
            boundary = phase.plan.draw(step - self.job.first_step(index)).epoch != self._draw.epoch
        if self.cadence.due(step) or boundary or chosen or wanted or self.stop.requested:
            self._commit()

    def _settle(self) -> bool:
        """See to the evaluation due now, unless a stop was asked for; True if it is the best so far.

        One that a stop interrupts leaves nothing behind: the next segment makes it, of the same state.
        """
        try:
            return self.evaluations.settle(self.state, self._last_record)
        except StopNow:
            return False

    def _commit(self) -> None:
        if self.state.step == self._committed:
            return
        self.cadence.began()
        image = self.state.image()
        self._peak = {key: max(found, self._peak.get(key, 0)) for key, found in peak_bytes(self._device).items()}
        segment = {
            "segment": self.segment,
            "environment": self.environment,
            "best": self.state.best,
            "peak": self._peak,
            "evaluated": self.evaluations.settled,
        }
        image = replace(
            image,
            state={**image.state, "last_record": self._last_record},
            documents={**image.documents, layout.SEGMENT_FILE: canonical(segment)},
        )
        mark = self.replay.marks.get(self.state.step) or self.folder.journal.mark()
        best = self.state.best
        self.folder.checkpoints.commit(image, mark, spare={best["step"]} if best else ())
        self._committed = self.state.step

    def _poll(self, wait: bool = False) -> None:
        checkpoints = self.folder.checkpoints
        for done in checkpoints.wait() if wait else checkpoints.poll():
            self.folder.journal.append({"kind": "commit", "n": done.step})
            self.cadence.finished(done.snapshot_seconds + done.write_seconds)
            self.stop.deadline.commit_took(done.snapshot_seconds + done.write_seconds)
            self.report(Committed(done.step, done.snapshot_seconds, done.write_seconds))
            for text in done.notes:
                self.report(Notice(text))
            self.folder.offer(done.step, done.spared)
        for news in self.folder.news():
            self.report(news)

    def _end(self) -> None:
        step = self.state.step
        best = None
        self._commit()
        self._poll(wait=True)
        finished = step == self.job.last_step and (self._settle() or not self.evaluations.missing(step))
        if finished:
            best = self.state.best["step"] if self.state.best else step
            sums = self._publish(best)
            self.folder.journal.append({"kind": "finish", "n": step, "best": best, "sha256": sums})
            self._closed = True  # nothing may follow on record: the run is finished by its last record
        else:
            if step < self.job.last_step and self._canary_is_short:
                self._take_canary()
            self.folder.journal.append({"kind": "stop", "n": step, "reason": self.stop.reason})
        self.folder.journal.sync()
        for news in self.folder.settle(step, best):
            self.report(news)
        # The time after a stop is too short to read a long run's whole journal.
        stopped = segment_proof(self.segment, self._began, len(self.replay.compared), self._recorded, self._drifted)
        self.ended = Ended(
            step,
            finished,
            self.stop.reason,
            str(self.folder.root / "model") if finished else "",
            self.folder.proof() if finished else stopped,
        )
        self.report(self.ended)

    def _publish(self, best: int) -> dict[str, str]:
        try:
            return self.folder.publish(best)
        except DamagedError as damage:
            raise StorageError(
                f"the finished model is that of step {best}, and {damage.what}",
                why="the checkpoint was damaged since it was made",
                next_step="run the same command again: it makes that step again",
            ) from damage

    @property
    def _canary_is_short(self) -> bool:
        """Whether there is time for it: how long the first step of a later phase takes, no other step tells."""
        known = self._timed == self.job.phase_at(self.state.step)[0] and not self._left
        return known and self.stop.deadline.leaves_a_canary

    def _take_canary(self) -> None:
        """Record the loss and gradient norm of the next step without making it, for the next segment to compare.

        After a clean stop nothing is replayed, so without it a changed environment could not be found out.
        """
        if self.job.gradients is None:
            return
        self.folder.journal.append({"kind": "canary"} | self.steps.foresee())
