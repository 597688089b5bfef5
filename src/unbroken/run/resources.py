"""How much memory there is, and how much a process has used: no result depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
CGROUP_LIMIT, CGROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def free_host_bytes() -> int | None:
    """Return the memory this process may still use: the machine's, or its container's if that is less."""
    available = memory_bytes("MemAvailable", MEMINFO)
    if not available:
        return None
    try:
        return min(available, max(0, int(CGROUP_LIMIT.read_text()) - int(CGROUP_USED.read_text())))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return available


def memory_bytes(name: str, source: Path) -> int:
    """Return an entry of a file of the kernel's that counts memory in kB; 0 where there is none."""
    try:
        lines = source.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def peak_bytes(device: torch.device) -> dict[str, int]:
    """Return the most memory this process has held so far, on the host and on its device.

    Mapped files are left out as far as the kernel tells: it may drop those at any time.
    """
    peak = memory_bytes("VmHWM", STATUS) - memory_bytes("RssFile", STATUS) - memory_bytes("RssShmem", STATUS)
    found = {"host": max(peak, 0)}
    if device.type == "cuda":
        import torch

        found["device"] = int(torch.cuda.max_memory_reserved(device))
    return found


def free_device_bytes(device: torch.device) -> int | None:
    """Return the memory left on a device; None if it cannot be told."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes() if device.type == "cpu" else None
