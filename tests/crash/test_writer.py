"""The writer of checkpoints fails, breaks or hangs while training goes on: it is noticed at the next step."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import StorageError
from unbroken.run.report import Committed, Event, Stepped
from unbroken.run.stop import StopRequest
from unbroken.store import files
from unbroken.tasks.train import Request, carry_out

FAILING = 2  # the step whose commit meets the fault


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in make_rows(20)), encoding="utf-8")
    base = make_model_folder(tmp_path / "base")
    return {
        "task": "embed",
        "model": str(base),
        "train_data": str(rows),
        "batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "threads": 1,
        "save_steps": 1,
    }


class Watched:
    """A run whose steps and commits are noted as they happen."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.commits: list[int] = []

    def train(self, asked: dict[str, Any], output: Path) -> None:
        carry_out(Request({**asked, "output_dir": str(output)}), self.report, StopRequest())

    def report(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.steps.append(event.step)
        elif isinstance(event, Committed):
            self.commits.append(event.step)


def meet(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """Call `fault` when the commit of step `FAILING` makes its folder."""
    make_folder = files.make_folder

    def make(path: Path) -> None:
        if path.name.startswith(f".tmp-{FAILING:08d}"):
            fault()
        make_folder(path)

    monkeypatch.setattr(files, "make_folder", make)


@pytest.mark.parametrize("failure", [StorageError("cannot write: no luck"), ZeroDivisionError("no luck: a defect")])
def test_a_failure_of_the_writer_ends_training_at_the_next_step(
    failure: Exception, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise failure

    watched = Watched()
    with monkeypatch.context() as patch:
        meet(patch, fail)
        with pytest.raises(type(failure), match="no luck"):
            watched.train(asked, tmp_path / "run")
    assert watched.steps[-1] <= FAILING + 1, "training went on although nothing is saved any more"
    assert FAILING not in watched.commits, "a commit that failed was reported"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000001"]
    train(asked, tmp_path / "whole")
    train(asked, tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_writer_that_hangs_holds_up_one_commit_and_no_more(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, go = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        assert go.wait(60)

    meet(monkeypatch, hang)
    watched, ended = Watched(), list[bool]()

    def work() -> None:
        watched.train(asked, tmp_path / "run")
        ended.append(True)

    training = threading.Thread(target=work)
    training.start()
    assert hanging.wait(60)
    training.join(1)
    assert watched.steps == [1, 2, 3], "one step is made meanwhile, and its commit waits"
    assert watched.commits == [1], "what is not durable was not reported"
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp-*")), "no second commit began"
    go.set()
    training.join(60)
    assert ended
    assert watched.commits == [1, 2, 3, 4, 5, 6]
    train(asked, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
