"""Which run and which checkpoint a path means, for `model` and for `resume_from_checkpoint`."""

from __future__ import annotations

from pathlib import Path

import pytest

from unbroken.base.errors import ConfigError
from unbroken.store.run import create_run
from unbroken.tasks.origin import resolve_model
from unbroken.tasks.train import step_asked_for

CHECKPOINT = "checkpoints/00000002"


@pytest.fixture(params=["first", "20240101"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run with a finished model and two checkpoints; a name of eight digits is no step."""
    root = tmp_path / "runs" / str(request.param)
    create_run(root, {"run_id": "abc"})
    for place in ("model/1_Pooling", "cache", f"{CHECKPOINT}/model/1_Pooling", "checkpoints/00000004/model"):
        (root / place).mkdir(parents=True)
    for step in ("00000002", "00000004"):
        (root / "checkpoints" / step / "MANIFEST.json").write_text("{}")
    (root / "checkpoints" / ".broken-00000006").mkdir()
    return root


@pytest.mark.parametrize(
    ("inside", "step"),
    [
        ("", None),
        ("checkpoints", None),
        ("model", None),
        (CHECKPOINT, 2),
        (f"{CHECKPOINT}/model", 2),
        (f"{CHECKPOINT}/model/1_Pooling", 2),
        (f"{CHECKPOINT}/MANIFEST.json", 2),
    ],
)
def test_what_to_resume_from(run: Path, inside: str, step: int | None) -> None:
    assert step_asked_for(str(run / inside), run) == step


@pytest.mark.parametrize("inside", ["run.json", "cache", "model/1_Pooling", "checkpoints/.broken-00000006"])
def test_anything_else_in_a_run_is_refused(run: Path, inside: str) -> None:
    with pytest.raises(ConfigError, match=r"neither the run .* nor one of its checkpoints"):
        step_asked_for(str(run / inside), run)
    if (run / inside).is_dir():
        with pytest.raises(ConfigError, match=r"neither the run .* nor one of its checkpoints"):
            resolve_model(str(run / inside))


@pytest.mark.parametrize(
    ("inside", "folder", "step"),
    [
        ("", "model", None),
        ("model", "model", None),
        ("checkpoints", "checkpoints/00000004/model", 4),
        (CHECKPOINT, f"{CHECKPOINT}/model", 2),
        (f"{CHECKPOINT}/model", f"{CHECKPOINT}/model", 2),
    ],
)
def test_which_model_is_meant_and_the_parent_it_has(run: Path, inside: str, folder: str, step: int | None) -> None:
    origin = resolve_model(str(run / inside))
    assert Path(origin.model) == run / folder
    assert origin.parent is not None
    assert (origin.parent["run_id"], origin.parent["step"]) == ("abc", step)


def test_an_unfinished_run_has_the_model_of_its_newest_checkpoint(run: Path) -> None:
    (run / "model").rename(run / "cache" / "model")
    origin = resolve_model(str(run))
    assert Path(origin.model) == run / "checkpoints/00000004/model"
    assert origin.parent is not None
    assert origin.parent["step"] == 4
