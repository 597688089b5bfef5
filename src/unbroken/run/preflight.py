"""What would fail hours later is looked at before anything is loaded or written."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unbroken.base.errors import BusyError, CannotContinueError, ConfigError, UnbrokenError
from unbroken.base.reading import read_document
from unbroken.run import resources
from unbroken.run.contract import fork_command
from unbroken.store import files, layout
from unbroken.store.held import is_held
from unbroken.store.lock import describe, named_holder
from unbroken.store.manifest import read_manifest
from unbroken.store.run import BEFORE_CREATION

if TYPE_CHECKING:
    import torch  # two seconds that nobody waits for whose run cannot go on

MB = 1e6
SPARE_DESCRIPTORS = 32  # a run of a small model has twelve open at most; libraries open more when first used
SPARE_FILES = 64  # journal, evaluations, caches
RESTORED = {layout.JOURNAL_FILE, layout.CHECKPOINTS_FOLDER}


@dataclass(frozen=True)
class Demand:
    """What a run has been measured to need: from its newest checkpoint, believed without its digests.

    `checkpoint_bytes` and `checkpoint_files` are of one checkpoint, `kept` of them are there; `host_bytes` and
    `device_bytes` the peak of memory over all segments so far.
    """

    checkpoint_bytes: int
    checkpoint_files: int
    kept: int
    host_bytes: int
    device_bytes: int


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
    cut_short = RESTORED if layout.RESTORING_FILE in names else set()  # fetching it from its mirror was
    if layout.JOURNAL_FILE in names and not cut_short:
        raise ConfigError(
            f"output_dir {root} holds a run without its {layout.RUN_FILE}",
            why="what the run is cannot be told; a copy of it may have been interrupted",
            next_step="put that file back, or choose a new output_dir",
        )
    foreign = [name for name in names if name not in BEFORE_CREATION | cut_short and not name.startswith(".")]
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
            f"cannot write in {place}: its disk is mounted read-only",
            next_step="remount it, or choose another output_dir",
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"cannot write in {place}: permission denied",
            next_step="choose another output_dir or change its permissions",
        )


def require_output(output: Path, suffix: str, source: Path) -> None:
    """Raise `ConfigError` unless `output` can become a file, and not in place of `source`, which is read for it."""
    what, parent = "", output.absolute().parent
    if output.is_dir():
        what = "is a folder"
    elif not parent.is_dir():
        what = f"cannot be written: there is no folder {output.parent}"
    elif output.exists() and not output.is_file():
        what = "is a device or a pipe, which a file would take the place of"
    elif output.exists() and source.exists() and output.samefile(source):
        what = "is the file that is read"
    if what:
        raise ConfigError(
            f"--output {output} {what}", next_step=f"give the path of a {suffix} file in a folder that exists"
        )
    require_writable(parent)


def require_descriptors(count: int = SPARE_DESCRIPTORS) -> None:
    """Raise `ConfigError` unless this process can open `count` files more."""
    handles = []
    try:
        for _ in range(count):
            handles.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as failure:
        raise ConfigError(
            f"only {len(handles)} more files can be opened, {count} may be needed: {failure.strerror}",
            next_step="raise the limit on open files (`ulimit -n`)",
        ) from None
    finally:
        for handle in handles:
            os.close(handle)


def require_space(root: Path, needed: int) -> None:
    """Raise `ConfigError` unless the disk of `root` has `needed` bytes left."""
    free = files.free_bytes(existing_ancestor(root))
    if free < needed:
        raise ConfigError(
            f"the disk of {root} has {free / 1e6:,.1f} MB left, the run's checkpoints need {needed / 1e6:,.1f} MB",
            why="a commit would fail later on",
            next_step="free some space, choose another output_dir, or lower save_total_limit",
        )


def measured_demand(root: Path) -> Demand | None:
    """Return what the run at `root` needed so far; None if it has no checkpoint to tell."""
    home = root / layout.CHECKPOINTS_FOLDER
    names = [name for name in files.list_folder(home) if layout.step_of(name) is not None]
    for name in reversed(names):
        try:
            sizes = [record.size for record in read_manifest(home / name).files.values()]  # not what lies there now
            peak = json.loads(read_document(home / name / layout.SEGMENT_FILE)).get("peak", {})
            return Demand(sum(sizes), len(sizes) + 1, len(names), int(peak.get("host", 0)), int(peak.get("device", 0)))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, UnbrokenError):
            continue  # broken: the restore will say so
    return None


def require_ready(root: Path, keep: int) -> None:
    """Raise unless the run at `root` can be taken up now: free, writable, with room on disk and in memory.

    Everything is compared with what the run was measured to need, and other processes count. `BusyError` means:
    the same command will do later.
    """
    if is_held(root):
        raise BusyError(
            f"{root} is in use by {describe(named_holder(root))}",
            next_step="wait for it to end, or stop it, and run the same command again",
        )
    for folder in (root, root / layout.CHECKPOINTS_FOLDER):
        if folder.is_dir():
            require_writable(folder)
    demand = measured_demand(root)
    if demand is not None:
        coming = max(1, keep + 1 - demand.kept)
        require_space(root, coming * demand.checkpoint_bytes)
        require_files(root, coming * demand.checkpoint_files + SPARE_FILES)
        require_memory(root, demand)


def require_files(root: Path, needed: int) -> None:
    """Raise `ConfigError` unless `needed` more files fit on the disk of `root`."""
    free = files.free_inodes(root)
    if free is not None and free < needed:
        raise ConfigError(
            f"the disk of {root} has room for {free:,} more files, the run needs {needed:,}",
            why="a commit would fail later on",
            next_step="delete some files there, or lower save_total_limit",
        )


def require_memory(root: Path, demand: Demand) -> None:
    """Raise `BusyError` if others hold memory the run needs, `CannotContinueError` if there is too little for ever."""
    memory = resources.host_memory()
    if memory is None:
        return
    mine = memory.free + memory.swap + resources.held_bytes()  # a user's own loop has made its model by now
    if demand.host_bytes <= mine:
        return
    total = memory.total + memory.swap
    needs = f"{root} needed {demand.host_bytes / MB:,.0f} MB of memory so far"
    if demand.host_bytes > total:
        raise CannotContinueError(
            f"{needs}, this machine or container has {total / MB:,.0f} MB", next_step=smaller_chunks(root)
        )
    raise BusyError(
        f"{needs}, {mine / MB:,.0f} MB are free now: other processes hold the rest",
        next_step="wait for them, or stop them, and run the same command again",
    )


def require_device_memory(root: Path, device: torch.device) -> None:
    """Raise `BusyError` or `CannotContinueError` as `require_memory` does, for the memory of a GPU."""
    demand = measured_demand(root)
    if device.type != "cuda" or demand is None:
        return
    import torch

    free, total = torch.cuda.mem_get_info(device)
    needs = f"{root} needed {demand.device_bytes / MB:,.0f} MB on its device so far"
    if demand.device_bytes > total:
        raise CannotContinueError(f"{needs}, {device} has {total / MB:,.0f} MB", next_step=smaller_chunks(root))
    if demand.device_bytes > free:
        raise BusyError(
            f"{needs}, {free / MB:,.0f} MB of {device} are free now: other processes hold the rest",
            next_step="wait for them (`nvidia-smi` lists them) and run the same command again",
        )


def smaller_chunks(root: Path, size: int | None = None) -> str:
    """Return the advice that needs less memory: the same run from here on, in smaller chunks, under another name."""
    chunk = "N" if size is None else size
    return f"go on as a new run with smaller chunks: {fork_command(str(root), {'micro_batch_size': chunk})}"


def existing_ancestor(path: Path) -> Path:
    """Return `path` or the nearest folder above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
