"""The encoder a run starts from: where it is read from, what identifies it, and what stands in for one that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unbroken.base.errors import ConfigError
from unbroken.models.folder import NoModelError, read_folder, resolve
from unbroken.models.identity import model_digest, weights_bytes
from unbroken.store.run import read_run
from unbroken.tasks.common import RunConfig
from unbroken.tasks.origin import Origin, model_in_checkpoint, resolve_model


def find_model(config: RunConfig, run: Path | None) -> tuple[Origin, int]:
    """Return where the model is read from, and the size of its weights; of a `run` to restore, its own if need be.

    The checkpoints of a run that trains an encoder hold all of the model: every tensor, the tokenizer, every setting.
    """
    try:
        origin = resolve_model(config.model, Path(config.output_dir))
        with reading(config.model):
            return origin, require_weights(origin.model)
    except NoModelError as gone:
        if run is None:
            raise
        origin = model_in_checkpoint(run, gone)
        with reading(origin.model):
            return origin, require_weights(origin.model)


def base_digest(origin: Origin, run: Path | None) -> str:
    """Return the digest of the base model; where it is gone, the one recorded: trained weights cannot tell."""
    if origin.checkpoint is None:
        return model_digest(origin.model)
    document = None if run is None else read_run(run)
    assert document is not None, "a checkpoint stands in for a model only where there is a run"
    return str(document["contract"]["model"]["digest"])


def model_gone(model: str, step: int) -> str:
    """Say that the run's own checkpoint stands in for its base model."""
    return f"the base model {model} is gone; the checkpoint of step {step} holds all of it, and is used instead"


@contextmanager
def reading(model: str) -> Iterator[None]:
    """Turn what the operating system refuses about a model's files into a `ConfigError`."""
    try:
        yield
    except OSError as failure:
        raise ConfigError(
            f"model: {failure.filename or model} cannot be read: {failure.strerror or failure}",
            next_step="check the folder's permissions",
        ) from None


def require_weights(model: str) -> int:
    """Return the size of a model's weights. Raises `ConfigError` if it has none, or is no model."""
    size = weights_bytes(model)
    folder = read_folder(resolve(model))
    if not size:
        from unbroken.models.weights import weight_files

        weight_files(folder.root, folder.transformer)
    return size
