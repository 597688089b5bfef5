"""How much memory there is, and how much a process has used: no result depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unbroken.run.containers import bounds

if TYPE_CHECKING:
    import torch

MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")


@dataclass(frozen=True)
class HostMemory:
    """Bytes this process may still use without swapping, of swap, and of memory if nothing else ran beside it."""

    free: int
    swap: int
    total: int


def host_memory() -> HostMemory | None:
    """Return what the machine has, or the container if that is less; None where it cannot be told."""
    free, total = memory_bytes("MemAvailable", MEMINFO), memory_bytes("MemTotal", MEMINFO)
    if not free:
        return None
    swap = memory_bytes("SwapFree", MEMINFO)
    for bound in bounds():
        free = free if bound.free is None else min(free, bound.free)
        swap = swap if bound.swap is None else min(swap, bound.swap)
        total = total if bound.total is None else min(total, bound.total)
    return HostMemory(free, swap, total)


def free_host_bytes() -> int | None:
    """Return the memory this process may still use without swapping; None if it cannot be told."""
    memory = host_memory()
    return None if memory is None else memory.free


def held_bytes() -> int:
    """Return the memory this process holds now, mapped files left out."""
    return memory_bytes("RssAnon", STATUS)


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
