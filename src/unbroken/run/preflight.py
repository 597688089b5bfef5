"""What would fail hours later is looked at before anything is loaded or written."""

from __future__ import annotations

import os
from pathlib import Path

from unbroken.base.errors import ConfigError
from unbroken.store import files
from unbroken.store.run import BEFORE_CREATION


def require_new_folder(root: Path) -> None:
    """Raise `ConfigError` unless `root` can become a run: absent or empty, in a place that can be written to."""
    if os.path.lexists(root) and not os.path.isdir(root):
        raise ConfigError(f"output_dir {root} is a file", next_step="choose another folder")
    try:
        names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    except OSError as failure:
        raise ConfigError(
            f"output_dir {root} cannot be read: {failure.strerror}",
            next_step="choose another output_dir or change its permissions",
        ) from None
    foreign = [name for name in names if name not in BEFORE_CREATION and not name.startswith(".")]
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise ConfigError(
            f"output_dir {root} holds files ({shown}) but is no run", next_step="choose a new or an empty folder"
        )
    place = existing_ancestor(root)
    if not place.is_dir():
        raise ConfigError(f"output_dir {root}: {place} is a file, not a folder", next_step="choose another output_dir")
    require_writable(place)


def require_writable(place: Path) -> None:
    """Raise `ConfigError` unless files can be made in the folder `place`; nothing is tried out."""
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        raise ConfigError(
            f"cannot write in {place}: its disk is mounted read-only", next_step="choose another output_dir"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"cannot write in {place}: permission denied",
            next_step="choose another output_dir or change its permissions",
        )


def require_space(root: Path, needed: int) -> None:
    """Raise `ConfigError` unless the disk of `root` has `needed` bytes left."""
    free = files.free_bytes(existing_ancestor(root))
    if free < needed:
        raise ConfigError(
            f"the disk of {root} has {free / 1e6:,.1f} MB left, the run's checkpoints need {needed / 1e6:,.1f} MB",
            why="a commit would fail later on",
            next_step="free some space, choose another output_dir, or lower save_total_limit",
        )


def existing_ancestor(path: Path) -> Path:
    """Return `path` or the nearest folder above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
