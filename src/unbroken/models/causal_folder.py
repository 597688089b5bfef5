"""Folders of causal language models: what a path is, and what is in it beside the weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbroken.base.errors import ConfigError
from unbroken.base.reading import read_document
from unbroken.models.folder import (
    HOW_TO_NAME,
    INDEX_FILE,
    TOKENIZER_FILES,
    NoModelError,
    Part,
    parse_object,
    read_if_there,
    resolve,
)
from unbroken.models.gguf import converted_folder
from unbroken.models.identity import model_digest

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
GGUF_ENDING = ".gguf"
BASE_FILE = "base_model.json"  # ours: the digest of the model an adapter belongs to, which PEFT does not record


@dataclass(frozen=True)
class Place:
    """Where a causal language model is read from: of the three, either `folder` or `gguf` is there.

    `adapter` is the PEFT folder to put on it, if that is what was named.
    """

    folder: Path | None = None
    gguf: Path | None = None
    adapter: Path | None = None


@dataclass(frozen=True)
class CausalFolder:
    """A Hugging Face folder as read: `documents` holds every file but the weights, byte for byte."""

    root: Path
    config: Mapping[str, Any]
    documents: Mapping[str, bytes]

    @property
    def part(self) -> Part:
        """The folder as the reader of weights takes it."""
        return Part("Transformer", "", self.config)

    @property
    def model_type(self) -> str:
        """The family, as the configuration names it."""
        return str(self.config["model_type"])

    @property
    def remote_code(self) -> bool:
        """Whether the folder brings Python files of its own to build the model with."""
        return "AutoModelForCausalLM" in (self.config.get("auto_map") or {})


def locate(name: str | Path) -> Place:
    """Find out what `name` is: a Hugging Face folder, a GGUF file, a folder with one, a PEFT folder, or a hub's model.

    A PEFT folder leads to the model it was trained on, named in it by path or by its name on the hub. Raises
    `ConfigError` for everything else. Needs a network only for a model on the hub that was not downloaded before.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() == GGUF_ENDING and path.is_file():
        return Place(gguf=path)
    if path.suffix.lower() == GGUF_ENDING and not path.is_dir():
        raise NoModelError(f"there is no GGUF file {path}", next_step=HOW_TO_NAME)
    path = resolve(name)
    if not path.is_dir():
        raise NoModelError(f"no model folder and no GGUF file at {path}", next_step=HOW_TO_NAME)
    if (path / ADAPTER_CONFIG).is_file():
        return _base_of(path)
    if (path / CONFIG_FILE).is_file():
        return Place(folder=path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == GGUF_ENDING)
    if len(files) == 1:
        return Place(gguf=files[0])
    if files:
        raise ConfigError(
            f"{path} holds {len(files)} GGUF files: {', '.join(file.name for file in files[:3])}",
            next_step="name one of them",
        )
    inside = [
        entry for entry in path.iterdir() if (entry / ADAPTER_CONFIG).is_file() or (entry / CONFIG_FILE).is_file()
    ]
    newest = max(inside, key=lambda entry: entry.stat().st_mtime, default=None)
    raise ConfigError(
        f"{path} is not a language model's folder: it holds neither {CONFIG_FILE} nor {ADAPTER_CONFIG} nor a GGUF file",
        next_step=HOW_TO_NAME if newest is None else f"did you mean '{newest}'?",
    )


def _base_of(adapter: Path) -> Place:
    values = adapter_values(adapter)
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"{adapter / ADAPTER_CONFIG} does not name the model the adapter belongs to",
            next_step="put the model's path there, as base_model_name_or_path",
        )
    try:
        place = locate(base)
    except NoModelError:
        converted = Path(base).parent == converted_folder()
        raise NoModelError(
            f"{adapter} is an adapter for {base}, which is not there",
            next_step="it was made of a GGUF file: `unbroken check CONFIG` with that file as `model:` makes it again"
            if converted
            else "put the model there; a link will do",
        ) from None
    if place.adapter is not None:
        raise ConfigError(f"{adapter} is an adapter for {base}, which is an adapter too; only one is supported")
    return Place(place.folder, place.gguf, adapter)


def adapter_values(adapter: Path) -> dict[str, Any]:
    """Return what a PEFT folder's configuration says. Raises `ConfigError` if it is no folder of LoRA."""
    file = adapter / ADAPTER_CONFIG
    if not file.is_file():
        raise NoModelError(
            f"no adapter at {adapter}: {ADAPTER_CONFIG} is missing", next_step="name a PEFT adapter's folder"
        )
    values = parse_object(read_document(file), file)
    if values.get("peft_type") != "LORA":
        raise ConfigError(f"{file}: peft_type {values.get('peft_type')!r} is not supported", next_step="LORA is")
    return values


def require_same_base(adapter: Path, folder: Path) -> None:
    """Raise `ConfigError` unless a model is the one that an adapter was trained on, if its folder says which."""
    file = adapter / BASE_FILE
    if not file.is_file():
        return
    recorded = parse_object(read_document(file), file).get("digest")
    if recorded != model_digest(folder):
        raise ConfigError(
            f"the model {folder} is not the one that the adapter {adapter} was trained on: its content differs",
            why="the same adapter on other weights is another function",
            next_step="put the model back as it was, or begin with the model itself",
        )


def weights_of(adapter: Path) -> Path:
    """Return the file of an adapter's weights. Raises `ConfigError` if it is missing, or there as a pickle alone."""
    file = adapter / ADAPTER_WEIGHTS
    if file.is_file():
        return file
    if (adapter / ADAPTER_PICKLE).is_file():
        raise ConfigError(
            f"{adapter} has its weights only as {ADAPTER_PICKLE}, which can run code when loaded",
            next_step="load it with PEFT where you trust it, and save_pretrained() it again",
        )
    raise ConfigError(
        f"{adapter} has no weights: {ADAPTER_WEIGHTS} is missing", next_step="copy the adapter's folder again, whole"
    )


def read_causal_folder(root: Path) -> CausalFolder:
    """Read a causal language model's folder without its weights.

    Raises `ConfigError` if it is none, is damaged, or is of a family that cannot be loaded.
    """
    file = root / CONFIG_FILE
    if not file.is_file():
        raise NoModelError(f"{root} is not a language model's folder: {CONFIG_FILE} is missing", next_step=HOW_TO_NAME)
    config = parse_object(read_document(file), file)
    if "model_type" not in config:
        raise ConfigError(
            f"{file} names no model_type", next_step="copy the model folder again, whole, or name another model"
        )
    if config["model_type"] == "qwen":
        raise ConfigError(
            f"{root} is a model of the first Qwen series, which is not supported",
            why="its code and tokenizer are Python files beside the weights, written for transformers 4",
            next_step="use a Qwen1.5, Qwen2, Qwen2.5 or Qwen3 model",
        )
    names = (CONFIG_FILE, GENERATION_FILE, INDEX_FILE, *TOKENIZER_FILES)
    return CausalFolder(root, config, read_if_there(root, list(names)))
