"""The embed task as the commands see it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from unbroken.models.identity import model_digest, tokenizer_digest, weights_bytes
from unbroken.run.job import Job
from unbroken.tasks.device import resolve_device
from unbroken.tasks.embed.config import EmbedConfig
from unbroken.tasks.embed.data import EmbedData
from unbroken.tasks.embed.evaluation import Evaluation
from unbroken.tasks.origin import resolve_model
from unbroken.tasks.task import Prepared, Progress

CONFIG = EmbedConfig


def prepare(config: EmbedConfig, cache: Path | None) -> Prepared:
    """Read the data and fingerprint them and the model; every bad cell and missing file is found here."""
    origin = resolve_model(config.model, Path(config.output_dir))
    data = EmbedData(config.train_data, config, cache)
    summary = data.summary
    evaluation = None
    if config.eval_data is not None:
        evaluation = Evaluation(EmbedData(config.eval_data, config), config)
        assert evaluation.identity
    return Prepared(
        identity={
            "data": {"digest": summary.digest, "examples": summary.num_examples},
            "model": {"digest": model_digest(origin.model)},
            "tokenizer": {"digest": tokenizer_digest(origin.model)},
        },
        row_digests=summary.row_digests.astype("<u8").tobytes(),
        weights_bytes=weights_bytes(origin.model),
        parent=origin.parent,
        load=partial(load, config, origin.model, data, evaluation),
    )


def load(
    config: EmbedConfig, model: str, data: EmbedData, evaluation: Evaluation | None
) -> Callable[[Path, Progress], Job]:
    """Load the encoder and return what builds the job."""
    from unbroken.models.encoder import Encoder

    encoder = Encoder.from_pretrained(model, max_length=config.max_length, device=resolve_device(config.device))

    def build(cache: Path, on_progress: Progress) -> Job:
        from unbroken.tasks.embed.job import build_job

        data.cache = cache
        return build_job(config, encoder, data, evaluation, cache, partial(on_progress, "tokenising"))

    return build
