"""Use a finished model: measure it on rows, or turn a file of texts into embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unbroken.base.errors import ConfigError
from unbroken.models.encoder import Encoder
from unbroken.plan.source import read_rows
from unbroken.store import files
from unbroken.store.run import read_run
from unbroken.tasks.embed.config import EmbedConfig
from unbroken.tasks.embed.data import EmbedData, npy
from unbroken.tasks.embed.evaluation import Evaluation
from unbroken.tasks.origin import enclosing_run, resolve_model


def measure(model: Path, data: Path | None, loss: str | None, columns: Mapping[str, str]) -> dict[str, float]:
    """Return the metrics of a run, checkpoint or model folder on rows; what is not given is taken from the run.

    Raises `ConfigError` if there are no rows to measure on, `DataError` for a bad one.
    """
    values: dict[str, Any] = {"output_dir": "", "train_data": "", "model": str(model)}
    run = enclosing_run(model)
    recorded = (read_run(run) or {}).get("config", {}) if run else {}
    values |= {
        key: recorded[key] for key in ("loss", "columns", "prompts", "max_length", "eval_data") if key in recorded
    }
    if loss is not None:
        values |= {"loss": loss, "columns": {}}
    if columns:
        values |= {"columns": dict(columns)}
    if data is not None:
        values |= {"eval_data": str(data)}
    if not values.get("eval_data"):
        raise ConfigError(f"no rows to measure {model} on", next_step="give a file: unbroken evaluate MODEL FILE")
    config = EmbedConfig.from_values(values)
    evaluation = Evaluation(EmbedData(config.eval_data, config), config)
    assert evaluation.identity
    return evaluation.measure(open_encoder(model, config.max_length))


def encode_file(
    model: Path, texts: Path, output: Path, *, column: str, prompt: str, normalize: bool
) -> tuple[int, ...]:
    """Write the embeddings of all texts as a float32 .npy file, whole or not at all; return its shape."""
    rows = read_texts(texts, column)
    embeddings = np.asarray(
        open_encoder(model).encode(rows, prompt=prompt, normalize_embeddings=normalize, show_progress_bar=None)
    )
    files.replace_file(output, npy(embeddings))
    return tuple(embeddings.shape)


def read_texts(path: Path, column: str) -> list[str]:
    """Return the lines of a text file, or one column of any other kind of rows."""
    if path.suffix != ".txt":
        return read_rows(path).texts(column)
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"{path} cannot be read: {failure}") from None


def open_encoder(model: Path, max_length: int | None = None) -> Encoder:
    """Load the encoder of a run, a checkpoint or a model folder."""
    return Encoder.from_pretrained(resolve_model(str(model)).model, max_length=max_length)
