"""A run on disk: the folder and its `run.json`, which says what the run is and is never changed afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from unbroken.base.errors import CannotContinueError, ConfigError, StorageError
from unbroken.base.fingerprint import canonical, digest
from unbroken.base.reading import read_document
from unbroken.store.files import DamagedError, make_folders, replace_file, sweep, sync_folder
from unbroken.store.layout import (
    CONFIG_FILE,
    DATA_DIGESTS_FILE,
    FORMAT_VERSION,
    HOLDER_FILE,
    LOCK_FILE,
    RUN_FILE,
    UNFINISHED_PREFIX,
)

FORMAT_KEY, DIGEST_KEY = "format", "digest"
BEFORE_CREATION = {LOCK_FILE, HOLDER_FILE, CONFIG_FILE, DATA_DIGESTS_FILE}  # what may precede run.json


def is_run(root: Path) -> bool:
    """Return whether `root` is a run."""
    return (root / RUN_FILE).is_file()


def prepare_folder(root: Path) -> None:
    """Make sure that `root` exists, durably, and is either a run or free to become one.

    Call it before the lock is taken. Raises `ConfigError` if it holds files of someone else, is not a folder, or
    cannot be read or written in.
    """
    try:
        make_folders(root)
        names = os.listdir(root)
    except (OSError, StorageError) as failure:
        reason = failure.what if isinstance(failure, StorageError) else f"{root}: {failure.strerror or failure}"
        raise ConfigError(f"output_dir cannot be used: {reason}", next_step="choose another folder") from failure
    if not os.access(root, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write in {root}: Permission denied", next_step="choose another folder")
    foreign = sorted(names)
    if LOCK_FILE in names:  # we were here before: what else there is, is ours, of a creation cut short
        foreign = [name for name in foreign if name not in BEFORE_CREATION and not name.startswith(UNFINISHED_PREFIX)]
    if foreign and not is_run(root):
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise ConfigError(f"output_dir {root} holds files ({shown}) but is no run", next_step="choose another folder")


def create_run(root: Path, document: Mapping[str, Any]) -> None:
    """Make `root` a run described by `document`, durably: afterwards it is one, or it is as it was before.

    Call it with the lock held. Raises `ConfigError` as `prepare_folder` does or if it already is a run, and
    `StorageError`.
    """
    prepare_folder(root)
    if is_run(root):
        raise ConfigError(f"{root} is a run already", next_step="choose another folder")
    assert not {FORMAT_KEY, DIGEST_KEY} & document.keys(), "these two keys belong to the store"
    sweep(root, (UNFINISHED_PREFIX,))
    body = {FORMAT_KEY: FORMAT_VERSION, **document}
    text = json.dumps({**body, DIGEST_KEY: digest(canonical(body))}, indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(root / RUN_FILE, text.encode() + b"\n")
    with suppress(StorageError):  # whoever made the folder may have died before it was durable; no right to is no harm
        sync_folder(root.parent)


def read_run(root: Path) -> dict[str, Any] | None:
    """Return the document of the run at `root`, or None if it is no run.

    Raises `DamagedError` if it was changed, `CannotContinueError` if a newer version wrote it, `ConfigError` if it
    cannot be read.
    """
    path = root / RUN_FILE
    try:
        text = read_document(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as failure:
        raise ConfigError(
            f"cannot read {path}: {failure.strerror or failure}", next_step="check the path and its permissions"
        ) from failure
    return decode_run(text, str(path))


def decode_run(text: bytes, path: str) -> dict[str, Any]:
    """Return the document whose bytes are `text`. Raises `CannotContinueError` as `read_run` does."""
    try:
        document = json.loads(text)
        sound = document.pop(DIGEST_KEY) == digest(canonical(document))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise DamagedError(
            f"{path} is damaged or was edited",
            why="what this run is cannot be told",
            next_step="put the original file back, or begin a new run in another output_dir",
        )
    version = document.pop(FORMAT_KEY, None)
    if version != FORMAT_VERSION:
        raise CannotContinueError(
            f"{path} has format version {version}; this version of unbroken reads {FORMAT_VERSION}",
            next_step="use the version of unbroken that made the run",
        )
    return dict(document)
