"""Your own training loop, made unbroken: the engine of the tasks around a loop body that stays yours."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.optim import Optimizer

from unbroken.base.errors import CannotContinueError, ConfigError, FailsAgainError, StorageError, TrainingError
from unbroken.base.stopping import StopNow, interruptible
from unbroken.plan.plan import Plan, steps_for
from unbroken.run import environment
from unbroken.run.cadence import Cadence, SaveStrategy
from unbroken.run.deadline import Deadline
from unbroken.run.engine import Engine
from unbroken.run.folder import RunFolder, move_aside, move_mirror_aside
from unbroken.run.job import Job, Phase
from unbroken.run.mirroring import bring_here, bring_newer, mirror_of, run_in_mirror, say_new
from unbroken.run.preflight import require_descriptors, require_new_folder, require_ready, require_space
from unbroken.run.report import Ended, Notice, Reporter, plain, unfailing
from unbroken.run.settings import Settings
from unbroken.run.state import State, held_tensors
from unbroken.run.stop import StopRequest
from unbroken.store import layout
from unbroken.store.run import read_run
from unbroken.tasks.loop_contract import describe, require_scheduler_held, require_unchanged
from unbroken.tasks.loop_extras import SWITCHES, extra, switches
from unbroken.tasks.loop_modules import documents, named_modules, place
from unbroken.tasks.loop_rows import Rows, require_rows, row_digests, take
from unbroken.tasks.train import CHECKPOINT_MULTIPLE, is_finished, set_up


class Loop:
    """A training loop that survives anything.

        loop = Loop("runs/mine", modules={"encoder": encoder, "head": head}, optimizer=optimizer,
                    data=rows, batch_size=32, num_epochs=3)
        for batch in loop.batches():
            loss = ...                 # your forward pass and loss
            loop.step(loss)            # backward, clipping, optimizer step, zero_grad, record, commit

    Started again after any interruption, the loop goes on from its last commit and ends with the bits it would have
    ended with; started again when finished, it puts the finished tensors into `modules` and yields nothing.
    SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C finish the step, commit, and end the process (75; Ctrl-C: 130), and `stop_at`
    (as of `unbroken.train`) does so in time: what follows the loop only ever sees a finished run. `loop.stop()` commits
    and leaves the loop; `break` or an exception leaves it without a commit: the steps since the last one are made
    again, and compared, by the next start.

    `modules` name everything training changes: modules, loss and bare parameters. `data` is what has a length and
    rows by number (list, datasets.Dataset, map-style torch dataset); its rows are fingerprinted, or give
    `fingerprint`, a text that changes when they do. `collate` turns the list of a batch's rows into the batch
    (default: the list). `batch_size` is all the examples of a step; split the batch in the body to accumulate.
    What is drawn in collate and body from the global generators of torch, Python and numpy repeats, because each
    step seeds them. `extras` hold what else has a state: a torch scheduler, your own generators (torch, Python,
    numpy), any object with `state_dict` and `load_state_dict`. `learning_rate` gives the rate of step n, from 0;
    without it the optimizer's own rates are kept. `max_grad_norm` clips; without it nothing does. `evaluate` is
    called at the start, every `eval_steps`, and at the end, in eval mode and without gradients.

    `mirror` is a folder or fsspec URL that holds a copy of the run; where the run is lost, it is restored from there.
    `restart` moves a run that stands in the way aside; `accept_drift` goes on where results no longer repeat.

    Raises `ConfigError` or `DataError` for what could not be made exact, `CannotContinueError` if anything else than
    the saving, evaluating and reporting differs from how the run was started.
    """

    _engine: Engine | None = None
    _in_body = False
    _stepping = False
    _refused = False

    def __init__(
        self,
        output_dir: str | Path,
        *,
        modules: Mapping[str, nn.Module | nn.Parameter],
        optimizer: Optimizer,
        data: Rows,
        batch_size: int,
        num_epochs: float | None = None,
        max_steps: int | None = None,
        seed: int = 42,
        collate: Callable[[list[Any]], Any] = list,
        learning_rate: Callable[[int], float] | None = None,
        max_grad_norm: float | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        eval_steps: int | None = None,
        extras: Mapping[str, Any] | None = None,
        fingerprint: str | None = None,
        save_steps: int | None = None,
        save_seconds: float | None = None,
        save_total_limit: int = 2,
        mirror: str | Path | None = None,
        threads: int | None = None,
        restart: bool = False,
        accept_drift: bool = False,
        stop_at: str | float | datetime | None = None,
        report: Reporter = plain,
    ) -> None:
        self._root, self._keep, self._report = Path(output_dir), save_total_limit, unfailing(report)
        self._deadline = Deadline.of(stop_at)
        self._optimizer, self._extras = optimizer, dict(extras or {})
        require_rows(data)
        require_scheduler_held(optimizer, self._extras, own_rate=learning_rate is not None)
        plan = Plan(len(data), positive("batch_size", batch_size), seed, drop_last, shuffle)
        if num_epochs is None and max_steps is None:
            raise ConfigError("a loop needs num_epochs or max_steps")
        last_step = steps_for(plan, positive("num_epochs", num_epochs), positive("max_steps", max_steps))
        held = named_modules(modules)
        self._job = Job(
            seed=seed,
            phases=(Phase("loop", last_step, plan, lambda trained: optimizer, learning_rate, None, max_grad_norm),),
            modules=held,
            encode=lambda ids, epoch: collate(take(data, ids.tolist())),
            gradients=None,
            layout=lambda name: place(held, name),
            documents=lambda: documents(held),
            evaluate=lambda: {name: float(value) for name, value in (evaluate() if evaluate else {}).items()},
            evaluation_id="loop" if evaluate else "",
            extras={name: extra(name, thing) for name, thing in self._extras.items()} | {SWITCHES: switches(held)},
        )
        strategy: SaveStrategy = "steps" if save_steps else "time" if save_seconds else "auto"
        self._settings: Callable[[], Settings] = lambda: Settings(
            Cadence(strategy, save_steps, save_seconds), eval_steps, commit_first=True, accept_drift=accept_drift
        )
        self._mirror, self._anew = mirror_of(None if mirror is None else str(mirror), self._root), restart
        if restart:
            self._move_aside()
        self._check(data, fingerprint, threads)

    def batches(self) -> Iterator[Any]:
        """Yield the batch of every step that is still to do; `step(loss)` must follow each.

        The run is held, and its state put into modules, optimizer and extras, from the first batch to the end of the
        loop. After a stop by a signal or `stop_at` this ends the process with `SystemExit`.
        """
        stop = StopRequest(self._deadline)
        try:
            with stop.listening(), interruptible(stop.check):
                folder = self._open()
        except StopNow:
            self._report(Notice(f"stopped before the first step ({stop.reason}); nothing is lost"))
            if stop.exit_code:
                sys.exit(stop.exit_code)
            return
        folder.stop = stop
        try:
            engine = self._engine = Engine(self._job, folder, self._settings(), self._report, stop)
            finished = folder.finished()
            if finished is not None:
                engine.load(finished.step)
                engine.ended = finished
                for event in folder.complete_mirror():
                    self._report(event)
                self._report(finished)
                return
            with set_up(folder, engine.stop), self._guarded(), closing(engine.batches()) as batches:
                for batch in batches:
                    self._in_body = True
                    yield batch
                    self._in_body = False
        except StopNow:
            reason = engine.stop.reason
            self._report(Notice(f"stopped before the first step ({reason}); nothing is lost"))
            engine.ended = Ended(0, finished=False, reason=reason, model="")
        except GeneratorExit:
            self._left(folder)
            raise
        finally:
            folder.close()
        if engine.stop.exit_code and not engine.ended.finished:
            sys.exit(engine.stop.exit_code)

    def step(self, loss: Tensor | float) -> float:
        """Finish the step: backward, clip, optimizer step, zero_grad, record. Returns the loss as a number.

        A loss without a graph (a number, or detached) is only recorded: then the body has called `backward`, once or
        several times. Raises `ConfigError` if this is the second step for one batch, `TrainingError` before any
        parameter moves if a gradient is not finite, and `CannotContinueError` if the journal holds this step with
        other results.
        """
        if not self._in_body:
            raise ConfigError(
                "loop.step() was called twice for one batch, or outside the loop",
                why="each batch is one step, or it could not be repeated",
                next_step="accumulate with loss.backward() and call loop.step() once",
            )
        self._in_body = False
        value = loss if isinstance(loss, Tensor) else torch.tensor(float(loss), dtype=torch.float64)
        if value.requires_grad:
            take_gradient(value)
        assert self._engine is not None
        if all(parameter.grad is None for parameter in self._engine.state.trained.values()):
            raise ConfigError(
                "no trained parameter has a gradient",
                next_step="pass loop.step() a loss with its graph, or call backward() and not zero_grad() before",
            )
        self._stepping = True
        try:
            return self._engine.step(value.detach())
        except (TrainingError, FailsAgainError):
            self._refused = True  # the journal says so already
            raise
        except CannotContinueError as refusal:
            self._refused = True
            raise CannotContinueError(refusal.what, why=f"{refusal.why}; {OWN_CAUSES}", next_step=OWN_WAYS) from None
        finally:
            self._stepping = False

    def stop(self, reason: str = "asked to") -> None:
        """Leave the loop, committed, once the body in progress has ended; the next start goes on from there."""
        if self._engine is not None:
            self._engine.stop.ask(reason)

    @property
    def ended(self) -> Ended:
        """How the run stands after the loop: finished or stopped, at which step, with what proof."""
        return self._engine.ended if self._engine else Ended(0, finished=False, reason="not begun", model="")

    @property
    def model_path(self) -> Path:
        """Where the finished run's tensors are: one file a module, or a model folder for an `Encoder`."""
        return self._root / layout.MODEL_FOLDER

    @property
    def num_steps(self) -> int:
        """How many steps the whole run has."""
        return self._job.last_step

    @property
    def step_number(self) -> int:
        """How many steps are finished: in the body before `step`, the number of this step counted from 0."""
        return self._engine.state.step if self._engine else 0

    @property
    def epoch(self) -> int:
        """The epoch of step `step_number`, from 0."""
        return self._job.phases[0].plan.draw(self.step_number).epoch

    def _move_aside(self) -> None:
        """Rename the run that stands in the way, and its mirror; refuse before either where one cannot be."""
        document = read_run(self._root)
        if self._mirror is not None:
            run_in_mirror(self._mirror, self._root, document, restart=True)
        if document is not None:
            self._report(Notice(f"moved the earlier run to {move_aside(self._root)}"))
        moved = None if self._mirror is None else move_mirror_aside(self._mirror)
        if moved is not None:
            self._report(Notice(f"moved the earlier run's mirror to {moved}"))

    def _check(self, data: Rows, fingerprint: str | None, threads: int | None) -> None:
        """Refuse now what would fail later; pin the threads, for a run that exists to those it has."""
        require_descriptors()
        document = read_run(self._root)
        self._fetch = self._mirror and run_in_mirror(self._mirror, self._root, document, restart=False)
        document = self._fetch or document
        recorded = document["contract"] if document else None
        environment.pin(threads or (recorded or {}).get("config", {}).get("threads") or torch.get_num_threads())
        State.initial(self._job)
        self._digests = row_digests(data) if fingerprint is None else np.empty(0, dtype=np.uint64)
        self._contract = describe(self._job, self._optimizer, self._extras, self._digests, fingerprint)
        if recorded is not None:
            require_unchanged(
                self._root, recorded, self._contract, self._digests, self._mirror if self._fetch else None
            )
            if not self._fetch:
                if not is_finished(self._root):
                    require_ready(self._root, self._keep)
                return
        require_new_folder(self._root)
        weights = sum(tensor.numel() * tensor.element_size() for _, tensor in held_tensors(self._job.modules))
        require_space(self._root, weights * (CHECKPOINT_MULTIPLE * (self._keep + 1) + 1))

    def _open(self) -> RunFolder:
        """Hold the run, made now if it is new, fetched now if it is only in the mirror."""
        fetched = ""
        if self._mirror and self._fetch and read_run(self._root) is None:
            fetched = bring_here(self._root, self._mirror, self._fetch, self._report)
        if read_run(self._root) is None:
            if self._mirror and not self._anew:
                say_new(self._root, self._mirror, self._report)
            digests, config = self._digests.astype("<u8").tobytes(), self._contract["config"]
            return RunFolder.create(
                self._root, self._contract, config=config, keep=self._keep, row_digests=digests, mirror=self._mirror
            )
        folder = RunFolder.open(self._root, keep=self._keep, mirror=self._mirror)
        folder.restored_from = fetched
        for text in folder.notes:
            self._report(Notice(text))
        try:
            if self._mirror and not fetched:
                run_id = folder.document["run_id"]
                folder.restored_from = bring_newer(folder.journal, self._mirror, run_id, self._report)
            require_unchanged(self._root, folder.contract, self._contract, self._digests)
        except BaseException:
            folder.close()
            raise
        return folder

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Begin without gradients, and refuse optimizer steps that no record would show."""

        def refuse(*ignored: Any) -> None:
            if not self._stepping:
                raise ConfigError(
                    "optimizer.step() was called in the loop body",
                    why="loop.step(loss) does it, and records it",
                    next_step="leave optimizer.step() out",
                )

        self._refused = False
        self._optimizer.zero_grad(set_to_none=True)
        hook = self._optimizer.register_step_pre_hook(refuse)
        try:
            yield
        finally:
            hook.remove()
            self._in_body = False

    def _left(self, folder: RunFolder) -> None:
        """Say where a loop left by `break` or an exception stands.

        Nothing is committed: what the rest of the body would have done to scheduler or modules is missing.
        """
        assert self._engine is not None
        try:
            folder.checkpoints.wait()
        except StorageError as failure:
            self._report(Notice(str(failure)))
        step, committed = self._engine.state.step, max(folder.checkpoints.steps(), default=0)
        self._engine.ended = Ended(step, finished=False, reason=LEFT, model="")
        folder.offer(committed)
        for event in folder.settle(committed):
            self._report(event)
        if not self._refused:
            folder.journal.append({"kind": "stop", "n": step, "reason": LEFT})
        self._report(
            Notice(
                f"left the loop after step {step}; the next start goes on from the commit of step {committed}"
                " (loop.stop() instead of break commits first)"
            )
        )


LEFT = "the loop was left by break or an exception"
OWN_CAUSES = (
    "or the loop draws from a generator of its own, or keeps state (a counter, a cache) "
    "that is neither in modules nor in extras"
)
OWN_WAYS = (
    "pass generators and whatever else has a state in extras, restore the environment the run began in "
    "(`unbroken show RUN` lists it), or go on inexactly with Loop(accept_drift=True)"
)


def positive(name: str, value: Any) -> Any:
    """Return `value`. Raises `ConfigError` unless it is above zero or not given."""
    if value is not None and value <= 0:
        raise ConfigError(f"{name} must be above 0, not {value}")
    return value


def take_gradient(loss: Tensor) -> None:
    """Take the gradient; a second time over one graph is explained."""
    try:
        backward(loss)
    except RuntimeError as failure:
        if "second time" not in str(failure):
            raise
        raise ConfigError(
            "loss.backward() was called already for the loss given to loop.step()",
            why="loop.step() calls it",
            next_step="leave loss.backward() out, or give loop.step(loss.detach())",
        ) from failure
