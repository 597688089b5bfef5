"""A run that stops in time for `--stop-at`, again and again, ends with the bits of one that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exact.runs import assert_same_run, train
from tests.exact.test_best_model import choosing
from tests.exact.test_interrupted_corners import records
from tests.exact.test_loop import Script
from tests.tiny import make_model_folder
from unbroken.models import inference
from unbroken.run import deadline
from unbroken.run.deadline import Deadline
from unbroken.run.report import Ended, Event, Stepped
from unbroken.run.stop import StopRequest
from unbroken.tasks.train import Request, carry_out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


class Clock:
    """A clock on which a step takes a minute, and nothing else any time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def report(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.now += 60


def until(seconds: float, clock: Clock, model: Path, output: Path) -> Ended:
    stop = StopRequest(Deadline(seconds, "17:30", clock))
    return carry_out(Request(choosing(model) | {"output_dir": str(output)}), clock.report, stop)


def test_stopped_in_time_again_and_again(model: Path, tmp_path: Path) -> None:
    train(choosing(model), tmp_path / "whole")
    run, starts = tmp_path / "run", 0
    while not (ended := until(600, clock := Clock(), model, run)).finished:
        starts += 1
        assert ended.reason == "stop-at 17:30"
        assert clock.now == 480, "two minutes, twice a step, are kept for the next one"
        assert records(run, "commit")[-1]["n"] == ended.step == 8 * starts
        assert not records(run, "canary"), "one would take a minute, too long for a stop"
    assert starts == 3
    assert_same_run(run, tmp_path / "whole")


def test_a_loop_that_has_no_time_to_restore(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the loop must not run: the process ends with 75, as after a stop between two steps."""
    Script(model).run(tmp_path / "whole")
    Script(model).run(tmp_path / "run", stop_after=5)
    with monkeypatch.context() as patch:
        patch.setattr(deadline, "SPARE_SECONDS", 7200)
        with pytest.raises(SystemExit) as leaving:
            Script(model, options={"stop_at": "+1h"}).run(tmp_path / "run")
    assert leaving.value.code == 75
    assert records(tmp_path / "run", "stop")[-1]["in_set_up"]
    assert len(records(tmp_path / "run", "segment")) == 1
    assert Script(model).run(tmp_path / "run").ended.finished
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_deadline_in_an_evaluation(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(choosing(model), tmp_path / "whole")
    clock, run = Clock(), tmp_path / "run"

    def slow(*args: object) -> None:
        clock.now += 90 if clock.now >= 240 else 0  # from step 4 on

    with monkeypatch.context() as patch:
        real = inference.token_batches
        patch.setattr(inference, "token_batches", lambda *args: (slow(), real(*args))[1])
        ended = until(400, clock, model, run)
    assert (ended.step, ended.finished, ended.reason) == (4, False, "stop-at 17:30")
    assert [record["n"] for record in records(run, "evaluation")] == [0]
    assert records(run, "commit")[-1]["n"] == 4
    assert train(choosing(model), run).finished
    assert_same_run(run, tmp_path / "whole")
    assert records(run, "finish")[0]["best"] == records(tmp_path / "whole", "finish")[0]["best"]
