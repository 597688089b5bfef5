from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.exact.runs import train
from tests.exact.test_embed import values
from tests.tiny import make_model_folder

from unbroken.base.errors import BusyError, CannotContinueError, ConfigError, TrainingError
from unbroken.run import preflight, resources
from unbroken.run.preflight import Demand, measured_demand, require_files, require_memory, require_ready
from unbroken.run.resources import HostMemory
from unbroken.run.summary import describe_run
from unbroken.store.lock import RunLock
from unbroken.tasks.embed.job import Encoding

GB = 10**9


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight")
    train(values(make_model_folder(folder / "tiny"), save_steps=3), folder / "run", stop_after=7)
    return folder / "run"


def machine(monkeypatch: pytest.MonkeyPatch, *, free: int, total: int, swap: int = 0) -> None:
    monkeypatch.setattr(resources, "host_memory", lambda: HostMemory(free, swap, total))
    monkeypatch.setattr(resources, "held_bytes", lambda: 0)


def test_a_run_tells_what_it_needed(run: Path) -> None:
    demand = measured_demand(run)
    assert demand is not None
    newest = max((run / "checkpoints").glob("[0-9]*"))
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert demand.checkpoint_files == len(files)
    assert demand.checkpoint_bytes == sum(path.stat().st_size for path in files if path.name != "MANIFEST.json")
    assert demand.kept == 2
    assert 50_000_000 < demand.host_bytes < 50 * GB, "torch alone takes more, and no test of ours that much"


def test_the_peak_is_that_of_all_segments(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbroken.run.engine.peak_bytes", lambda device: {"host": 5 * GB})
    asked = values(make_model_folder(tmp_path / "tiny"), save_steps=3)
    train(asked, tmp_path / "run", stop_after=4)
    monkeypatch.setattr("unbroken.run.engine.peak_bytes", lambda device: {"host": 1 * GB})
    monkeypatch.setattr(preflight, "require_memory", lambda root, demand: None)
    train(asked, tmp_path / "run", stop_after=7)
    found = measured_demand(tmp_path / "run")
    assert found is not None
    assert found.host_bytes == 5 * GB


def test_a_broken_checkpoint_is_passed_over(run: Path, tmp_path: Path) -> None:
    demand = measured_demand(run)
    copy = shutil.copytree(run, tmp_path / "copy")
    newest = max((copy / "checkpoints").glob("[0-9]*"))
    (newest / "segment.json").write_text("{")
    earlier = measured_demand(copy)
    assert demand is not None
    assert earlier is not None
    assert 0 < earlier.host_bytes <= demand.host_bytes, "the peak of the checkpoint before is no higher"
    for broken in (copy / "checkpoints").glob("[0-9]*"):
        (broken / "MANIFEST.json").unlink()
    assert measured_demand(copy) is None
    assert measured_demand(tmp_path / "nowhere") is None


def test_memory_that_others_hold_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, free=3 * GB, total=16 * GB)
    with pytest.raises(BusyError, match=r"needed 4,000 MB of memory so far, 3,000 MB are free now: other processes"):
        require_memory(tmp_path, Demand(1, 1, 1, 4 * GB, 0))
    machine(monkeypatch, free=3 * GB, total=16 * GB, swap=GB)
    require_memory(tmp_path, Demand(1, 1, 1, 4 * GB, 0))


def test_a_machine_that_is_too_small_is_offered_smaller_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, free=3 * GB, total=3 * GB)
    with pytest.raises(
        CannotContinueError, match=r"this machine or container has 3,000 MB.*unbroken fork .* micro_batch_size=N"
    ):
        require_memory(tmp_path, Demand(1, 1, 1, 4 * GB, 0))


def test_a_run_that_is_held_says_by_whom(run: Path) -> None:
    with RunLock(run), pytest.raises(BusyError, match=f"in use by process {os.getpid()} on "):
        require_ready(run, keep=2)
    require_ready(run, keep=2)


def test_a_full_disk_is_found_before_the_model_is_loaded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.files, "free_bytes", lambda path: 1000)
    with pytest.raises(ConfigError, match=r"has 0\.0 MB left, the run's checkpoints need"):
        require_ready(run, keep=2)


def test_a_disk_without_room_for_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.files, "free_inodes", lambda path: 10)
    with pytest.raises(ConfigError, match="has room for 10 more files, the run needs 80"):
        require_files(tmp_path, 80)
    monkeypatch.setattr(preflight.files, "free_inodes", lambda path: None)
    require_files(tmp_path, 80)


@pytest.mark.parametrize(("size", "half"), [(None, 4), (6, 3), (1, 1)])
def test_memory_that_runs_out_names_the_commit_and_the_fork(
    size: int | None, half: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = values(make_model_folder(tmp_path / "tiny"), save_steps=3, micro_batch_size=size, batch_size=8)
    encode, calls = Encoding.__call__, []

    def exhausted(*given: object, **named: object) -> object:
        calls.append(given)
        if len(calls) == 6:
            torch.empty(1 << 60, dtype=torch.uint8)  # the error is torch's own
        return encode(*given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Encoding, "__call__", exhausted)
        with pytest.raises(TrainingError) as caught:
            train(asked, tmp_path / "run")
    text = str(caught.value)
    assert "out of memory" in text
    assert "the commit of step 3 stands" in text
    assert f"unbroken fork {tmp_path / 'run'} NEW --set micro_batch_size={half}" in text
    summary = describe_run(tmp_path / "run")
    assert summary.state == "failed"
    assert summary.segments[-1].ended.startswith("failed: RuntimeError")
    assert train(asked, tmp_path / "run").finished


def test_a_want_of_memory_before_any_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = values(make_model_folder(tmp_path / "tiny"))

    def exhausted(*given: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Encoding, "__call__", exhausted)
    with pytest.raises(TrainingError, match=r"nothing was committed yet.*--restart --set micro_batch_size="):
        train(asked, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()]
    assert records[-1]["kind"] == "failure"
