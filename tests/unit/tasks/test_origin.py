"""Which run and which checkpoint a path means, for `model` and for `resume_from_checkpoint`."""

from __future__ import annotations

from pathlib import Path

import pytest

from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import digest
from unbroken.store.files import DamagedError, FileRecord
from unbroken.store.journal import START
from unbroken.store.manifest import Manifest
from unbroken.store.run import create_run
from unbroken.tasks.origin import parse_run_at, resolve_model
from unbroken.tasks.request import step_asked_for

CHECKPOINT = "checkpoints/00000002"


@pytest.fixture(params=["first", "20240101"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run with a finished model and two checkpoints; a name of eight digits is no step."""
    root = tmp_path / "runs" / str(request.param)
    create_run(root, {"run_id": "abc"})
    for place in ("model/1_Pooling", "cache", f"{CHECKPOINT}/model/1_Pooling", "checkpoints/00000004/model"):
        (root / place).mkdir(parents=True)
    for step in (2, 4):
        manifest = Manifest("abc", step, {}, {}, START)
        (root / "checkpoints" / f"{step:08d}" / "MANIFEST.json").write_bytes(manifest.encode())
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


@pytest.mark.parametrize(
    ("inside", "step"),
    [
        ("", None),
        ("@2", 2),
        ("@00000002", 2),
        ("@0", 0),
        ("/", None),
        ("/@4", 4),
        ("/checkpoints@4", 4),
        (f"/{CHECKPOINT}", 2),
        (f"/{CHECKPOINT}/model", 2),
    ],
)
def test_a_run_at_a_step(run: Path, inside: str, step: int | None) -> None:
    found, at = parse_run_at(f"{run}{inside}")
    assert (found.resolve(), at) == (run.resolve(), step)


def test_a_run_with_an_at_in_its_name(run: Path) -> None:
    renamed = run.rename(run.with_name("first@2"))
    assert parse_run_at(str(renamed)) == (renamed, None)
    assert parse_run_at(f"{renamed}@2") == (renamed, 2)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{run}@", "'' is no number of steps; write it as .*@500"),
        ("{run}@-1", "'-1' is no number of steps"),
        ("{run}@two", "'two' is no number of steps"),
        ("{run}x", "there is no .*; did you mean .*{name}?"),
        ("{run}x@2", "there is no .*; did you mean .*{name}?"),
        ("{run}/..", "is no run .it has no run.json."),
        ("{run}/cache", "neither the run .* nor one of its checkpoints"),
        ("{run}/checkpoints/00000002@4", "names a step twice; write .*@2 or .*@4"),
        ("", "is no run"),
    ],
)
def test_what_is_no_run_at_a_step(text: str, line: str, run: Path) -> None:
    with pytest.raises(ConfigError, match=line.format(name=run.name)):
        parse_run_at(text.format(run=run))


def test_a_model_that_is_not_what_was_written_is_no_origin(run: Path) -> None:
    manifest = Manifest("abc", 2, {"model/config.json": FileRecord(2, digest(b"{}"))}, {}, START)
    (run / CHECKPOINT / "MANIFEST.json").write_bytes(manifest.encode())
    (run / CHECKPOINT / "model" / "config.json").write_bytes(b"{}")
    assert resolve_model(str(run / CHECKPOINT)).parent
    (run / CHECKPOINT / "model" / "config.json").write_bytes(b"[]")
    with pytest.raises(DamagedError, match=r"config\.json does not hold the bytes that were written"):
        resolve_model(str(run / CHECKPOINT))
