"""The few calls that differ between operating systems, or that some file systems do not have."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # linux/fs.h
AT_FDCWD = -100  # linux/fcntl.h
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def sync_file(handle: int) -> None:
    """Make an open file's bytes durable. Raises `OSError`; never call it again on the same file then."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # fsync(2) on macOS stops at the drive's cache
    else:
        os.fsync(handle)


def reserve(handle: int, size: int) -> None:
    """Reserve room for `size` bytes where that can be done. Raises `OSError` if there is none."""
    if sys.platform != "linux":
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as failure:
        if failure.errno not in UNSUPPORTED:
            raise


def renameat2(source: Path, target: Path, flags: int) -> bool | None:
    """Rename as renameat2(2) does; False if the target must not exist and does, None where that cannot be done.

    Raises `OSError`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return None
    if libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    if number in UNSUPPORTED:
        return None
    raise OSError(number, os.strerror(number), str(source))
