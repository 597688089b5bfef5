"""Machines that are really lost: SIGKILL at a random instant, the run's folder gone, the same command again."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash.test_loop_kill import SCRIPT, records, start, steps_on_record, stripped, sums, wait_for

CODE = SCRIPT.replace("save_seconds=0.2)", "save_seconds=0.1, mirror=sys.argv[3])").replace(
    "torch.set_num_threads(1)", "torch.set_num_threads(1)\ntorch.manual_seed(3)"
)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    assert "mirror" in CODE
    path = tmp_path / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", [pytest.param("folder", marks=pytest.mark.slow), "local"])
def test_machines_lost_at_random_instants(kind: str, script: Path, tmp_path: Path) -> None:
    """Four machines, each killed while it trains, mirrors or restores; what they leave is gone."""
    whole, lost, there = tmp_path / "whole", tmp_path / "lost", tmp_path / "elsewhere" / "mirror"
    there.parent.mkdir()
    target = str(there) if kind == "folder" else f"local://{there}"
    unharmed = start(script, whole, "slowly", str(tmp_path / "unharmed-mirror")).communicate()[0]
    assert "finished True" in unharmed, unharmed
    draw, restores = random.Random(7), 0
    for _ in range(4):
        process = start(script, lost, "slowly", target)
        wait_for(lost, steps_on_record(lost) + draw.randint(10, 30), process)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        restores += (there / "run.json").exists()
        shutil.rmtree(lost)
    output = start(script, lost, "slowly", target).communicate()[0]
    assert "finished True" in output, output
    assert "restoring it" in output
    assert "holds step 150" in output
    assert sums(lost) == sums(whole)
    assert stripped(lost) == stripped(whole)
    assert restores >= 3
    assert sum("restored_from" in record for record in records(lost, "segment")) >= 1


@pytest.mark.slow
def test_killed_while_it_restores(script: Path, tmp_path: Path) -> None:
    """At random instants of a start on a new machine, until one gets through."""
    whole, lost, target = tmp_path / "whole", tmp_path / "lost", str(tmp_path / "mirror")
    assert "finished True" in start(script, whole, "slowly", str(tmp_path / "unharmed")).communicate()[0]
    process = start(script, lost, "slowly", target)
    wait_for(lost, 60, process)
    process.terminate()
    process.communicate()
    shutil.rmtree(lost)
    caught = 0
    for _ in range(4):
        process = start(script, lost, "slowly", target)
        while not (lost / ".restoring").exists() and process.poll() is None:
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        caught += (lost / ".restoring").exists()
    assert caught > 0
    output = start(script, lost, "slowly", target).communicate()[0]
    assert "finished True" in output, output
    assert sums(lost) == sums(whole)
    assert stripped(lost) == stripped(whole)
    assert not (lost / ".restoring").exists()


def test_show_describes_a_folder_mirror(script: Path, tmp_path: Path) -> None:
    start(script, tmp_path / "run", "slowly", str(tmp_path / "mirror")).communicate()
    command = [sys.executable, "-m", "unbroken.cli.main", "show", str(tmp_path / "mirror")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "finished" in shown
    assert "150" in shown
