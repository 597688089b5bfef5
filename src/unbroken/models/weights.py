"""Weights of a model folder: read whole into memory of our own, matched to parameters by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unbroken.base.errors import ConfigError
from unbroken.base.reading import read_document
from unbroken.base.stopping import poll
from unbroken.models.folder import INDEX_FILE, WEIGHTS_FILE, Part

ALIGNMENT_BYTES = 64
# Names of the first BERT releases, still found in files on the hub.
OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}


@dataclass(frozen=True)
class Stored:
    """A tensor and where it is stored: the file relative to the model folder, and its key there."""

    file: str
    key: str
    tensor: Tensor


def read_weights(root: Path, part: Part) -> list[Stored]:
    """Read every tensor of a part's safetensors files, in file order.

    Raises `ConfigError` if there are none, if they are in pickle format only, or damaged.
    """
    files = weight_files(root, part)
    return [Stored(file, key, tensor) for file in files for key, tensor in read_file(root / file).items()]


def weight_files(root: Path, part: Part) -> list[str]:
    """Return the relative paths of a part's weight files."""
    if (root / part.file(WEIGHTS_FILE)).is_file():
        return [part.file(WEIGHTS_FILE)]
    index = root / part.file(INDEX_FILE)
    if index.is_file():
        try:
            shards = sorted(set(json.loads(read_document(index))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigError(
                f"{index} is damaged", next_step="copy the model folder again, whole, or name another model"
            ) from None
        return [part.file(shard) for shard in shards]
    place = root / part.path if part.path else root
    if any(place.glob("pytorch_model*.bin")):
        raise ConfigError(
            f"{place} has its weights only as pytorch_model.bin, which can run code when loaded",
            next_step="convert it: load it with transformers and save_pretrained() it",
        )
    raise ConfigError(
        f"{place} has no weights: {WEIGHTS_FILE} is missing",
        next_step="copy the model folder again, whole, or name another model",
    )


def read_file(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file into fresh, aligned tensors, in the order of the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: owned(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise ConfigError(
            f"weights file {path} is missing", next_step="copy the model folder again, whole, or name another model"
        ) from None
    except (SafetensorError, OSError) as failure:
        raise ConfigError(
            f"weights file {path} is damaged: {failure}",
            next_step="copy the model folder again, whole, or name another model",
        ) from None


def owned(tensor: Tensor) -> Tensor:
    """Return a copy in fresh storage.

    A tensor mapped from a file lies wherever the header's length puts it, and matrix products differ in the last
    bits with the address modulo 64; torch's own allocations are aligned.
    """
    poll()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    copy.copy_(tensor)
    assert copy.data_ptr() % ALIGNMENT_BYTES == 0, "torch gave unaligned storage"
    return copy


def match(wanted: Mapping[str, Tensor], stored: Iterable[Stored], prefix: str, place: Path) -> dict[str, Stored]:
    """Return for each wanted name the stored tensor that is its value.

    A key may carry the base model's `prefix` (`bert.`, as in a masked language model's file) or an old ending.
    Raises `ConfigError` naming the first tensor that is missing or has another shape.
    """
    found: dict[str, Stored] = {}
    for entry in stored:
        name = entry.key if entry.key in wanted else plain_name(entry.key, prefix)
        if name in wanted and name not in found:
            found[name] = entry
    for name, tensor in wanted.items():
        if name not in found:
            raise ConfigError(f"{place}: the weights lack {name!r}", why="the model would not be the one described")
        if found[name].tensor.shape != tensor.shape:
            raise ConfigError(
                f"{place}: {name!r} has shape {tuple(found[name].tensor.shape)} in the weights, "
                f"{tuple(tensor.shape)} by the configuration"
            )
    return found


def plain_name(key: str, prefix: str) -> str:
    """Return a stored key without the base model's prefix and with today's ending."""
    name = key.removeprefix(f"{prefix}.") if prefix else key
    for old, new in OLD_ENDINGS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
