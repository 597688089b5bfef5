"""The lock of a run: one process at a time may write in it.

The lock is the kernel's (flock), so it ends with the process that holds it, however that process ends.
`holder.json` beside it only says whom to look for; it decides nothing.

A lock is on a file, not on its name. Whoever deletes the file, or moves the run and makes another in its place, lets
a second process in while the first still holds what has no name any more. So the holder asks, before it writes
anything that counts, whether the name still leads to what it holds (`require_held`).
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from unbroken.base.errors import BusyError, ConfigError, StorageError
from unbroken.base.reading import read_document
from unbroken.store.files import sync_folder
from unbroken.store.layout import HOLDER_FILE, LOCK_FILE, UNFINISHED_PREFIX

MAX_HOLDER_BYTES = 1 << 20
NAMING_SECONDS = 2.0  # how long after taking the lock a holder may need to say its name: it waits for the disk
UNNAMING_SECONDS = 0.05  # and how long until it has taken away the name of the one before


class RunLock:
    """The right to write in a run, from `acquire` (or `with`) to `release` or the end of the process.

    Keep a reference to it for as long: what nobody refers to, nobody holds.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = FileLock(root / LOCK_FILE, thread_local=False)
        self._file: tuple[int, int] | None = None  # device and inode of what is held

    def acquire(self) -> None:
        """Hold the run. Raises `BusyError` naming the holder at once if another process does, `ConfigError` if the
        folder is missing or cannot be written in."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise BusyError(
                f"{self.root} is in use by {describe(named_holder(self.root))}",
                next_step="wait for it to end, or stop it, and run the same command again",
            ) from None
        except OSError as failure:
            raise ConfigError(
                f"cannot write in {self.root}: {failure.strerror or failure}",
                next_step="check its permissions, or choose another folder",
            ) from failure
        with suppress(OSError):  # a dead holder's name; whoever comes now waits for ours
            os.unlink(self.root / HOLDER_FILE)
        with suppress(StorageError):  # the lock's file tells our folder from others': durable before all other files
            sync_folder(self.root)
        self._file = _identity(self.root)
        with suppress(OSError):  # on a full disk the lock still holds; only its holder goes unnamed
            self._name_holder()

    def release(self) -> None:
        """Give the run back; without effect if it is not held."""
        if self._lock.is_locked:
            if self._is_here():  # what another holder wrote is not ours to remove
                with suppress(OSError):
                    os.unlink(self.root / HOLDER_FILE)
            self._lock.release()

    def require_held(self) -> None:
        """Raise `BusyError` unless the run that this path leads to is the one held."""
        if not self._is_here():
            raise BusyError(
                f"{self.root} is no longer held by this process: its folder was moved, or its {LOCK_FILE} deleted",
                why="another process may be in it, so nothing more was written; what was committed stands",
                next_step="run the same command again, with the run's new path if it was moved",
            )

    def _is_here(self) -> bool:
        return self._lock.is_locked and self._file is not None and self._file == _identity(self.root)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def _name_holder(self) -> None:
        names = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join(" ".join(sys.orig_argv).split()),  # on one line, as `python -c` may not be
        }
        # Not synced: after a power loss nobody holds the run.
        aside = self.root / f"{UNFINISHED_PREFIX}{HOLDER_FILE}"
        aside.write_text(json.dumps(names), encoding="utf-8")
        os.replace(aside, self.root / HOLDER_FILE)


def holder(root: Path) -> dict[str, Any] | None:
    """Return what is known of the process that holds the run, or held it last; None if nothing is."""
    try:
        names = json.loads(read_document(root / HOLDER_FILE, MAX_HOLDER_BYTES))
    except (OSError, ValueError):
        return None
    return names if isinstance(names, dict) else None


def _identity(root: Path) -> tuple[int, int] | None:
    """Return what a run's lock file is, whatever its name: device and inode."""
    try:
        status = os.stat(root / LOCK_FILE)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def named_holder(root: Path) -> dict[str, Any] | None:
    """Return who holds a run that was found held. It may have just taken it: then a dead one's name still stands."""
    deadline = time.monotonic() + NAMING_SECONDS
    time.sleep(UNNAMING_SECONDS)
    while ((names := holder(root)) is None or _is_dead(names)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return names


def _is_dead(names: dict[str, Any]) -> bool:
    pid = names.get("pid")
    if names.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def describe(names: dict[str, Any] | None) -> str:
    """Return one phrase about a holder: process, machine, since when, command."""
    if names is None:
        return "another process"
    pid, host, since = (names.get(key, "?") for key in ("pid", "host", "since"))
    return f"process {pid} on {host} since {since} ({names.get('command', '?')})"
