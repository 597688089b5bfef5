"""The classify task as the commands see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unbroken.base.errors import CannotContinueError
from unbroken.base.fingerprint import canonical, digest
from unbroken.models.identity import tokenizer_digest
from unbroken.tasks.base_model import base_digest, find_model, model_gone, reading
from unbroken.tasks.classify.config import BOTH, ClassifyConfig
from unbroken.tasks.classify.course import Courses, Targets, courses_of
from unbroken.tasks.classify.data import LabelledTexts
from unbroken.tasks.classify.teacher import find_teacher, teacher_digest
from unbroken.tasks.classify.weights import weights_by_place
from unbroken.tasks.course import Course
from unbroken.tasks.task import Prepared, Progress

if TYPE_CHECKING:
    from unbroken.run.job import Job
    from unbroken.tasks.meaning import Side

CONFIG = ClassifyConfig
# What only the first phase knows: changed after it, a key would be recorded and have done nothing.
BODY_KEYS = {
    "pairs",
    "sampling_strategy",
    "num_iterations",
    "loss",
    "margin",
    "distance",
    "temperature",
    "min_steps",
    "max_steps",
    "lr_scheduler_type",
    "warmup_ratio",
    "weight_decay",
}


def course(config: ClassifyConfig, contract: Mapping[str, Any]) -> Course:
    """Return the steps and rates of a run over the data its contract names."""
    return phases_of(config, contract).joined(config)


def phases_of(config: ClassifyConfig, contract: Mapping[str, Any]) -> Courses:
    """Return the courses of both phases over the data a contract names."""
    sizes = contract["data"].get("class_sizes")
    if sizes is None:  # lists of labels, or none: what the pairs are, only the rows can tell
        data = LabelledTexts(config.train_data, config)
        targets: Targets = data.targets[data.chosen]
    else:
        most = config.samples_per_label or max(sizes)
        targets = np.repeat(np.arange(len(sizes)), np.minimum(sizes, most))
    return courses_of(config, targets)


def require_forkable(old: Side, new: Side, step: int) -> None:
    """Raise `CannotContinueError` if the state after `step` steps does not lie where the new run has that step."""
    assert isinstance(old.config, ClassifyConfig)
    assert isinstance(new.config, ClassifyConfig)
    before, after = phases_of(old.config, old.contract).body_steps, phases_of(new.config, new.contract).body_steps
    if step < before:
        if after <= step:
            raise CannotContinueError(
                f"the first phase would have {after} steps, and the state is that of step {step} in it",
                next_step=f"fork a step before {after}, or leave it longer than {step}",
            )
        return
    was, now = old.config.resolved_identity(), new.config.resolved_identity()  # what has no part in it is None
    changed = {key for key in BODY_KEYS if was[key] != now[key]} | {key for key in BOTH if was[key][0] != now[key][0]}
    if changed or before != after:
        what = min(changed) if changed else "the data"
        raise CannotContinueError(
            f"{what} decides the first phase, which is over after step {before}",
            why="the change would be on record and have done nothing",
            next_step=f"fork a step before {before}, or begin a new run",
        )


def prepare(config: ClassifyConfig, cache: Path | None, run: Path | None = None) -> Prepared:
    """Read the data and fingerprint them and the model; every bad cell and missing file is found here.

    Writes nothing and imports no torch. What takes no time is looked at first.
    """
    origin, size = find_model(config, run)
    data = LabelledTexts(config.train_data, config)
    _ = data.texts, data.chosen
    weights_by_place(config.class_weight, data.labels)
    notes = [] if origin.checkpoint is None else [model_gone(config.model, origin.checkpoint)]
    digests = {}
    if config.teacher is not None:
        digests["teacher"] = teacher_digest(find_teacher(config)[0])
    eval_data = None
    if config.eval_data is not None:
        eval_data = LabelledTexts(config.eval_data, config, data.labels)
        eval_data.require_every_class(data)
    with reading(config.model):
        digests |= {"model": base_digest(origin, run), "tokenizer": tokenizer_digest(origin.model)}
    if eval_data is not None and (config.load_best_model_at_end or config.calibrate):  # then it makes the model
        digests["eval_data"] = eval_data.digest
    identity: dict[str, Any] = {"digest": data.digest, "examples": data.table.num_rows}
    if not data.labels.several and not data.unlabelled.any():
        sizes = np.bincount(data.targets)  # whatever order the classes are given in
        identity["class_sizes"] = sorted(sizes[sizes > 0].tolist(), reverse=True)
    return Prepared(
        identity={
            "data": identity,
            "labels": {"digest": digest(canonical(list(data.labels.names)))},
            **{name: {"digest": found} for name, found in digests.items()},
        },
        row_digests=data.row_digests.astype("<u8").tobytes(),
        weights_bytes=size,
        parent=origin.parent,
        load=partial(load, config, origin.model, data, eval_data),
        notes=tuple(notes),
    )


def load(
    config: ClassifyConfig, model: str, data: LabelledTexts, eval_data: LabelledTexts | None
) -> Callable[[Path, Progress], Job]:
    """Load the encoder and return what builds the job."""
    from unbroken.models.encoder import Encoder
    from unbroken.tasks.classify.evaluation import Evaluation
    from unbroken.tasks.device import resolve_device

    encoder = Encoder.from_pretrained(model, max_length=config.max_length, device=resolve_device(config.device))
    evaluation = None if eval_data is None else Evaluation(eval_data)

    def build(cache: Path, on_progress: Progress) -> Job:
        from unbroken.tasks.classify.job import build_job

        return build_job(config, encoder, data, evaluation, cache, partial(on_progress, "tokenising"))

    return build
