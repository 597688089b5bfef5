"""What identifies a run: one meaning however it was written, and `auto` as it was resolved when the run began."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.exact.runs import train
from tests.tiny import make_model_folder, make_rows

from unbroken.base.errors import CannotContinueError, ConfigError
from unbroken.base.fingerprint import canonical, digest
from unbroken.run.report import Ended
from unbroken.store.journal import read_last
from unbroken.store.run import read_run
from unbroken.tasks.check import check
from unbroken.tasks.contract import available_processors
from unbroken.tasks.device import resolve_device
from unbroken.tasks.embed.config import EmbedConfig
from unbroken.tasks.train import Request, is_finished


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    rows = make_rows(12)
    return {"task": "embed", "model": str(model), "train_data": rows, "batch_size": 4, "max_steps": 2} | changes


def recorded(run: Path) -> dict[str, Any]:
    document = read_run(run)
    assert document is not None
    return dict(document["contract"]["config"])


@pytest.mark.parametrize(
    "before", [{}, {"scale": 20.0}, {"temperature": 0.05, "micro_batch_size": 4}, {"metric_for_best_model": "ndcg@10"}]
)
@pytest.mark.parametrize("after", [{}, {"scale": 20.0, "micro_batch_size": 4}, {"temperature": 0.05}])
def test_the_same_in_other_words_is_the_same_run(
    before: dict[str, Any], after: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    train(values(model, **before, threads=1), tmp_path / "run", stop_after=1)
    found = recorded(tmp_path / "run")
    assert (found["scale"], found["micro_batch_size"], "temperature" in found) == (20.0, None, False)
    assert train(values(model, **after, threads=1), tmp_path / "run").finished


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"scale": 30.0}, "scale: 20.0 .this run. -> 30.0"),
        ({"temperature": 0.1}, "scale: 20.0 .this run. -> 10.0"),
        ({"micro_batch_size": 2}, "micro_batch_size: null .this run. -> 2"),
        ({"batch_size": 2}, "another configuration: batch_size: 4 .this run. -> 2 .default.; "),
        ({"device": "cuda"}, "device: 'cpu' .this run. -> 'cuda'"),
    ],
)
def test_another_meaning_is_refused(change: dict[str, Any], line: str, model: Path, tmp_path: Path) -> None:
    train(values(model, device="cpu", threads=1), tmp_path / "run", stop_after=1)
    with pytest.raises(CannotContinueError, match=line):
        train(values(model, threads=1, **change), tmp_path / "run")


def test_auto_is_what_it_was_when_the_run_began(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("unbroken.tasks.contract.available_processors", lambda: 1)
    train(values(model, device="auto", threads="auto"), tmp_path / "run", stop_after=1)
    found = recorded(tmp_path / "run")
    assert (found["device"], found["threads"]) == ("cpu", 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("unbroken.tasks.contract.available_processors", lambda: 2)
    assert train(values(model, device="auto", threads="auto"), tmp_path / "run").finished


def test_a_device_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(
        CannotContinueError,
        match=r"was started on cuda, which is not there.*unbroken fork .*device=cpu.*--restart",
    ):
        resolve_device("cuda", tmp_path)
    with pytest.raises(ConfigError, match="device: cuda is not there"):
        resolve_device("cuda")


def test_a_run_whose_device_is_gone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither `train` nor `check` takes another device for it."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    train(values(model, threads=1), tmp_path / "run", stop_after=1)
    body = {"format": 1, **(read_run(tmp_path / "run") or {})}
    body["config"]["device"] = body["contract"]["config"]["device"] = "cuda"
    (tmp_path / "run" / "run.json").write_text(json.dumps({**body, "digest": digest(canonical(body))}))
    asked = values(model, device="auto", output_dir=str(tmp_path / "run"))
    with pytest.raises(CannotContinueError, match="was started on cuda, which is not there"):
        train(asked, tmp_path / "run")
    found = check(Request(asked))
    assert found.exit_code == 4
    assert [str(problem) for problem in found.problems if "was started on cuda" not in str(problem)] == []


@pytest.mark.parametrize(
    ("given", "meant"), [("cuda:0", "cuda"), ("cuda", "cuda"), ("cuda:01", "cuda:1"), ("cpu", "cpu"), ("auto", "auto")]
)
def test_one_device_has_one_name(given: str, meant: str) -> None:
    assert EmbedConfig(model="m", output_dir="o", train_data="t", device=given).device == meant


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"device": "mps"}, "give auto, cpu, cuda or cuda:N"),
        ({"save_strategy": "steps"}, "add `save_steps: 100`"),
        ({"save_strategy": "steps", "save_seconds": 5.0}, "add `save_steps: 100`"),
        ({"save_strategy": "time"}, "add `save_seconds: 60`"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        EmbedConfig.from_values({"model": "m", "output_dir": "o", "train_data": "t", **change})


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
        ("1 0", 8),
        (None, 8),
    ],
)
def test_the_quota_of_a_container(
    quota: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert available_processors(tmp_path / "cpu.max") == count


def test_whether_a_run_is_finished_is_read_off_its_last_record(model: Path, tmp_path: Path) -> None:
    assert not is_finished(tmp_path / "run")
    train(values(model, threads=1), tmp_path / "run", stop_after=1)
    assert not is_finished(tmp_path / "run")
    ended: Ended = train(values(model, threads=1), tmp_path / "run")
    last = read_last(tmp_path / "run" / "journal.jsonl")
    assert (ended.finished, is_finished(tmp_path / "run")) == (True, True)
    assert last is not None
    assert last["kind"] == "finish"


def test_a_mistake_costs_no_torch(model: Path, tmp_path: Path) -> None:
    """Everything that can be checked on files alone is checked before the device is looked for."""
    train(values(model, train_data=rows_file(tmp_path), threads=1), tmp_path / "run", stop_after=1)
    code = (
        "import sys; from unbroken.base.errors import UnbrokenError; from unbroken.tasks.train import *\n"
        "values, resume = eval(sys.argv[1])\n"
        "try: look_over(Request(values, resume_from_checkpoint=resume))\n"
        "except UnbrokenError as refused: print(refused)\n"
        "print('torch' in sys.modules)"
    )
    asked = values(model, train_data=str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "run"))
    new = asked | {"output_dir": str(tmp_path / "new")}
    for given, resume, line in (
        (asked, None, ""),
        (new, None, ""),
        (asked | {"device": "mps"}, None, "device: 'mps'"),
        (asked | {"device": "cuda"}, None, "device: 'cpu' (this run) -> 'cuda'"),
        (asked, str(tmp_path / "run" / "cache"), "neither the run"),
    ):
        argument = repr((given, resume))
        out = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True).stdout
        assert line in out
        assert out.endswith("False\n")


def rows_file(folder: Path) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)), encoding="utf-8")
    return str(folder / "rows.jsonl")
