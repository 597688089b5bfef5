"""Reading files that may come from anywhere: never waiting on a pipe, never gigabytes for what should be a page."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# A hundred times the largest tokenizer.json there is; a hole of a terabyte costs nobody anything to make.
MAX_DOCUMENT_BYTES = 1 << 30


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises `OSError` as `open` does, and for a pipe, a device or a socket."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_document(path: Path, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Return the whole content of a regular file. Raises `OSError`, also for one of more than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, too many for what it should be", str(path))
        return file.read()
