"""Small files in a run's cache, each with a digest of its name and content: what does not agree counts as absent."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbroken.base.fingerprint import canonical, digest
from unbroken.base.reading import read_document
from unbroken.store import files

SEAL_BYTES = 32


def keep_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array to `path`, a .npy file with its seal behind the end of the array."""
    _keep(path, npy(array))


def find_array(path: Path) -> NDArray[Any] | None:
    """Return the array kept at `path`, None if there is none or it is not what was written."""
    body = _find(path)
    return None if body is None else np.asarray(np.load(io.BytesIO(body)))


def keep_values(path: Path, values: dict[str, Any]) -> None:
    """Write values to `path`, a line of JSON with its seal as the second line."""
    _keep(path, canonical(values) + b"\n")


def find_values(path: Path) -> dict[str, Any] | None:
    """Return the values kept at `path`, None if there are none or they are not what was written."""
    body = _find(path)
    return None if body is None else dict(json.loads(body))


def npy(array: NDArray[Any]) -> bytes:
    """Return an array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _keep(path: Path, body: bytes) -> None:
    files.replace_file(path, body, _seal(path, body))


def _find(path: Path) -> bytes | None:
    try:
        content = read_document(path)
    except OSError:
        return None
    body, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
    return body if seal == _seal(path, body) else None


def _seal(path: Path, body: bytes) -> bytes:
    return digest(path.name.encode() + b"\0" + body).encode()
