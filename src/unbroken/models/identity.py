"""Digests of a model's and a tokenizer's files: what a run records to recognise them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import canonical, digest, digest_file
from unbroken.base.reading import read_document
from unbroken.models.folder import (
    HOW_TO_NAME,
    LENGTH_FILES,
    MODULES_FILE,
    SETTINGS_FILE,
    NoModelError,
    lower_cases,
    read_folder,
    resolve,
    tokenizer_files,
)

POINTER, LONGEST_POINTER_BYTES = b"version https://git-lfs", 1024  # what a clone without Git LFS has for a file
# Of the tokenizer's files, these do not change what a text becomes as long as tokenizer.json is there.
IDLE_BESIDE_JSON = {"vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model"}
IDLE_BESIDE_JSON |= {"spiece.model", "spm.model", "special_tokens_map.json", "added_tokens.json"}


def model_digest(path: str | Path) -> str:
    """Return a digest of what a model is: its weights, configurations and modules.

    The tokenizer has its own digest; a model card counts for nothing. Raises `ConfigError` if there is no model.
    """
    folder = resolve(path)
    names = {MODULES_FILE, SETTINGS_FILE, *LENGTH_FILES, "config.json"}
    files = weight_paths(folder) + [file for file in folder.rglob("*.json") if file.name in names]
    return digest(canonical({file.relative_to(folder).as_posix(): digest_file(file) for file in sorted(files)}))


def weights_bytes(path: str | Path) -> int:
    """Return the size of a model's weight files. Raises `ConfigError` if there is no model, or only its pointers."""
    sizes = [(file, file.stat().st_size) for file in weight_paths(resolve(path))]
    for file, size in sizes:
        if size < LONGEST_POINTER_BYTES and read_document(file).startswith(POINTER):
            raise ConfigError(
                f"{file} is a pointer of Git LFS, not the file itself",
                next_step="fetch the file: `git lfs pull` in its folder",
            )
    return sum(size for _, size in sizes)


def weight_paths(folder: Path) -> list[Path]:
    """Return the weight files anywhere in a model folder."""
    if not folder.is_dir():
        raise NoModelError(f"no model folder at {folder}", next_step=HOW_TO_NAME)
    return sorted(folder.rglob("*.safetensors"))


def tokenizer_digest(path: str | Path) -> str:
    """Return a digest of everything in a model folder that decides which ids a text becomes, lengths aside."""
    folder = read_folder(resolve(path))
    return tokenizer_digest_of(tokenizer_files(folder), lower_cases(folder))


def tokenizer_digest_of(files: Mapping[str, bytes], lower_case: bool) -> str:
    """Return the digest of a tokenizer given its files' contents."""
    idle = IDLE_BESIDE_JSON if "tokenizer.json" in files else set()
    parts = {name: digest(content) for name, content in sorted(files.items()) if name not in idle}
    return digest(canonical({"files": parts, "lower_case": lower_case}))
