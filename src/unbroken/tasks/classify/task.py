"""The classify task as the commands see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unbroken.models.identity import tokenizer_digest
from unbroken.tasks.base_model import base_digest, find_model, model_gone, reading
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.course import Targets, courses_of
from unbroken.tasks.classify.data import LabelledTexts
from unbroken.tasks.classify.teacher import find_teacher, teacher_digest
from unbroken.tasks.course import Course
from unbroken.tasks.task import Prepared, Progress

if TYPE_CHECKING:
    from unbroken.run.job import Job

CONFIG = ClassifyConfig


def course(config: ClassifyConfig, contract: Mapping[str, Any]) -> Course:
    """Return the steps and rates of a run over the data its contract names."""
    sizes = contract["data"].get("class_sizes")
    if sizes is None:  # lists of labels: what the pairs are, only the rows can tell
        data = LabelledTexts(config.train_data, config)
        targets: Targets = data.targets[data.chosen]
    else:
        most = config.samples_per_label or max(sizes)
        targets = np.repeat(np.arange(len(sizes)), np.minimum(sizes, most))
    return courses_of(config, targets).joined(config)


def prepare(config: ClassifyConfig, cache: Path | None, run: Path | None = None) -> Prepared:
    """Read the data and fingerprint them and the model; every bad cell and missing file is found here.

    Writes nothing and imports no torch. What takes no time is looked at first.
    """
    origin, size = find_model(config, run)
    data = LabelledTexts(config.train_data, config)
    _ = data.texts, data.chosen
    notes = [] if origin.checkpoint is None else [model_gone(config.model, origin.checkpoint)]
    digests = {}
    if config.teacher is not None:
        digests["teacher"] = teacher_digest(find_teacher(config)[0])
    eval_data = None
    if config.eval_data is not None:
        eval_data = LabelledTexts(config.eval_data, config, data.labels)
        absent = eval_data.require_like(data)
        notes += [absent] if absent else []
    with reading(config.model):
        digests |= {"model": base_digest(origin, run), "tokenizer": tokenizer_digest(origin.model)}
    if eval_data is not None and (config.load_best_model_at_end or config.calibrate):  # then it makes the model
        digests["eval_data"] = eval_data.digest
    identity: dict[str, Any] = {"digest": data.digest, "examples": data.table.num_rows}
    if not data.labels.several and not data.unlabelled.any():
        identity["class_sizes"] = np.bincount(data.targets, minlength=len(data.labels.names)).tolist()
    return Prepared(
        identity={"data": identity, **{name: {"digest": digest} for name, digest in digests.items()}},
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
