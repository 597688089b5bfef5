"""Steps that cannot be made, and segments that never live long enough: named, counted, and got past where one can."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.exact.runs import assert_same_run, step_records, train
from tests.tiny import make_model_folder, make_rows
from unbroken import Loop
from unbroken.base.errors import CannotContinueError, FailsAgainError, TrainingError
from unbroken.run.cadence import Cadence
from unbroken.run.report import Event, Stepped
from unbroken.run.stop import StopRequest
from unbroken.run.summary import describe_run
from unbroken.tasks.train import Request, carry_out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    asked = {"task": "embed", "model": str(model), "train_data": make_rows(40), "batch_size": 4, "max_steps": 20}
    return asked | {"threads": 1} | changes


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / "journal.jsonl").read_bytes().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_a_step_that_is_not_finite_is_named_with_its_rows(model: Path, tmp_path: Path) -> None:
    """This rate throws the weights out of range: some step fails, the same one however often the run was stopped."""
    asked = values(model, learning_rate=1e30, max_grad_norm=0.0, save_steps=1, shuffle=False)
    with pytest.raises(TrainingError) as first:
        train(asked, tmp_path / "run")
    [failure] = records(tmp_path / "run", "failed_step")
    number = failure["n"]
    rows = ", ".join(str((number - 1) * 4 + i + 1) for i in range(4))
    assert f"step {number} failed: the gradient norm is nan" in str(first.value)
    assert f"its batch is rows {rows};" in str(first.value)
    assert (first.value.exit_code, len(step_records(tmp_path / "run"))) == (1, number - 1)
    assert f"step {number} failed" in describe_run(tmp_path / "run").segments[-1].ended
    for times in (2, 3):
        with pytest.raises(FailsAgainError) as again:
            train(asked, tmp_path / "run")
        assert f"rows {rows}; it has failed {times} times in this way; running the same command again" in str(
            again.value
        )
        assert again.value.exit_code == 4, "so that no scheduler restarts it for ever"
    for last in range(1, number):
        train(asked, tmp_path / f"stopped-{last}", stop_after=last)
        with pytest.raises(TrainingError):
            train(asked, tmp_path / f"stopped-{last}")
        assert records(tmp_path / f"stopped-{last}", "failed_step") == [failure]
        assert step_records(tmp_path / f"stopped-{last}") == step_records(tmp_path / "run")


def test_another_failure_is_not_the_same(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accident of the machine, gone the next time: the run goes on, to the same bits."""
    train(values(model), tmp_path / "whole")

    def broken(*arguments: Any) -> float:
        raise TrainingError("the gradient norm is nan")

    with monkeypatch.context() as patch:
        patch.setattr("unbroken.run.stepping.update", broken)
        with pytest.raises(TrainingError):
            train(values(model), tmp_path / "run")
    assert train(values(model), tmp_path / "run").finished
    assert_same_run(tmp_path / "run", tmp_path / "whole")


class Mine:
    """A loop of one weight whose gradient is not finite from a step on, or whose body raises."""

    def __init__(self, run: Path, at: int, body: Callable[[], float]) -> None:
        self.weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([self.weight], lr=0.1)
        rows = [[float(i)] for i in range(30)]
        self.loop = Loop(
            run, modules={"w": self.weight}, optimizer=optimizer, data=rows, batch_size=3, max_steps=10, save_steps=2
        )
        self.at, self.body = at, body

    def train(self) -> None:
        for batch in self.loop.batches():
            factor = self.body() if self.loop.step_number + 1 == self.at else 1.0
            self.loop.step((self.weight * torch.tensor(batch).mean() * factor).sum())


def boom() -> float:
    raise ZeroDivisionError("mine")


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    for error, count in ((TrainingError, 1), (FailsAgainError, 2)):
        with pytest.raises(error, match=r"step 7 failed: .* its batch is rows \d+, \d+, \d+;") as refusal:
            Mine(tmp_path / "run", 7, lambda: float("inf")).train()
        assert "generator" not in str(refusal.value), "not the refusal of a step that does not repeat"
        assert len(records(tmp_path / "run", "failed_step")) == count
    Mine(tmp_path / "whole", 0, boom).train()
    with pytest.raises(ZeroDivisionError):
        Mine(tmp_path / "raised", 7, boom).train()
    with pytest.raises(ZeroDivisionError):
        Mine(tmp_path / "raised", 7, boom).train()
    Mine(tmp_path / "raised", 0, boom).train()
    assert_same_run(tmp_path / "raised", tmp_path / "whole")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the run catches it."""


@pytest.mark.parametrize("lifetime", [pytest.param(1, marks=pytest.mark.slow), 2, 6])
def test_a_run_killed_sooner_than_it_would_commit_still_finishes(
    lifetime: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes a second of this clock, each process lives for a few; `auto` waits ten seconds at first."""
    clock = [0.0]
    monkeypatch.setattr("unbroken.tasks.train.Cadence", partial(Cadence, clock=lambda: clock[0]))
    train(values(model), tmp_path / "whole")

    def live(request: Request) -> bool:
        left = [lifetime]

        def report(event: Event) -> None:
            if isinstance(event, Stepped):
                clock[0] += 1
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

        try:
            return carry_out(request, report, StopRequest()).finished
        except Killed:
            return False

    request = Request({**values(model), "output_dir": str(tmp_path / "run")})
    lives = 1
    while not live(request):
        lives += 1
        assert lives < 150, "it does not advance"
    assert lives > 2, "the test shows nothing"
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_asked_for_again(model: Path, tmp_path: Path) -> None:
    """It says so at once, from the same files, and writes no record."""
    run = tmp_path / "run"
    train(values(model), run)
    before = {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*") if path.is_file()}
    began = time.process_time()
    again = train(values(model), run)
    assert time.process_time() - began < 1
    assert (again.finished, again.step, again.model) == (True, 20, str(run / "model"))
    assert before == {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*") if path.is_file()
    }
    with pytest.raises(CannotContinueError):
        train(values(model, seed=1), run)
