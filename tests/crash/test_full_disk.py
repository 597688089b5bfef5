"""A disk without room, page by page and file by file: nothing lost, nothing half-written, a clear message."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def can_mount() -> bool:
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    trial = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="a small tmpfs cannot be mounted here: it takes root on Linux")


def on_full_disk(mode: str, folder: Path) -> dict[str, int]:
    command = ["unshare", "-m", sys.executable, "-m", "tests.crash.full_disk", mode, "--work", str(folder)]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return {line[:32].strip(): int(line[32:]) for line in found.stdout.splitlines()}


def test_publishing_page_by_page(tmp_path: Path) -> None:
    found = on_full_disk("publish", tmp_path)
    assert found["published"] == 1
    assert found["refused"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["commit", "inodes"])
def test_committing_page_by_page_and_file_by_file(mode: str, tmp_path: Path) -> None:
    found = on_full_disk(mode, tmp_path)
    for variant in ("as it is", "without preflight", "without reservation"):
        assert found[f"{variant}: refused"] > 2
        assert found[f"{variant}: committed"] > 2


@pytest.mark.slow
def test_appending_until_it_is_full(tmp_path: Path) -> None:
    assert on_full_disk("append", tmp_path)["records before it was full"] > 20


@pytest.mark.slow
def test_training_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    found = on_full_disk("train", tmp_path)
    assert found == {"failed with advice": 4, "went on, bit for bit": 4}
