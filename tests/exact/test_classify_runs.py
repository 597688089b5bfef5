"""Runs of two phases verified, compared, forked, and stopped where the first phase has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, final_state, step_records, train
from tests.exact.test_classify import DIFFERENTIABLE, labelled, values
from tests.tiny import make_model_folder
from unbroken.base.stopping import poll
from unbroken.run.report import silent
from unbroken.run.stop import StopRequest
from unbroken.tasks.classify import batches
from unbroken.tasks.diff import diff
from unbroken.tasks.fork import fork
from unbroken.tasks.train import Request, carry_out
from unbroken.tasks.verify import verify

KEPT = {"save_steps": 2, "save_total_limit": 9}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The rows on disk: what is made again later must be able to read them."""
    folder = tmp_path_factory.mktemp("data")
    rows = {"train_data": labelled(), "eval_data": labelled(20, seed=1)}
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in rows}


VERIFIED: dict[str, dict[str, Any]] = {
    "fitted": {},
    "calibrated": {"calibrate": True},
    "end to end": {**DIFFERENTIABLE, "end_to_end": True},
    "chosen": {**DIFFERENTIABLE, "eval_steps": 2, "load_best_model_at_end": True},
    "pairs": {"pairs": "sampled"},
}


@pytest.mark.parametrize("variant", VERIFIED)
def test_every_step_of_both_phases_is_verified(
    variant: str, model: Path, files: dict[str, str], tmp_path: Path
) -> None:
    steps = train(values(model, **files, **KEPT, **VERIFIED[variant]), tmp_path / "run").step
    found = verify(tmp_path / "run", everything=True)
    assert (found.not_replayed, found.problems, found.failure) == ("", [], None)
    assert found.identical_steps == steps
    assert found.tensors_compared == found.tensors_identical > 0
    boundary = verify(tmp_path / "run", step=steps - 1 if "head" not in VERIFIED[variant] else 4)
    assert boundary.failure is None
    assert boundary.identical_steps > 0


def test_verifying_finds_another_head(model: Path, files: dict[str, str], tmp_path: Path) -> None:
    """The control: a calibrated head is made of the held-out texts, and others are refused."""
    train(values(model, **files, calibrate=True), tmp_path / "run")
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in labelled(20, seed=2)), encoding="utf-8")
    found = verify(tmp_path / "run", inputs={"eval_data": str(other)})
    assert "eval_data is not what the run was started with" in str(found.failure)


HEADS: dict[str, dict[str, Any]] = {
    "another kind": {"head": "differentiable", "num_epochs": [1, 3], "batch_size": [8, 10]},
    "other weights of the classes": {"class_weight": "balanced"},
    "calibrated": {"calibrate": True},
}


@pytest.mark.parametrize("step", [2, 8], ids=["early", "boundary"])
@pytest.mark.parametrize("change", HEADS)
def test_another_head_for_the_same_encoder(
    change: str, step: int, model: Path, files: dict[str, str], tmp_path: Path
) -> None:
    """A fork no later than the boundary is the run that would have been begun with these values, to the bit."""
    given = values(model, **files, **KEPT)
    train(given, tmp_path / "parent")
    train({**given, **HEADS[change]}, tmp_path / "anew")
    forked = fork(f"{tmp_path / 'parent'}@{step}", tmp_path / "fork", HEADS[change])
    train({**given, **HEADS[change]}, tmp_path / "fork")
    assert step_records(tmp_path / "fork") == step_records(tmp_path / "anew")[step:]
    assert final_state(tmp_path / "fork") == final_state(tmp_path / "anew")
    if "num_epochs" not in HEADS[change]:
        assert forked.meaning[-1].startswith("exact: the same bits as a run begun with these values, and up to step 8")


def test_a_trained_head_is_kept(model: Path, files: dict[str, str], tmp_path: Path) -> None:
    """The control: past the boundary a fork goes on with the head it finds, and is another run than one begun anew."""
    given = values(model, **files, **KEPT, **DIFFERENTIABLE)
    train(given, tmp_path / "parent")
    changed = {**given, "head_learning_rate": 1e-3}
    train(changed, tmp_path / "anew")
    forked = fork(f"{tmp_path / 'parent'}@8", tmp_path / "fork", {"head_learning_rate": 1e-3})
    train(changed, tmp_path / "fork")
    assert step_records(tmp_path / "fork")[-1] != step_records(tmp_path / "anew")[-1]
    assert forked.meaning[-1].startswith("exact by itself from step 8 on")


def test_the_first_phase_may_become_longer_while_it_lasts(model: Path, files: dict[str, str], tmp_path: Path) -> None:
    given = values(model, **files, **KEPT)
    train(given, tmp_path / "parent")
    forked = fork(f"{tmp_path / 'parent'}@6", tmp_path / "fork", {"max_steps": 12})
    assert "the first phase ends after step 12 instead of 8" in forked.meaning
    assert train({**given, "max_steps": 12}, tmp_path / "fork").step == 13
    assert verify(tmp_path / "fork", everything=True).failure is None


def test_runs_are_told_apart_by_their_heads(model: Path, files: dict[str, str], tmp_path: Path) -> None:
    given = values(model, **files)
    train(given, tmp_path / "one")
    train({**given, "calibrate": True}, tmp_path / "other")
    train(given, tmp_path / "again")
    found = diff((tmp_path / "one", None), (tmp_path / "other", None))
    assert (found.equal_steps, found.first_step, found.same) == (8, 9, False)
    assert "calibrate" in found.likely_cause
    different = [one.name for one in found.tensors["the finished model"].different]
    assert different == ["classifier.safetensors/temperature"]
    assert diff((tmp_path / "one", None), (tmp_path / "again", None)).same


@pytest.mark.parametrize("head", [{}, DIFFERENTIABLE], ids=["fitted", "trained"])
def test_a_stop_does_not_wait_until_all_texts_are_encoded(
    head: dict[str, Any], model: Path, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that encodes them is left, nothing is foreseen of it, and it is made later, to the bit."""
    monkeypatch.setattr(batches, "TOKENS", 32)
    asked = values(model, train_data=files["train_data"], **head)
    train(asked, tmp_path / "whole")
    stop, polls = StopRequest(), 0

    def told_poll() -> None:
        nonlocal polls
        polls += 1
        if polls == 3:
            stop.ask("the test")
        poll()

    with monkeypatch.context() as patch:
        patch.setattr(batches, "poll", told_poll)
        ended = carry_out(Request({**asked, "output_dir": str(tmp_path / "run")}), silent, stop)
    boundary = asked["max_steps"]
    assert (ended.step, ended.finished, polls) == (boundary, False, 3)
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()]
    assert records[-1]["kind"] == "stop"
    assert "canary" not in [record["kind"] for record in records]
    assert train(asked, tmp_path / "run").finished
    assert_same_run(tmp_path / "run", tmp_path / "whole")
