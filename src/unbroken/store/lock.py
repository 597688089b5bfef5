"""The lock of a run: one process at a time may write in it.

The lock is the kernel's (flock), so it ends with the process that holds it, however that process ends.
`holder.json` beside it only says whom to look for; it decides nothing.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from unbroken.base.errors import BusyError, ConfigError, StorageError
from unbroken.store.files import sync_folder
from unbroken.store.layout import HOLDER_FILE, LOCK_FILE, UNFINISHED_PREFIX


class RunLock:
    """The right to write in a run, from `acquire` (or `with`) to `release` or the end of the process.

    Keep a reference to it for as long: what nobody refers to, nobody holds.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = FileLock(root / LOCK_FILE, thread_local=False)

    def acquire(self) -> None:
        """Hold the run. Raises `BusyError` naming the holder at once if another process does, `ConfigError` if the
        folder is missing or cannot be written in."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise BusyError(
                f"{self.root} is in use by {describe(holder(self.root))}",
                next_step="wait for it to end, or stop it, and run the same command again",
            ) from None
        except OSError as failure:
            raise ConfigError(
                f"cannot write in {self.root}: {failure.strerror or failure}",
                next_step="check its permissions, or choose another folder",
            ) from failure
        with suppress(StorageError):  # the lock's file tells our folder from others': durable before all other files
            sync_folder(self.root)
        with suppress(OSError):  # on a full disk the lock still holds; only its holder goes unnamed
            self._name_holder()

    def release(self) -> None:
        """Give the run back; without effect if it is not held."""
        if self._lock.is_locked:
            with suppress(OSError):
                os.unlink(self.root / HOLDER_FILE)
            self._lock.release()

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
            "command": " ".join(sys.orig_argv),
        }
        # Not synced: after a power loss nobody holds the run.
        aside = self.root / f"{UNFINISHED_PREFIX}{HOLDER_FILE}"
        aside.write_text(json.dumps(names), encoding="utf-8")
        os.replace(aside, self.root / HOLDER_FILE)


def holder(root: Path) -> dict[str, Any] | None:
    """Return what is known of the process that holds the run, or held it last; None if nothing is."""
    try:
        names = json.loads((root / HOLDER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return names if isinstance(names, dict) else None


def describe(names: dict[str, Any] | None) -> str:
    """Return one phrase about a holder: process, machine, since when, command."""
    if names is None:
        return "another process"
    pid, host, since = (names.get(key, "?") for key in ("pid", "host", "since"))
    return f"process {pid} on {host} since {since} ({names.get('command', '?')})"
