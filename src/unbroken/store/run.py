"""A run on disk: the folder and its `run.json`, which says what the run is and is never changed afterwards.

Without it checkpoints and journal are of no use, so there are two of it: `.run.json` has the same bytes.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from unbroken.base.errors import CannotContinueError, ConfigError, StorageError, UnbrokenError
from unbroken.base.fingerprint import canonical, digest
from unbroken.base.reading import read_document
from unbroken.store.files import DamagedError, discard, make_folders, replace_file, set_aside, sweep, sync_folder
from unbroken.store.layout import (
    BROKEN_PREFIX,
    CONFIG_FILE,
    DATA_DIGESTS_FILE,
    FORMAT_VERSION,
    HOLDER_FILE,
    LOCK_FILE,
    RUN_COPY_FILE,
    RUN_FILE,
    UNFINISHED_PREFIX,
)

FORMAT_KEY, DIGEST_KEY = "format", "digest"
UNTOLD = "what this run is cannot be told"
WAYS_OUT = "put the original file back, or begin a new run in another output_dir"
BEFORE_CREATION = {LOCK_FILE, HOLDER_FILE, CONFIG_FILE, DATA_DIGESTS_FILE}  # what may precede run.json
# Where run.json was, something else is, or the disk cannot give it back: damage, while a refusal (permissions) is not.
NOT_OURS = {errno.EIO, errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENXIO}


def is_run(root: Path) -> bool:
    """Return whether `root` is a run: has a `run.json`, or the copy of one that was lost."""
    return any(os.path.isfile(root / name) for name in (RUN_FILE, RUN_COPY_FILE))


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
    text = encode_run(document)
    try:
        replace_file(root / RUN_COPY_FILE, text)
        replace_file(root / RUN_FILE, text)
    except BaseException:
        discard(root / RUN_COPY_FILE)  # alone it would make this a run; beside run.json the next start writes it again
        raise
    with suppress(StorageError):  # whoever made the folder may have died before it was durable; no right to is no harm
        sync_folder(root.parent)


def read_run(root: Path) -> dict[str, Any] | None:
    """Return the document of the run at `root`, from the copy if `run.json` is damaged or gone; None if it is no run.

    Raises `DamagedError` if both were changed, `CannotContinueError` if a newer version wrote it, `ConfigError` if it
    cannot be read.
    """
    text, failure = _read(root / RUN_FILE)
    if text is None:
        text, damage = _read(root / RUN_COPY_FILE)
        if text is None and (failure or damage):
            raise failure or DamagedError(
                f"{root / RUN_FILE} is missing, and its copy {RUN_COPY_FILE} is damaged or was edited",
                why=UNTOLD,
                next_step=WAYS_OUT,
            )
    return None if text is None else decode_run(text, str(root / RUN_FILE))


def run_problems(root: Path) -> list[str]:
    """Return in words what is wrong with `run.json` or its copy, of a run that can be told by the other one.

    That an older run has no copy is no problem. Raises as `read_run`.
    """
    text, failure = _read(root / RUN_FILE)
    copy, damage = _read(root / RUN_COPY_FILE)
    if text is None and copy is not None:
        how = "is damaged or was edited" if failure else "is missing"
        return [f"{root / RUN_FILE} {how}: its copy is used, and the next start of the run puts it back"]
    if text is not None and (damage or copy not in (None, text)):
        return [f"{root / RUN_COPY_FILE} is not a copy of {RUN_FILE}: the next start of the run writes it again"]
    return []


def mend_run(root: Path) -> list[str]:
    """Make `run.json` and its copy the same again, durably, and return in words what was done, mostly nothing.

    For the holder of the lock. What was damaged is set aside. At every instant one of the two is whole, and killed on
    the way, the next call does the rest. Raises as `read_run`, and `StorageError` if `run.json` cannot be written.
    """
    text, failure = _read(root / RUN_FILE)
    if text is None:
        copy, _ = _read(root / RUN_COPY_FILE)
        if copy is None:
            return []
        aside = _put(root / RUN_FILE, copy)
        return [f"{RUN_FILE} was {'damaged or edited' if failure else 'missing'}: put back from its copy{aside}"]
    try:
        copy, _ = _read(root / RUN_COPY_FILE)
        if copy == text:
            return []
        aside = _put(root / RUN_COPY_FILE, text)
    except UnbrokenError as refusal:  # the run is whole without it, as older ones are
        return [f"{RUN_COPY_FILE}, the copy of {RUN_FILE}, could not be written: {refusal}"]
    return [f"{RUN_COPY_FILE} was not a copy of {RUN_FILE}: written again{aside}"] if aside else []


def _put(path: Path, text: bytes) -> str:
    """Give `path` the content `text`, durably, whatever was there set aside; return in words where that is."""
    aside = f"; what was there is in {set_aside(path, BROKEN_PREFIX).name}" if os.path.lexists(path) else ""
    replace_file(path, text)
    return aside


def _read(path: Path) -> tuple[bytes | None, UnbrokenError | None]:
    """Return the bytes of a sound document, or None and what is wrong with it: nothing, where there is none.

    Raises `CannotContinueError` and `ConfigError` as `read_run`.
    """
    try:
        text = read_document(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except OSError as failure:
        refusal = ConfigError(
            f"cannot read {path}: {failure.strerror or failure}", next_step="check the path and its permissions"
        )
        if failure.errno not in NOT_OURS:
            raise refusal from failure
        return None, refusal
    try:
        decode_run(text, str(path))
    except DamagedError as damage:
        return None, damage
    return text, None


def encode_run(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of `run.json` for a document: the same for the same one."""
    body = {FORMAT_KEY: FORMAT_VERSION, **document}
    text = json.dumps({**body, DIGEST_KEY: digest(canonical(body))}, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


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
            why=UNTOLD,
            next_step=WAYS_OUT,
        )
    version = document.pop(FORMAT_KEY, None)
    if version != FORMAT_VERSION:
        raise CannotContinueError(
            f"{path} has format version {version}; this version of unbroken reads {FORMAT_VERSION}",
            next_step="use the version of unbroken that made the run",
        )
    return dict(document)
