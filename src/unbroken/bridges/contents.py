"""What foreign files hold, found out without loading a tensor and without unpickling anything."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbroken.base.reading import open_regular, read_document

SHORTEST_SAFETENSORS = 8
LEGACY_PICKLE = b"\x80"  # torch.save before 1.6 wrote bare pickles
MAX_SEARCHED_BYTES = 1 << 20


@dataclass(frozen=True)
class Tensors:
    """How many tensors a file holds, of how many numbers, in which types; `problem` where it cannot be read."""

    count: int = 0
    numbers: int = 0
    dtypes: tuple[str, ...] = ()
    problem: str = ""


def read_tensors(path: Path) -> Tensors:
    """Read the header of a safetensors file; the library checks that it fits the file."""
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()  # the library would wait on a pipe
        with safe_open(path, framework="numpy") as file:
            slices = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118 (it is no mapping)
            numbers = sum(math.prod(piece.get_shape()) for piece in slices)
            return Tensors(len(slices), numbers, tuple(sorted({str(piece.get_dtype()) for piece in slices})))
    except (SafetensorError, OSError, ValueError, MemoryError) as failure:
        return Tensors(problem=f"{path.name} is cut or damaged: {failure}")


def pickle_problem(path: Path) -> str:
    """Return what is wrong with a file of torch.save as far as its outside shows; nothing if it looks whole.

    Such a file is a zip archive whose directory stands at its end: a cut one has none.
    """
    try:
        with open_regular(path) as file:
            first = file.read(1)
            if not first:
                return f"{path.name} is empty"
            if zipfile.is_zipfile(file) or first == LEGACY_PICKLE:
                return ""
    except OSError as failure:
        return f"{path.name} cannot be read: {failure.strerror}"
    return f"{path.name} is cut or damaged: it is no whole zip archive"


def adam_numbers(path: Path) -> int | None:
    """Return how many numbers an optimizer.pt is for if it is Adam's, from the sizes in the zip directory alone.

    Adam keeps three float32 tensors for each parameter: its count of steps (4 bytes), and two of its own size.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return None
    sizes = [entry.file_size for entry in entries if Path(entry.filename).parts[-2:-1] == ("data",)]
    if not sizes or len(sizes) % 3:
        return None
    return (sum(sizes) - 4 * (len(sizes) // 3)) // 8


def mentions(path: Path, words: Iterable[str]) -> set[str]:
    """Return which of the words occur in a small file's bytes: a pickle names its classes in plain text."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_SEARCHED_BYTES)
    except OSError:
        return set()
    return {word for word in words if word.encode() in content}


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return a JSON object, {} if there is no such file; a damaged one is named in `problems`."""
    try:
        value = json.loads(read_document(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as failure:
        problems.append(f"{path.name} is cut or damaged: {failure}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} is not a JSON object")
        return {}
    return value
