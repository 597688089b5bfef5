"""The language model a run starts from: where it is read from, what identifies it, and how much of it trains."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import canonical, digest, digest_file
from unbroken.models.causal_folder import (
    ADAPTER_CONFIG,
    adapter_values,
    locate,
    read_causal_folder,
    require_same_base,
    weights_of,
)
from unbroken.models.folder import NoModelError
from unbroken.models.identity import model_digest, weights_bytes
from unbroken.models.weights import weight_files
from unbroken.store.run import read_run
from unbroken.tasks.adapt.config import AdaptConfig, LoraConfig
from unbroken.tasks.base_model import model_gone, reading
from unbroken.tasks.origin import Origin, model_in_checkpoint, resolve_model

FLOAT32 = 4  # bytes
HEADER_SIZE = 8  # of a safetensors file, little-endian, in front of a JSON object with every tensor's shape
# What of an adapter's configuration decides which function its weights are; the rest is how they are trained.
SAME_FUNCTION = {
    "r": "r",
    "lora_alpha": "alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
PATTERNS = ("rank_pattern", "alpha_pattern")
# These do so too, if they say anything, and have no key here.
MORE_OF_THE_FUNCTION = (
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
)
CHANGED_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")  # initialisations that take from the base's weights


@dataclass(frozen=True)
class Base:
    """A folder to read the model from, and of an adapter whose training goes on the adapter's.

    `checkpoint` is the step of the run's own checkpoint that stands in for a base model that is gone.
    """

    folder: Path
    adapter: Path | None
    parent: dict[str, Any] | None
    checkpoint: int | None = None

    def notes(self, model: str) -> tuple[str, ...]:
        """Return what a person should know about where the model came from."""
        return () if self.checkpoint is None else (model_gone(model, self.checkpoint),)


def find_base(config: AdaptConfig, run: Path | None = None) -> Base:
    """Return where the model is read from; of a `run` that trains every weight, its own checkpoint if need be.

    A GGUF file is converted, once. Raises `ConfigError` if there is no model, or its adapter is not one to go on with.
    """
    try:
        origin = _origin(config)
        place = locate(origin.model)
    except NoModelError as gone:
        if run is None:
            raise
        if config.tuning == "lora":
            raise NoModelError(
                gone.what,
                why="checkpoints hold the adapters alone, not the model they belong to",
                next_step="put the model back, or give its new path as `model:` (its content is compared)",
            ) from None
        origin = model_in_checkpoint(run, gone)
        place = locate(origin.model)
    folder = place.folder
    if folder is None:
        from unbroken.models.gguf import converted

        assert place.gguf is not None
        folder = converted(place.gguf)
    parent = origin.parent
    if place.adapter is not None:
        require_same_adapter(config, place.adapter)
        if parent is None:
            parent = {"adapter": str(place.adapter.absolute())}
    with reading(config.model):
        read_causal_folder(folder)
        weights_bytes(folder)
        if place.adapter is not None:
            require_same_base(place.adapter, folder)
        return Base(folder.absolute(), place.adapter, parent, origin.checkpoint)


def _origin(config: AdaptConfig) -> Origin:
    if Path(config.model).suffix.lower() == ".gguf":
        return Origin(config.model)
    return resolve_model(config.model, Path(config.output_dir))


def require_same_adapter(config: AdaptConfig, adapter: Path) -> None:
    """Raise `ConfigError` unless an adapter's weights are the function that the configuration makes of them."""
    if config.tuning == "full":
        raise ConfigError(
            f"model: {adapter} is an adapter, and tuning: full trains a whole model",
            next_step="merge it first (`unbroken export ADAPTER OUT --merge`), or leave out tuning",
        )
    values = adapter_values(adapter)
    for pattern in PATTERNS:
        if values.get(pattern):
            raise ConfigError(
                f"{adapter / ADAPTER_CONFIG}: {pattern} gives layers a rank or an alpha of their own",
                why="the key lora has one of each for all layers",
                next_step="merge the adapter into its model elsewhere, or begin with the model itself",
            )
    for theirs, ours in SAME_FUNCTION.items():
        asked = getattr(config.lora, ours)
        if values.get(theirs, LoraConfig.model_fields[ours].default) != asked:
            raise ConfigError(
                f"lora.{ours}: {asked} is asked for, and the adapter {adapter} was trained with {values.get(theirs)}",
                why="its weights would be another function",
                next_step=f"set lora.{ours} to {values.get(theirs)}",
            )
    more = [key for key in MORE_OF_THE_FUNCTION if values.get(key)]
    begun = str(values.get("init_lora_weights")).lower()
    more += [f"init_lora_weights: {begun}"] if begun.startswith(CHANGED_BASE) else []
    if more:
        raise ConfigError(
            f"model: the adapter {adapter} was made with {', '.join(more)}, which no key under `lora:` says",
            why="its weights would be another function",
            next_step=f"merge it (`unbroken export {adapter} OUT --merge`), and train a new adapter on that",
        )


def base_digest(base: Base, run: Path | None, code: bool = False) -> str:
    """Return the digest of the model, with `code` of its Python files too, which then are run.

    Of a model that is gone it is the one recorded: trained weights cannot tell.
    """
    if base.checkpoint is None:
        return content_digest(base.folder, code)
    document = None if run is None else read_run(run)
    assert document is not None, "a checkpoint stands in for a model only where there is a run"
    return str(document["contract"]["model"]["digest"])


def content_digest(folder: Path, code: bool) -> str:
    """Return the digest of a model in a folder, with `code` of its Python files too."""
    with reading(str(folder)):
        scripts = {file.name: digest_file(file) for file in sorted(folder.glob("*.py"))} if code else {}
    found = model_digest(folder)
    return digest(canonical([found, scripts])) if scripts else found


def adapter_digest(adapter: Path) -> str:
    """Return the digest of an adapter's weights and configuration. Raises `ConfigError` if a file is missing."""
    with reading(str(adapter)):
        return digest(
            canonical({file.name: digest_file(file) for file in (adapter / ADAPTER_CONFIG, weights_of(adapter))})
        )


def trained_bytes(base: Base, config: AdaptConfig) -> int:
    """Return the size of what trains, in float32; of adapters at most, by the shapes of all matrices but the tables."""
    shapes = dict(tensor_shapes(base.folder))
    if config.tuning == "full":
        return FLOAT32 * sum(math.prod(shape) for shape in shapes.values())
    matrices = [shape for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name]
    matrices = matrices or [shape for shape in shapes.values() if len(shape) == 2]
    whole = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if any(part in name.split(".") for part in config.lora.modules_to_save)
    )
    return FLOAT32 * (whole + config.lora.r * sum(sum(shape) for shape in matrices))


def model_bytes(base: Base) -> int:
    """Return the size of the model as it is held, in float32."""
    return FLOAT32 * sum(math.prod(shape) for _, shape in tensor_shapes(base.folder))


def tensor_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor in a folder's weight files, from their headers alone."""
    for name in weight_files(folder, read_causal_folder(folder).part):
        try:
            with (folder / name).open("rb") as file:
                header: Mapping[str, Any] = json.loads(file.read(int.from_bytes(file.read(HEADER_SIZE), "little")))
            yield from ((key, tuple(entry["shape"])) for key, entry in header.items() if key != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
            raise ConfigError(
                f"weights file {folder / name} is damaged: its header cannot be read",
                next_step="copy the model folder again, whole, or name another model",
            ) from None
