"""Use a finished model: measure it on rows, or turn a file of texts into embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unbroken.base.errors import ConfigError, DataError
from unbroken.plan.source import read_rows
from unbroken.run.preflight import require_output
from unbroken.store.arrays import replace_array
from unbroken.store.run import read_run
from unbroken.tasks.base_model import require_weights
from unbroken.tasks.embed.config import EmbedConfig
from unbroken.tasks.embed.data import EmbedData
from unbroken.tasks.embed.task import require_measurable
from unbroken.tasks.origin import enclosing_run, resolve_model

if TYPE_CHECKING:
    from unbroken.models.encoder import Encoder


def measure(model: Path, data: Path | None, loss: str | None, columns: Mapping[str, str]) -> dict[str, float]:
    """Return the metrics of a run, checkpoint or model folder on rows; what is not given is taken from the run.

    Raises `ConfigError` if there are no rows to measure on, `DataError` for a bad one.
    """
    values: dict[str, Any] = {"output_dir": "", "train_data": "none", "model": str(model)}
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
    require_model(model)
    rows = EmbedData(config.eval_data, config)
    require_measurable(rows)
    from unbroken.tasks.embed.evaluation import Evaluation

    return Evaluation(rows, config).measure(open_encoder(model, config.max_length))


def encode_file(
    model: Path, texts: Path, output: Path, *, column: str, prompt: str | None, normalize: bool
) -> tuple[int, ...]:
    """Write the embeddings of all texts as a float32 .npy file, whole or not at all; return its shape.

    Without a `prompt` the model's own default is put before every text.
    """
    require_output(output, ".npy", texts)
    require_model(model)
    rows = read_texts(texts, column)
    embeddings = np.asarray(
        open_encoder(model).encode(rows, prompt=prompt, normalize_embeddings=normalize, show_progress_bar=None)
    )
    replace_array(output, embeddings)
    return tuple(embeddings.shape)


def read_texts(path: Path, column: str) -> list[str]:
    """Return the lines of a text file, which end with LF or CRLF, or one column of any other kind of rows."""
    if path.suffix != ".txt":
        return read_rows(path).texts(column)
    try:
        lines = [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8").split("\n")]
    except UnicodeDecodeError as failure:
        raise DataError(f"{path} is not UTF-8 (byte {failure.start + 1})", next_step="save the file as UTF-8") from None
    except OSError as failure:
        raise DataError(
            f"{path} cannot be read: {failure.strerror or failure}", next_step="check the path and its permissions"
        ) from None
    if not lines[-1]:
        lines.pop()  # the file ends with a line end, or is empty
    if not lines:
        raise DataError(f"{path} is empty: it has no line", next_step="give a file with one text a line")
    return lines


def require_model(model: Path) -> None:
    """Raise `ConfigError` unless there is a model to be loaded: found out before rows are read."""
    require_weights(resolve_model(str(model)).model)


def open_encoder(model: Path, max_length: int | None = None) -> Encoder:
    """Load the encoder of a run, a checkpoint or a model folder."""
    from unbroken.models.encoder import Encoder

    return Encoder.from_pretrained(resolve_model(str(model)).model, max_length=max_length)
