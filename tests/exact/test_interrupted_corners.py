"""Corners: a stop in the last step, a kill after accepted drift, a reporter whose stream is gone, damaged evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, step_records, train
from tests.exact.test_best_model import choosing
from tests.exact.test_controls import flip_a_bit, tamper
from tests.exact.test_embed import STEPS, values
from tests.tiny import make_model_folder
from unbroken.run.folder import RunFolder
from unbroken.run.report import Event, Stepped
from unbroken.run.stop import StopRequest
from unbroken.tasks.train import Request, carry_out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / "journal.jsonl").read_bytes().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_a_stop_in_the_last_step_leaves_its_evaluation_to_the_next_start(model: Path, tmp_path: Path) -> None:
    """At this rate the last of six steps is the best, so leaving its evaluation out would publish another model."""
    asked = choosing(model, max_steps=6, eval_steps=3, learning_rate=1e-3)
    train(asked, tmp_path / "whole")
    assert records(tmp_path / "whole", "finish")[0]["best"] == 6, "another step is the best: the test shows nothing"
    assert not train(asked, tmp_path / "stopped", stop_after=6).finished
    assert records(tmp_path / "stopped", "commit")[-1]["n"] == 6
    assert not records(tmp_path / "stopped", "canary"), "there is no next step to foresee"
    assert train(asked, tmp_path / "stopped").finished
    assert records(tmp_path / "stopped", "finish")[0]["best"] == 6
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_accepted_drift_outlives_the_next_kill(model: Path, tmp_path: Path) -> None:
    """Drift accepted at step 4, a stop at 7: the records of the old steps 8 to 12 must be expected no more."""
    run = tmp_path / "run"
    train(values(model), tmp_path / "whole")
    train(values(model), run, stop_after=3)
    tamper(run, flip_a_bit)
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    with (run / "journal.jsonl").open("ab") as journal:
        journal.writelines(
            line for line in lines if json.loads(line)["kind"] == "step" and 3 < json.loads(line)["n"] < 13
        )
    stopped = train(values(model), run, stop_after=7, accept_drift=True)
    assert stopped.proof["drift_from"] == 4
    assert "inexact from there" in stopped.proof["verdict"]
    ended = train(values(model), run)
    assert ended.finished
    assert ended.proof["drift_from"] == 4
    assert len({record[0] for record in step_records(run)}) == STEPS


def test_a_stop_is_proved_without_reading_the_whole_journal(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time after a stop is short, the journal of a long run is not: what is said is about this segment alone."""

    def proof_of_all(folder: RunFolder) -> dict[str, Any]:
        read.append(folder.root)
        return whole_proof(folder)

    read: list[Path] = []
    whole_proof = RunFolder.proof
    monkeypatch.setattr(RunFolder, "proof", proof_of_all)
    asked = values(model)
    first = train(asked, tmp_path / "run", stop_after=4).proof
    assert first == {
        "segments": 1,
        "restores": 0,
        "replayed_steps": 0,
        "drift_from": None,
        "recorded_steps": 4,
        "missing_steps": 0,
        "verdict": "uninterrupted",
    }
    second = train(asked, tmp_path / "run", stop_after=7).proof
    assert second == first | {
        "restores": 1,
        "replayed_steps": 1,  # the canary
        "recorded_steps": 3,
        "verdict": "1 replayed step identical to the bit",
    }
    assert not read
    whole = train(asked, tmp_path / "run").proof
    assert read, "a finished run is proved as a whole"
    assert whole.keys() == first.keys()
    assert (whole["segments"], whole["restores"], whole["recorded_steps"]) == (3, 2, STEPS)


def test_a_reporter_whose_stream_is_gone_stops_nothing(model: Path, tmp_path: Path) -> None:
    def report(event: Event) -> None:
        raise BrokenPipeError

    request = Request(values(model, max_steps=3) | {"output_dir": str(tmp_path / "run")})
    assert carry_out(request, report, StopRequest()).finished


def test_damaged_evaluations_are_made_again(model: Path, tmp_path: Path) -> None:
    asked = choosing(model, max_steps=8)
    train(asked, tmp_path / "whole")
    train(asked, tmp_path / "run", stop_after=5)
    for path, content in zip(sorted((tmp_path / "run" / "eval").iterdir()), (b"[]", b"{"), strict=True):
        path.write_bytes(content)
    assert train(asked, tmp_path / "run").finished
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_going_back_to_an_older_checkpoint_ends_the_same(model: Path, tmp_path: Path) -> None:
    asked = values(model, save_steps=4, save_total_limit=5)
    train(values(model), tmp_path / "whole")
    train(asked, tmp_path / "run", stop_after=14)
    older = tmp_path / "run" / "checkpoints" / "00000008"
    seen: list[Event] = []
    request = Request(asked | {"output_dir": str(tmp_path / "run")}, resume_from_checkpoint=str(older))
    assert carry_out(request, seen.append, StopRequest()).finished
    assert next(event.step for event in seen if isinstance(event, Stepped)) == 9
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert not list((tmp_path / "run" / "checkpoints").glob(".broken-*")), "a step made again is the same step"
