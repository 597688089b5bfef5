"""Forks of a run of two phases, models that are not finished, and what is measured around the boundary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.exact.test_classify import DIFFERENTIABLE, labelled, values
from tests.tiny import make_model_folder
from unbroken.base.errors import CannotContinueError, ConfigError
from unbroken.tasks.classify.predict import open_classifier
from unbroken.tasks.fork import fork

BOUNDARY = 4


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    model = make_model_folder(folder / "tiny")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in labelled()), encoding="utf-8")
    return values(model, **DIFFERENTIABLE, train_data=str(rows), save_steps=1, save_total_limit=50)


@pytest.fixture(scope="module")
def run(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "whole"
    train(asked, root)
    return root


def test_a_fork_with_nothing_changed_is_the_run(run: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    for step in (2, BOUNDARY, BOUNDARY + 3):
        fork(f"{run}@{step}", tmp_path / str(step))
        train(asked, tmp_path / str(step))
        assert (tmp_path / str(step) / "model" / "classifier.safetensors").read_bytes() == (
            run / "model" / "classifier.safetensors"
        ).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"head": "logistic_regression"}, {"end_to_end": True}, {"head_learning_rate": 1e-3}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_head_on_the_same_encoder(changes: dict[str, Any], run: Path, tmp_path: Path) -> None:
    """At the boundary the second phase has no state yet: any head may follow."""
    made = fork(f"{run}@{BOUNDARY}", tmp_path / "fork", changes)
    assert made.step == BOUNDARY
    train(
        {"output_dir": str(tmp_path / "fork"), **json.loads((tmp_path / "fork" / "run.json").read_bytes())["config"]},
        tmp_path / "fork",
    )
    body = (tmp_path / "fork" / "model" / "model.safetensors").read_bytes()
    assert (body == (run / "model" / "model.safetensors").read_bytes()) is ("end_to_end" not in changes)


@pytest.mark.parametrize("changes", [{"body_learning_rate": 1e-2}, {"loss": "batch_all_triplet"}, {"max_steps": 9}])
@pytest.mark.parametrize("step", [BOUNDARY, BOUNDARY + 2])
def test_the_first_phase_is_over(changes: dict[str, Any], step: int, run: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotContinueError, match=f"decides the first phase, which is over after step {BOUNDARY}"):
        fork(f"{run}@{step}", tmp_path / "fork", changes)
    assert not (tmp_path / "fork").exists()


def test_a_first_phase_that_would_end_before(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotContinueError, match="the first phase would have 2 steps"):
        fork(f"{run}@3", tmp_path / "fork", {"max_steps": 2})


def test_other_classes_are_another_run(run: Path, tmp_path: Path) -> None:
    rows = tmp_path / "numbers.jsonl"
    numbered = [row | {"label": int(row["label"].removeprefix("class "))} for row in labelled()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in numbered), encoding="utf-8")
    with pytest.raises(CannotContinueError, match=r"labels: content .* a fork keeps it; each row of the head"):
        fork(f"{run}@2", tmp_path / "fork", {"train_data": str(rows)})


@pytest.mark.parametrize("step", [2, BOUNDARY])
def test_a_head_that_is_not_trained_answers_nothing(step: int, run: Path) -> None:
    with pytest.raises(ConfigError, match="its head is not trained yet"):
        open_classifier(run / "checkpoints" / f"{step:08d}")
    assert open_classifier(run / "checkpoints" / f"{BOUNDARY + 1:08d}").predict(["river"])


@pytest.mark.parametrize("head", ["logistic_regression", "differentiable"])
def test_the_boundary_is_measured_like_the_steps_before(head: str, asked: dict[str, Any], tmp_path: Path) -> None:
    """By a head fitted for the moment, not by one that has made no step."""
    more = {"eval_data": labelled(20, seed=1), "eval_steps": 1, "head": head}
    train(asked | more, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()]
    found = {record["n"]: record["metrics"] for record in records if record["kind"] == "evaluation"}
    if head == "logistic_regression":  # what is fitted then is what the next step makes
        assert found[BOUNDARY] == pytest.approx(found[BOUNDARY + 1], abs=1e-5)
    assert found[BOUNDARY]["log_loss"] != pytest.approx(1.0986, abs=1e-3)  # that of a head of zeros
    stopped = tmp_path / "stopped"
    train(asked | more, stopped, stop_after=BOUNDARY)
    train(asked | more, stopped)
    assert_same_run(stopped, tmp_path / "run")


def test_a_mistyped_class_weight_leaves_nothing_behind(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'class 1'"):
        train(asked | {"class_weight": {"clas 1": 3.0}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
