"""What the control groups this process is in, those of its container or its job, leave it of memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

OWN_GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # version 1 has no word for it and gives the largest number of whole pages


@dataclass(frozen=True)
class Version:
    """Where a version of control groups keeps its figures; `caches` are entries of memory.stat."""

    limit: str
    used: str
    caches: tuple[str, ...]
    swap_limit: str
    swap_used: str


# swap_limit of version 1 is of memory and swap together
ONE = Version(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
    "memory.memsw.limit_in_bytes",
    "memory.memsw.usage_in_bytes",
)
TWO = Version(
    "memory.max", "memory.current", ("inactive_file", "active_file"), "memory.swap.max", "memory.swap.current"
)


@dataclass(frozen=True)
class Bound:
    """What one group allows, in bytes: of memory in all, still, and still of swap; None: as much as there is."""

    total: int | None
    free: int | None
    swap: int | None


def bounds() -> list[Bound]:
    """Return what each group allows this process, from its own up to the outermost in sight."""
    return [bound_of(folder, version) for folder, version in groups()]


def groups() -> Iterator[tuple[Path, Version]]:
    """Yield the folders of this process's memory groups. In a container some of those named may be out of sight."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, found, path = rest.partition(":")
        if not found:
            continue
        if controllers == "":
            roots, version = [MOUNTED, MOUNTED / "unified"], TWO
        elif "memory" in controllers.split(","):
            roots, version = [MOUNTED / "memory"], ONE
        else:
            continue
        inner = PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
        for root in roots:
            for place in (inner, *inner.parents):
                yield root / place, version


def bound_of(folder: Path, version: Version) -> Bound:
    """Return what a group allows. What it holds of file caches counts as free: the kernel drops those first."""
    limit, used = number(folder / version.limit), number(folder / version.used) or 0
    swap, swapped = number(folder / version.swap_limit), number(folder / version.swap_used) or 0
    if version is ONE and swap is not None:
        swap, swapped = swap - (limit or 0), swapped - used
    caches = sum(entry(folder / "memory.stat", name) for name in version.caches)
    return Bound(
        limit,
        None if limit is None else max(0, limit - max(0, used - caches)),
        None if swap is None else max(0, swap - max(0, swapped)),
    )


def number(path: Path) -> int | None:
    """Return the number a file holds; None if there is no such file, or no limit in it."""
    try:
        found = int(path.read_text(encoding="ascii", errors="replace"))
    except (OSError, ValueError):  # version 2 says `max`
        return None
    return found if found < UNLIMITED else None


def entry(path: Path, name: str) -> int:
    """Return an entry of a file of lines `name number`; 0 where there is none."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
