"""Whether a run is held by a process, found out without touching its lock.

Even a moment's shared lock would make a `train` that starts just then believe the run is busy.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from unbroken.store.layout import LOCK_FILE
from unbroken.store.lock import holder

KERNEL_LOCKS = Path("/proc/locks")


def is_held(root: Path) -> bool | None:
    """Return whether some process holds the run; None where that cannot be told (another machine may hold it)."""
    try:
        inode = (root / LOCK_FILE).stat().st_ino
    except OSError:
        return False
    listed = _listed(inode)
    if listed:
        return True
    names = holder(root)
    if names is None:
        return False if listed is not None else None
    if names.get("host") != socket.gethostname():
        return None
    return _has_open(names.get("pid"), root / LOCK_FILE)


def _listed(inode: int) -> bool | None:
    """Whether the kernel lists a lock on a file; None where there is no such list (it is Linux's).

    Only the inode is compared: some file systems show another device number here than `stat` does.
    """
    try:
        lines = KERNEL_LOCKS.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return any(part.rpartition(":")[2] == str(inode) for line in lines for part in line.split() if part.count(":") == 2)


def _has_open(pid: object, path: Path) -> bool | None:
    """Whether a process of this machine has a file open; None if it lives and may not be looked into."""
    if not isinstance(pid, int):
        return None
    folder = Path(f"/proc/{pid}/fd")
    if not Path("/proc/self").exists():
        return _lives(pid)
    try:
        return any(os.path.realpath(entry) == str(path.resolve()) for entry in folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _lives(pid: int) -> bool | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return None
    return None  # some process has that number; whether it is the one cannot be told
