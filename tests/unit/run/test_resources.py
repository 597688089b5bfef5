from __future__ import annotations

from pathlib import Path

import pytest

from unbroken.base.errors import BusyError, CannotContinueError
from unbroken.run import containers, resources
from unbroken.run.preflight import Demand, require_memory
from unbroken.run.resources import HostMemory, free_host_bytes, host_memory

GB = 1 << 30
NO_LIMIT = 9223372036854771712  # as version 1 says it


class Machine:
    """Sixteen GB with ten free and two of swap, and control groups as a test lays them out in files."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.mounted, self.own, meminfo = root / "cgroup", root / "own", root / "meminfo"
        meminfo.write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {10 << 20} kB\nSwapFree: {2 << 20} kB\n")
        patch.setattr(resources, "MEMINFO", meminfo)
        patch.setattr(resources, "STATUS", root / "status")
        patch.setattr(containers, "OWN_GROUPS", self.own)
        patch.setattr(containers, "MOUNTED", self.mounted)

    def group(self, place: str, **figures: object) -> None:
        folder = self.mounted / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            text = figure if isinstance(figure, str) else f"{figure}\n"
            (folder / f"memory.{name.replace('__', '.')}").write_text(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def stat(inactive: int, active: int, prefix: str = "") -> str:
    return f"anon 1\n{prefix}inactive_file {inactive}\n{prefix}active_file {active}\n"


def test_without_groups_the_machine_counts(machine: Machine) -> None:
    assert host_memory() == HostMemory(10 * GB, 2 * GB, 16 * GB)
    machine.own.write_text("0::/\n")
    assert host_memory() == HostMemory(10 * GB, 2 * GB, 16 * GB)
    machine.own.write_text("no line of the kernel's\n")
    assert free_host_bytes() == 10 * GB


def test_the_page_cache_of_a_container_is_free(machine: Machine) -> None:
    machine.own.write_text("0::/\n")
    machine.group("", max=4 * GB, current=4 * GB - 1, stat=stat(2 * GB, GB))
    assert host_memory() == HostMemory(3 * GB + 1, 2 * GB, 4 * GB)
    machine.group("", stat=stat(0, 0))
    assert free_host_bytes() == 1, "what is not cache is not free"


@pytest.mark.parametrize("tight", ["", "a.slice", "a.slice/job"])
def test_the_smallest_limit_on_the_way_up_holds(machine: Machine, tight: str) -> None:
    machine.own.write_text("0::/a.slice/job\n")
    for place in ("", "a.slice", "a.slice/job", "a.slice/another"):
        machine.group(place, max="max\n", current=GB, stat=stat(0, 0))
    machine.group("a.slice/another", max=1)
    assert host_memory() == HostMemory(10 * GB, 2 * GB, 16 * GB)
    machine.group(tight, max=3 * GB)
    assert host_memory() == HostMemory(2 * GB, 2 * GB, 3 * GB)


def test_swap_counts_where_the_group_may_use_it(machine: Machine) -> None:
    machine.own.write_text("0::/job\n")
    for limit, used, free in [(0, 0, 0), (GB, GB // 4, GB - GB // 4), (8 * GB, 0, 2 * GB), ("max\n", GB, 2 * GB)]:
        machine.group("job", max="max\n", current=GB, swap__max=limit, swap__current=used)
        assert host_memory() == HostMemory(10 * GB, free, 16 * GB)


@pytest.mark.parametrize("path", ["/job", "/docker/0123", "/../.."], ids=["in-sight", "of-the-host", "above"])
def test_version_1(machine: Machine, path: str) -> None:
    """In a container the path may be that of the host: then only the mount itself is there to be looked at."""
    machine.own.write_text(f"4:cpu,cpuacct:/\n3:memory:{path}\n0::/\n")
    place = "memory/job" if path == "/job" else "memory"
    figures = {"usage_in_bytes": 3 * GB, "stat": stat(GB, GB, "total_") + stat(0, 0)}
    machine.group(place, limit_in_bytes=4 * GB, **figures)
    assert host_memory() == HostMemory(3 * GB, 2 * GB, 4 * GB)
    machine.group(place, memsw__limit_in_bytes=5 * GB, memsw__usage_in_bytes=3 * GB + GB // 4)
    assert host_memory() == HostMemory(3 * GB, GB - GB // 4, 4 * GB)
    machine.group(place, limit_in_bytes=NO_LIMIT, memsw__limit_in_bytes=NO_LIMIT)
    assert host_memory() == HostMemory(10 * GB, 2 * GB, 16 * GB)


def test_too_little_for_ever_is_told_from_too_little_now(machine: Machine, tmp_path: Path) -> None:
    machine.own.write_text("0::/\n")
    machine.group("", max=4 * GB, current=3 * GB, swap__max=0, stat=stat(0, 0))
    require_memory(tmp_path, Demand(1, 1, 1, GB, 0))
    (tmp_path / "status").write_text(f"RssAnon: {1 << 20} kB\n")
    require_memory(tmp_path, Demand(1, 1, 1, 2 * GB, 0))  # what this process holds already is no longer needed
    (tmp_path / "status").unlink()
    with pytest.raises(BusyError, match="other processes hold the rest"):
        require_memory(tmp_path, Demand(1, 1, 1, GB + 1, 0))
    with pytest.raises(CannotContinueError, match=r"machine or container has 4,295 MB"):
        require_memory(tmp_path, Demand(1, 1, 1, 4 * GB + 1, 0))
