"""Two machines by turns: one is preempted, another goes on from the mirror, the first comes back with older files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.exact.runs import assert_same_run
from tests.exact.test_embed import values
from tests.exact.test_mirror import Lost, model, target, train, whole
from unbroken.run.report import Began
from unbroken.tasks.verify import verify

__all__ = ["model", "target", "whole"]  # fixtures


@pytest.mark.parametrize("grown_apart", [False, True], ids=["older", "grown apart"])
def test_the_first_machine_comes_back(grown_apart: bool, target: str, whole: Path, model: Path, tmp_path: Path) -> None:
    """The journal comes with the newer checkpoint, so that every step keeps its record; none is thrown away."""
    asked = values(model, mirror=target, save_steps=4)
    train(asked, tmp_path / "a", stop_after=10)
    if grown_apart:  # steps the mirror never heard of
        with pytest.raises(Lost):
            train(values(model, save_steps=50), tmp_path / "a", lose_after=13)
    before = (tmp_path / "a" / "journal.jsonl").read_bytes()
    train(asked, tmp_path / "b", stop_after=20)
    ended, show = train(asked, tmp_path / "a")
    assert ended.finished
    assert show.all(Began)[0].step == 20
    assert ended.proof["missing_steps"] == 0
    kept = list((tmp_path / "a").glob(".earlier-journal*"))
    assert [path.read_bytes() for path in kept] == ([before] if grown_apart else [])
    assert ("is kept as .earlier-journal.jsonl-0" in show.notices) is grown_apart
    assert_same_run(tmp_path / "a", whole)
    assert verify(tmp_path / "a", inputs={"train_data": asked["train_data"]}).failure is None
    shutil.rmtree(tmp_path / "a")
    assert train(asked, tmp_path / "a")[0].proof["missing_steps"] == 0  # the mirror's is whole too
