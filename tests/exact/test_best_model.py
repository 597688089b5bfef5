"""The model an evaluation chose survives every stop too, and what chooses it belongs to the contract."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.exact.test_embed import values
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import CannotContinueError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def choosing(model: Path, **changes: Any) -> dict[str, Any]:
    """At this rate the training rows are learned by heart: the best step on others is not the last one."""
    best = {"eval_data": make_rows(20, seed=3), "eval_steps": 4, "load_best_model_at_end": True}
    return values(model, learning_rate=2e-2, **best) | changes


def test_the_best_step_is_kept_through_every_stop(model: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    train(choosing(model), whole)
    finish = (whole / "journal.jsonl").read_text().splitlines()[-1]
    assert '"best":' in finish
    assert '"best":30,' not in finish, "the last step is the best: the test shows nothing"
    for last in (1, 4, 5, 8, 13, 20, 28, 29):
        stopped = tmp_path / f"stopped-after-{last}"
        train(choosing(model), stopped, stop_after=last)
        assert train(choosing(model), stopped).finished
        assert_same_run(stopped, whole)


@pytest.mark.parametrize("change", [{"eval_steps": 8}, {"eval_data": make_rows(21, seed=3)}], ids=["steps", "data"])
def test_another_way_to_choose_is_another_run(change: dict[str, Any], model: Path, tmp_path: Path) -> None:
    train(choosing(model), tmp_path / "run", stop_after=5)
    with pytest.raises(CannotContinueError, match=r"eval_(steps|data)"):
        train(choosing(model, **change), tmp_path / "run")


def test_a_finished_run_needs_its_inputs_no_more(model: Path, tmp_path: Path) -> None:
    gone = tmp_path / "model"
    shutil.copytree(model, gone)
    train(values(gone), tmp_path / "run")
    shutil.rmtree(gone)
    assert train(values(gone), tmp_path / "run").finished
    with pytest.raises(CannotContinueError, match="seed"):
        train(values(model, seed=9), tmp_path / "run")
