"""The embed task as the commands see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unbroken.base.errors import DataError
from unbroken.models.identity import tokenizer_digest
from unbroken.plan.plan import Plan
from unbroken.tasks.base_model import base_digest, find_model, model_gone, reading
from unbroken.tasks.course import Course, course_of
from unbroken.tasks.embed.config import EmbedConfig
from unbroken.tasks.embed.data import SCORE, EmbedData
from unbroken.tasks.task import Prepared, Progress

if TYPE_CHECKING:
    from unbroken.run.job import Job

CONFIG = EmbedConfig


def course(config: EmbedConfig, contract: Mapping[str, Any]) -> Course:
    """Return the steps and rates of a run over the data its contract names."""
    return course_of(config, contract["data"]["examples"])


def prepare(config: EmbedConfig, cache: Path | None, run: Path | None = None) -> Prepared:
    """Read the data and fingerprint them and the model; every bad cell and missing file is found here.

    Writes nothing and imports no torch. What takes no time is looked at first.
    """
    origin, size = find_model(config, run)
    data = EmbedData(config.train_data, config, cache)
    summary = data.summary
    Plan(summary.num_examples, config.batch_size, config.seed, config.drop_last, config.shuffle)
    eval_data = None if config.eval_data is None else EmbedData(config.eval_data, config)
    if eval_data is not None:
        require_measurable(eval_data)
    with reading(config.model):
        digests = {"model": base_digest(origin, run), "tokenizer": tokenizer_digest(origin.model)}
    if eval_data is not None and config.load_best_model_at_end:  # then it chooses the model
        digests["eval_data"] = eval_data.summary.digest
    return Prepared(
        identity={
            "data": {"digest": summary.digest, "examples": summary.num_examples},
            **{name: {"digest": digest} for name, digest in digests.items()},
        },
        row_digests=summary.row_digests.astype("<u8").tobytes(),
        weights_bytes=size,
        parent=origin.parent,
        load=partial(load, config, origin.model, data, eval_data),
        notes=() if origin.checkpoint is None else (model_gone(config.model, origin.checkpoint),),
    )


def require_measurable(data: EmbedData) -> None:
    """Raise `DataError` for a bad cell, or for scores among which there is no order."""
    if SCORE in data.summary.roles and not np.ptp(data.numbers(SCORE)):
        raise DataError(
            f"{data.table.name}: all scores are equal",
            why="a correlation with them is not defined",
            next_step="give eval_data with at least two different scores",
        )


def load(
    config: EmbedConfig, model: str, data: EmbedData, eval_data: EmbedData | None
) -> Callable[[Path, Progress], Job]:
    """Load the encoder and return what builds the job."""
    from unbroken.models.encoder import Encoder
    from unbroken.tasks.device import resolve_device
    from unbroken.tasks.embed.evaluation import Evaluation

    encoder = Encoder.from_pretrained(model, max_length=config.max_length, device=resolve_device(config.device))
    evaluation = None if eval_data is None else Evaluation(eval_data, config)

    def build(cache: Path, on_progress: Progress) -> Job:
        from unbroken.tasks.embed.job import build_job

        data.keep_in(cache)
        return build_job(config, encoder, data, evaluation, cache, partial(on_progress, "tokenising"))

    return build
