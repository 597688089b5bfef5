"""What `show` knows of a run: read from its folder alone, whatever state that is in, and changing nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exact.runs import train
from tests.tiny import make_model_folder, make_rows

from unbroken.run.report import silent
from unbroken.run.summary import SILENT, describe_run, find_runs, list_run, looks_like_run
from unbroken.store.held import is_held
from unbroken.store.journal import Journal
from unbroken.store.lock import RunLock
from unbroken.tasks.loop import Loop


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with the time it was changed and its content."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("summary")
    data = folder / "rows.json"
    data.write_text(json.dumps(make_rows(24)), encoding="utf-8")
    model = make_model_folder(folder / "tiny")
    inputs = {"task": "embed", "model": str(model), "train_data": str(data), "batch_size": 4, "threads": 1}
    return inputs | {"eval_data": str(data), "num_train_epochs": 1.0, "learning_rate": 1e-3, "save_steps": 1}


@pytest.fixture(scope="module")
def finished(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after steps 2 and 4 of 6, then finished."""
    root = tmp_path_factory.mktemp("runs") / "finished"
    train(values, root, stop_after=2)
    train(values, root, stop_after=4)
    assert train(values, root).finished
    return root


def journal(root: Path, *records: dict[str, Any]) -> None:
    log = Journal(root / "journal.jsonl")
    for record in records:
        log.append(record)
    log.close()


def segment(number: int, step: int) -> dict[str, Any]:
    return {"kind": "segment", "segment": number, "step": step, "last_step": 9, "host": "here", "environment": {}}


def step(number: int) -> dict[str, Any]:
    return {"kind": "step", "n": number, "ids": "", "loss": 1 / number, "grad_norm": 1.0, "learning_rate": 0.1}


def test_a_finished_run(finished: Path) -> None:
    run = describe_run(finished)
    assert (run.state, run.step, run.total_steps, run.resume) == ("finished", 6, 6, None)
    assert run.metric == "ndcg@10"
    assert list(run.evaluations) == [0, 6]
    assert run.last_metric == run.evaluations[6]["ndcg@10"]
    assert [one.problems for one in run.checkpoints] == [[], []]
    assert run.newest_good_step == 6
    assert run.proof["segments"] == 3
    assert run.problems == []
    assert run.config["learning_rate"] == 1e-3


def test_its_segments(finished: Path) -> None:
    first, second, third = describe_run(finished).segments
    assert [(s.from_step, s.to_step) for s in (first, second, third)] == [(0, 2), (2, 4), (4, 6)]
    assert [s.ended for s in (first, second, third)] == ["stopped: the test", "stopped: the test", "finished"]
    assert first.before is None
    assert second.before is not None
    assert second.after is not None
    assert (second.before["n"], second.after["n"]) == (2, 3)
    assert third.began
    assert third.pid == os.getpid()


def test_looking_changes_nothing(finished: Path) -> None:
    before = tree(finished)
    describe_run(finished)
    list_run(finished)
    assert tree(finished) == before


def test_a_run_under_way_elsewhere_is_seen_and_not_disturbed(finished: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from unbroken.store.lock import RunLock; "
        "lock = RunLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    (tmp_path / "run.json").write_bytes((finished / "run.json").read_bytes())
    journal(tmp_path, segment(1, 0), step(1))
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        run = describe_run(tmp_path)
        assert run.state == "running"
        assert run.segments[0].ended == "running"
        assert run.held_by is not None
        assert run.held_by["pid"] == child.pid
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    deadline = time.monotonic() + 10
    while is_held(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    run = describe_run(tmp_path)
    assert run.state == "killed"
    assert run.resume == f"unbroken train {tmp_path}"
    assert run.segments[0].ended == SILENT


def test_a_lock_that_is_released_is_not_held(tmp_path: Path) -> None:
    assert is_held(tmp_path) is False
    with RunLock(tmp_path):
        assert is_held(tmp_path) is True
    assert is_held(tmp_path) is False


@pytest.mark.parametrize(
    ("last", "ended"),
    [
        ({"kind": "stop", "n": 3, "reason": "signal SIGTERM"}, "stopped: signal SIGTERM"),
        ({"kind": "finish", "n": 9, "best": 9, "sha256": {}}, "finished"),
        ({"kind": "refusal", "n": 3, "text": "step 3 does not repeat"}, "refused: step 3 does not repeat"),
        ({"kind": "commit", "n": 2}, SILENT),
    ],
)
def test_why_a_segment_ended(tmp_path: Path, last: dict[str, Any], ended: str) -> None:
    journal(tmp_path, segment(1, 0), step(1), step(2), segment(2, 1), last)
    first, second = describe_run(tmp_path).segments
    assert first.ended == SILENT
    assert second.ended == ended


def test_replayed_steps_belong_to_the_segment_that_repeated_them(tmp_path: Path) -> None:
    replay = {"kind": "replay", "first": 2, "last": 3, "count": 2}
    journal(tmp_path, segment(1, 0), *map(step, (1, 2, 3)), segment(2, 1), replay, step(4))
    second = describe_run(tmp_path).segments[1]
    assert (second.from_step, second.to_step, second.replayed) == (1, 4, 2)


def copy(source: Path, target: Path) -> Path:
    for name in ("run.json", "journal.jsonl"):
        target.mkdir(exist_ok=True)
        (target / name).write_bytes((source / name).read_bytes())
    return target


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", b"{}", "is damaged or was edited"),
        ("run.json", None, "run.json is missing"),
        ("journal.jsonl", None, "journal.jsonl"),
        ("journal.jsonl", b"junk\n", "damaged and was skipped"),
    ],
)
def test_damage_is_one_line(finished: Path, tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    root = copy(finished, tmp_path / "damaged")
    (root / name).unlink() if content is None else (root / name).write_bytes(content)
    assert any(said in problem and "\n" not in problem for problem in describe_run(root).problems)


@pytest.mark.parametrize(("content", "said"), [(b"{}", "is damaged or was edited"), (None, "is missing")])
def test_a_run_is_described_by_the_copy_of_its_document(
    finished: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    root = copy(finished, tmp_path / "damaged")
    (root / "run.json").rename(root / ".run.json")
    if content is not None:
        (root / "run.json").write_bytes(content)
    run = describe_run(root)
    assert run.run_id == describe_run(finished).run_id
    assert run.state == "finished"
    assert [said in text and "the next start of the run puts it back" in text for text in run.problems] == [True]
    assert find_runs(tmp_path) == [root]


def test_a_broken_checkpoint_is_named_and_left_alone(finished: Path, tmp_path: Path) -> None:
    root = copy(finished, tmp_path / "broken")
    for checkpoint in sorted((finished / "checkpoints").iterdir()):
        for path in checkpoint.rglob("*"):
            target = root / "checkpoints" / checkpoint.name / path.relative_to(checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                target.write_bytes(path.read_bytes())
    newest = root / "checkpoints" / "00000006"
    weights = newest / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    before = tree(root)
    run = describe_run(root)
    assert run.newest_good_step is not None
    assert run.newest_good_step < 6
    assert "digest differs" in str(run.checkpoints[-1].problems)
    assert tree(root) == before


def test_a_list_of_runs_looks_one_folder_deeper(finished: Path, tmp_path: Path) -> None:
    copy(finished, tmp_path / "one")
    (tmp_path / "group").mkdir()
    copy(finished, tmp_path / "group" / "two")
    (tmp_path / "group" / "notes").mkdir()
    assert find_runs(tmp_path) == [tmp_path / "group" / "two", tmp_path / "one"]
    assert not looks_like_run(tmp_path)


def test_listing_imports_no_torch(finished: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from unbroken.cli.show import show; "
        f"show(Path({str(finished.parent)!r})); assert 'torch' not in sys.modules"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "finished" in outcome.stdout


def test_a_loop_of_ones_own_names_the_command_that_began_it(tmp_path: Path) -> None:
    weight = torch.nn.Linear(2, 1)
    loop = Loop(
        tmp_path / "loop",
        modules={"head": weight},
        optimizer=torch.optim.SGD(weight.parameters(), lr=0.1),
        data=[[0.0, 1.0]] * 4,
        batch_size=2,
        max_steps=4,
        report=silent,
    )
    for batch in loop.batches():
        loop.step(weight(torch.tensor(batch)).sum())
        if loop.step_number == 2:
            loop._engine.stop.ask("the test")
    run = describe_run(tmp_path / "loop")
    assert (run.state, run.step, run.total_steps) == ("stopped", 2, 4)
    assert run.resume is not None
    assert run.resume.startswith(f"cd {os.getcwd()} && ")
