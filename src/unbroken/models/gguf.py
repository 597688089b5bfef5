"""GGUF files: converted once into a Hugging Face folder, which is kept in a cache under the digest of the file.

Two processes may want one file at once, and either may be killed: one converts, the other waits; a folder is written
aside and renamed whole, so that under its final name it is always complete. What a kill leaves, the next one removes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import canonical, digest, digest_file
from unbroken.base.reading import open_regular
from unbroken.models.folder import render
from unbroken.store import files, layout

MAGIC = b"GGUF"
ORIGIN_FILE = "origin.json"
DIGITS = 16


def cache_folder() -> Path:
    """Return the folder for what can be made again: $UNBROKEN_CACHE, else ~/.cache/unbroken."""
    named = os.environ.get("UNBROKEN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "unbroken"


def converted_folder() -> Path:
    """Return the folder of all conversions."""
    return cache_folder() / "converted"


def converted(path: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Return the Hugging Face folder of a GGUF file, float32, converted now if it has not been before.

    `say` is told in a line before a conversion, which takes seconds to minutes. Raises `ConfigError` for a file that
    is no GGUF, is damaged or of a kind transformers cannot read, and if the package `gguf` is missing.
    """
    require_gguf(path)
    made_with = {name: version(name) for name in ("transformers", "gguf")}
    content = digest_file(path)
    name = f"{path.stem}-{digest(canonical({'file': content, 'made_with': made_with}))[:DIGITS]}"
    folder = converted_folder() / name
    if folder.is_dir():
        return folder
    files.make_folders(folder.parent)
    with FileLock(folder.parent / f".{name}.lock"):
        if not folder.is_dir():
            say(f"converting {path.name} into a Hugging Face folder, once: {folder}")
            write_whole(path, folder, render({"file": path.name, "digest": content, "made_with": made_with}))
    return folder


def write_whole(path: Path, folder: Path, origin: bytes) -> None:
    """Convert `path` into `folder`, which is there afterwards with all it holds, durably, or not at all."""
    unfinished = f"{layout.UNFINISHED_PREFIX}{folder.name}-"
    files.sweep(folder.parent, (unfinished,))
    aside = folder.with_name(f"{unfinished}{files.nonce()}")
    try:
        convert(path, aside)
        (aside / ORIGIN_FILE).write_bytes(origin)
        make_durable(aside)
        files.rename_new(aside, folder)
        files.sync_folder(folder.parent)
    finally:
        files.discard(aside)


def require_gguf(path: Path) -> None:
    """Raise `ConfigError` unless `path` is a GGUF file and can be read."""
    try:
        with open_regular(path) as file:
            start = file.read(len(MAGIC))
    except OSError as failure:
        raise ConfigError(f"{path} cannot be read: {failure.strerror or failure}") from None
    if start != MAGIC:
        raise ConfigError(f"{path} is not a GGUF file", next_step="copy it again, whole, or name another model")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"{path} needs the package gguf to be read", next_step="install it: pip install 'unbroken[gguf]'"
        )


def convert(path: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into the new `folder`, as Hugging Face's own loaders read them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": path.parent.resolve(), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except Exception as failure:  # noqa: BLE001 - readers of foreign formats raise what they like
        reason = str(failure).strip().splitlines() or [type(failure).__name__]
        raise ConfigError(
            f"{path}: transformers cannot read this GGUF file: {reason[0]}",
            next_step="copy it again, whole, or use the model's Hugging Face folder",
        ) from None
    # The file's metadata names one end token; generation must stop at the end of a turn, which that is for chat models.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    # The loader has made plain float32 of it, and still holds it for a quantised model, which could not be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_durable(folder: Path) -> None:
    """Make the content and names of all files in a folder durable."""
    for file in sorted(folder.iterdir()):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    files.sync_folder(folder)
