"""What a changed configuration means from the step on at which a fork begins, in plain lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from unbroken.base.config import shown
from unbroken.plan.plan import Plan
from unbroken.run.contract import Contract
from unbroken.tasks.common import RunConfig
from unbroken.tasks.course import PHASES, Course
from unbroken.tasks.task import find_task

ORDER_KEYS = {"seed", "shuffle", "order", "train_data"}
RATE_KEYS = {"learning_rate", "body_learning_rate", "head_learning_rate", "lr_scheduler_type"}
RATE_KEYS |= {"warmup_ratio", "warmup_steps"}
# Without these, and with equal rates, two runs make the same steps: how many there are is nothing a step knows.
LENGTH_KEYS = {"max_steps", "num_train_epochs"}
MOST_COUNTED = 1_000_000  # examples of an epoch, for how many of them come again
REMARKS = {
    "threads": "sums are made in another order: the last bits are others",
    "device": "sums are made in another order: the last bits are others",
    "micro_batch_size": "the loss is the same function of the batch, but other chunks round differently and draw other "
    "random numbers for dropout: equal in meaning, not in bits",
    "seed": "every random draw is another one",
    "weight_decay": "Adam's moments are kept",
    "adam_beta1": "Adam's moments and their step count are kept, as the old value made them",
    "adam_beta2": "Adam's moments and their step count are kept, as the old value made them",
    "loss": "weights and Adam's moments are kept, as the old loss made them",
}


@dataclass(frozen=True)
class Side:
    """A configuration, of the old run or the new one, with its contract."""

    config: RunConfig
    contract: Contract

    @cached_property
    def course(self) -> Course:
        """The plan, the steps and the learning rate."""
        return find_task(self.config.task).course(self.config, self.contract)


def meaning(run: str, step: int, old: Side, new: Side, changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return what the changes mean for a fork of `run` after `step` steps: values, steps, rate, examples, exactness."""
    if not changed:
        return [f"nothing is changed: from step {step} it goes on as {run} would, to the bit"]
    lines = [_change(key, *pair) for key, pair in changed.items()]
    lines += _steps(step, old.course, new.course)
    if old.course.boundary != new.course.boundary:
        lines.append(f"the first phase ends after step {new.course.boundary:,} instead of {old.course.boundary:,}")
    if RATE_KEYS & changed.keys() or old.course.total_steps != new.course.total_steps:
        lines.append(_rate(step, old, new))
    if (ORDER_KEYS | {"batch_size", "drop_last"}) & changed.keys():
        before, after = old.course.plan, new.course.plan
        if isinstance(before, Plan) and isinstance(after, Plan):
            lines += _examples(run, step, before, after, changed)
        else:
            lines.append("examples: those of the next step are drawn by the new values")
    if new.config.load_best_model_at_end:
        lines.append(f"the finished model is chosen among the evaluations after step {step:,}, or there")
    return [*lines, _exactness(run, step, old.course, new.course, changed)]


def _change(key: str, before: Any, after: Any) -> str:
    remark = REMARKS.get(key)
    return f"{key}: {shown(before)} -> {shown(after)}" + (f"; {remark}" if remark else "")


def _steps(step: int, old: Course, new: Course) -> list[str]:
    left = new.total_steps - step
    told = f"{new.total_steps:,} steps"
    if new.total_steps != old.total_steps:
        told += f" instead of {old.total_steps:,}"
    return [f"{told}, {left:,} of them to come" if left else f"{told}: nothing is left to train"]


def _rate(step: int, old: Side, new: Side) -> str:
    """Say the learning rate of the next step, before and now, and how it goes on."""
    if step >= new.course.total_steps:
        return "learning rate: no step is left to have one"
    was = "had none, the old schedule ended there"
    if step < old.course.total_steps:
        was = f"was {old.course.rate(step):.6g}"
    return f"learning rate: step {step + 1:,} {was}, is now {new.course.rate(step):.6g}; {_course(step, new)}"


def _course(step: int, side: Side) -> str:
    course = side.course
    kind, peak = course.kind, f"{course.peak:.6g}"
    if kind == PHASES:
        return "each phase has a course of its own"
    if kind == "constant":
        return f"it stays at {peak}"
    rises = f"it rises to {peak} at step {course.warmup_steps + 1:,}, then " if step < course.warmup_steps else "it "
    if kind == "constant_with_warmup":
        return f"{rises}stays at {peak}"
    return f"{rises}falls to 0 after step {course.total_steps:,} ({kind})"


def _examples(run: str, step: int, old: Plan, new: Plan, changed: Mapping[str, Any]) -> list[str]:
    """Say where in the data the next step begins, and what of them comes again or is passed over."""
    (old_epoch, old_start), (epoch, start) = _place(old, step), _place(new, step)
    line = f"examples: step {step + 1:,} begins at example {start + 1:,} of {new.num_examples:,} in epoch {epoch + 1:,}"
    if not ORDER_KEYS & changed.keys():
        ahead = (epoch - old_epoch) * new.num_examples + start - old_start
        was = f"{run} stood at example {old_start + 1:,} of epoch {old_epoch + 1:,}"
        if ahead == 0:
            return [f"{line}, as in {run}"]
        return [f"{line}; {was}: {abs(ahead):,} examples {'come again' if ahead < 0 else 'are passed over'}"]
    if "train_data" in changed:
        return [f"{line}; their order follows from these rows alone, whichever of them {run} has seen"]
    if epoch != old_epoch or new.num_examples > MOST_COUNTED:
        return [f"{line}, in another order: of this epoch, examples may come again and others be passed over"]
    seen, todo = _ids(old, epoch, step), _ids(new, epoch, (epoch + 1) * new.steps_per_epoch, step)
    again, reached = len(np.intersect1d(seen, todo)), len(np.union1d(seen, todo))
    passed = new.num_examples - reached
    return [f"{line}, in another order: {again:,} examples come again in this epoch, {passed:,} are passed over"]


def _place(plan: Plan, step: int) -> tuple[int, int]:
    """Return the epoch and the position in it at which a step begins, both counted from 0."""
    epoch, index = divmod(step, plan.steps_per_epoch)
    return epoch, index * plan.batch_size


def _ids(plan: Plan, epoch: int, end: int, start: int | None = None) -> Any:
    """Return the examples of the steps from `start` (the epoch's first) to `end`."""
    first = epoch * plan.steps_per_epoch if start is None else start
    drawn = [plan.draw(step).ids for step in range(first, end)]
    return np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)


def _exactness(run: str, step: int, old: Course, new: Course, changed: Mapping[str, Any]) -> str:
    if new.boundary is not None and step <= new.boundary and changed.keys() <= new.later:
        return f"exact: the same bits as a run begun with these values, and up to step {new.boundary:,} those of {run}"
    shared = min(old.total_steps, new.total_steps)
    if changed.keys() <= LENGTH_KEYS and all(old.rate(n) == new.rate(n) for n in range(shared)):
        return f"exact: the same bits as a run begun with these values, and up to step {shared:,} those of {run}"
    return (
        f"exact by itself from step {step:,} on; neither what {run} would have been nor a run begun with these values"
    )
