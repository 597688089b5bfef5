"""Token ids of a whole column of texts, made once, kept on disk and read by memory map.

A cache: always rebuildable, so nothing here is flushed to disk with care. A folder appears under its name only
when it is complete, and is checked against its digests when opened.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from unbroken.base.fingerprint import canonical, digest, digest_file
from unbroken.base.reading import read_document
from unbroken.base.stopping import StopNow
from unbroken.models.ragged import Ragged, gather_places
from unbroken.models.tokenizing import Tokenizer
from unbroken.store.layout import UNFINISHED_PREFIX

FORMAT = 1
BLOCK_TEXTS = 4096
IDS_FILE, OFFSETS_FILE, ABOUT_FILE = "ids.npy", "offsets.npy", "arena.json"

Progress = Callable[[int, int], None]


class Tokenizes(Protocol):
    """What has a tokenizer: an encoder, a reranker."""

    @property
    def fast_tokenizer(self) -> Tokenizer:
        """Turns texts into ids."""


@dataclass(frozen=True)
class Arena:
    """N rows of token ids: row i is `ids[offsets[i] : offsets[i + 1]]`; int32 [T] and int64 [N + 1]."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    prompt_length: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of every row: [N]."""
        return np.diff(self.offsets)

    def rows(self, rows: NDArray[np.int64]) -> Ragged:
        """Return the given rows in the given order."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ids = self.ids[gather_places(starts, lengths)]
        return Ragged.of(torch.from_numpy(ids), lengths, self.prompt_length)


def open_arena(
    cache: Path,
    *,
    content: str,
    texts: Callable[[], Sequence[str]],
    encoder: Tokenizes,
    prompt: str = "",
    max_length: int | None = None,
    on_progress: Progress | None = None,
) -> Arena:
    """Return the arena of some texts, building it in the folder `cache` if it is not there or is damaged.

    `content` is a digest of the texts: together with the tokenizer's digest, prompt and length it is the key, so
    that `texts` is called only when there is something to build. `on_progress` is told (texts done, texts in all).
    """
    tokenizer = encoder.fast_tokenizer
    length = max_length or tokenizer.max_length
    folder = cache / f"tokens-{digest(canonical([FORMAT, content, tokenizer.digest, prompt, length]))}"
    arena = read(folder)
    if arena is None:
        build(folder, texts(), tokenizer, prompt, length, on_progress or (lambda done, total: None))
        arena = read(folder)
        assert arena is not None, f"{folder} is damaged right after it was written"
    return arena


def read(folder: Path) -> Arena | None:
    """Return the arena in `folder`, None if there is none or its content is not what was written."""
    try:
        about = json.loads(read_document(folder / ABOUT_FILE))
        if about.pop("seal") != digest(canonical([folder.name, about])):
            return None
        if any(digest_file(folder / name) != about["digests"][name] for name in (IDS_FILE, OFFSETS_FILE)):
            return None
        ids = np.load(folder / IDS_FILE, mmap_mode="r")
        return Arena(np.asarray(ids), np.load(folder / OFFSETS_FILE), int(about["prompt_length"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def build(
    folder: Path, texts: Sequence[str], tokenizer: Tokenizer, prompt: str, max_length: int, progress: Progress
) -> None:
    """Write the arena of `texts` aside and put it at `folder`, in place of whatever is there; a stop leaves nothing."""
    aside = folder.with_name(f"{UNFINISHED_PREFIX}{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        fill(aside, folder.name, texts, tokenizer, prompt, max_length, progress)
    except StopNow:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def fill(
    aside: Path,
    name: str,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    prompt: str,
    max_length: int,
    progress: Progress,
) -> None:
    """Write the files of the arena that will be called `name` into the new folder `aside`."""
    lengths = np.empty(len(texts), dtype=np.int64)
    with (aside / IDS_FILE).open("w+b") as file:
        write_header(file, 0)
        for start in range(0, len(texts), BLOCK_TEXTS):
            block = tokenizer(texts[start : start + BLOCK_TEXTS], prompt, max_length)
            lengths[start : start + len(block)] = block.lengths
            file.write(block.ids.numpy().tobytes())
            progress(start + len(block), len(texts))
        file.seek(0)
        write_header(file, int(lengths.sum()))
    np.save(aside / OFFSETS_FILE, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
    about = {
        "digests": {file: digest_file(aside / file) for file in (IDS_FILE, OFFSETS_FILE)},
        "prompt_length": tokenizer.prompt_length(prompt),
    }
    (aside / ABOUT_FILE).write_bytes(canonical(about | {"seal": digest(canonical([name, about]))}))


def write_header(file: BinaryIO, count: int) -> None:
    """Write the .npy header of `count` int32 values; numpy pads it, so that it is as long for any count."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
