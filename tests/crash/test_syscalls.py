"""A kill, or an error, at system calls of a commit and a restore, with strace; every one of them in `make crash`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DURABLE = "fsync,renameat2,unlinkat,mkdir,write"


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is missing, or this system does not allow it")


def strike(folder: Path, mode: str, *more: str) -> tuple[int, int, str]:
    """Return how many points were struck, how many of them failed, and all that was printed.

    In a process of its own: forking pytest with its threads would not be sound.
    """
    command = [sys.executable, "-m", "tests.crash.syscalls", mode, "--work", str(folder), *more]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    counts = re.search(r"(\d+) points, (\d+) failed", found.stdout)
    assert counts, found.stdout + found.stderr
    assert found.returncode == (counts[2] != "0"), found.stderr
    return int(counts[1]), int(counts[2]), found.stdout


@pytest.mark.parametrize("mode", ["kill", "EIO"])
def test_a_commit_struck_at_each_durable_call(mode: str, tmp_path: Path) -> None:
    points, failed, text = strike(tmp_path, mode, "--calls", DURABLE)
    assert not failed, text
    assert points > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "at_least"), [("kill", 100), ("EIO", 100), ("ENOSPC", 40), ("EINTR", 20), ("read", 30)]
)
def test_struck_at_every_system_call(mode: str, at_least: int, tmp_path: Path) -> None:
    points, failed, text = strike(tmp_path, mode)
    assert not failed, text
    assert points > at_least


@pytest.mark.parametrize(
    ("mode", "calls", "finding"),
    [("control-early", "renameat2", "restored step 2, not one of [3]"), ("control-sync", "fsync", "tried again on")],
)
def test_a_store_that_cheats_is_found_out(mode: str, calls: str, finding: str, tmp_path: Path) -> None:
    _, failed, text = strike(tmp_path, mode, "--calls", calls)
    assert failed
    assert finding in text
