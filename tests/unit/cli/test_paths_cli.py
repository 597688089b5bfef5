"""Folders that are easily mistaken: the working folder as a run, and parts of a run as what to go on from."""

from __future__ import annotations

import pytest
from tests.exact.runs import train
from tests.unit.cli.bad_input import CONFIG, Desk

from unbroken.cli.main import run


@pytest.mark.parametrize("output_dir", [".", "../a", "{root}", "..", "checkpoints/.."])
def test_the_working_folder_is_not_moved_aside(output_dir: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    train({**CONFIG, "max_steps": 1}, desk.root / "runs" / "a")
    inside = desk.root / "runs" / "a" / ("model" if output_dir == ".." else "")
    desk.configure(
        output_dir=output_dir.format(root=inside),
        model=str(desk.root / "model"),
        train_data=str(desk.root / "train.jsonl"),
    )
    monkeypatch.chdir(inside)
    desk.refuses(
        2,
        "--restart would move … aside, the folder this command is given in; change to another folder and give the "
        "run's path as output_dir",
        "train",
        str(desk.root / "c.yaml"),
        "--restart",
    )


def test_a_roundabout_path_is_moved_aside_too(desk: Desk) -> None:
    train({**CONFIG, "max_steps": 1}, desk.root / "runs" / "a")
    desk.configure(output_dir="runs/a/model/..", max_steps=1)
    assert run(["train", "c.yaml", "--restart"]) == 0
    assert sorted(path.name for path in (desk.root / "runs").iterdir()) == ["a", "before-restart-a-0"]


def test_a_run_named_by_a_date(desk: Desk) -> None:
    """Eight digits are a run's name here, not step 20240101."""
    desk.configure(output_dir="runs/20240101")
    train(CONFIG, desk.root / "runs" / "20240101", stop_after=2)
    desk.refuses(
        2,
        "resume_from_checkpoint: runs/20240101/cache is neither the run … nor one of its checkpoints; give …",
        *("train", "c.yaml", "--resume_from_checkpoint", "runs/20240101/cache"),
    )
    assert run(["train", "c.yaml", "--resume_from_checkpoint", "runs/20240101"]) == 0
