"""How much memory there is: looked at before a run, never decided by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
CGROUP_LIMIT, CGROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def free_host_bytes() -> int | None:
    """Return the memory this process may still use: the machine's, or its container's if that is less."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        return min(available, max(0, int(CGROUP_LIMIT.read_text()) - int(CGROUP_USED.read_text())))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return available


def free_device_bytes(device: torch.device) -> int | None:
    """Return the memory left on a device; None if it cannot be told."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes() if device.type == "cpu" else None
