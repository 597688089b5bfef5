"""Runs of two phases verified, compared, forked, and stopped where the first phase has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import train
from tests.exact.test_classify import DIFFERENTIABLE, labelled, values
from tests.tiny import make_model_folder
from unbroken.tasks.diff import diff
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


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    found = [json.loads(path.read_bytes()) for path in sorted((run / "eval").glob("*.json"))]
    return {record["step"]: record["metrics"] for record in found}


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
