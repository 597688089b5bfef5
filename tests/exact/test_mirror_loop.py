"""A loop of your own whose machine is lost: the script run again on another one restores it from the mirror."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest
import torch

from tests.exact.runs import assert_same_run
from tests.exact.test_loop import Script, one_cycle
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import CannotContinueError
from unbroken.run.report import Notice


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def script(model: Path, mirror: str | Path, head_seed: int = 0) -> Script:
    options = {"mirror": mirror, "save_steps": 5}
    return Script(model, schedule=one_cycle, own_generator="kept", head_seed=head_seed, options=options)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_lost_after_a_stop(kind: str, model: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror" if kind == "folder" else f"memory://{tmp_path.name}/mirror"
    fsspec.filesystem("memory").makedirs(f"/{tmp_path.name}", exist_ok=True)
    Script(model, schedule=one_cycle, own_generator="kept").run(tmp_path / "whole")
    script(model, mirror).run(tmp_path / "run", stop_after=12)
    shutil.rmtree(tmp_path / "run")
    again = script(model, mirror, head_seed=99)  # another head by chance: the one in the mirror counts
    assert again.run(tmp_path / "run").ended.finished
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert any("restoring it" in event.text for event in again.events if isinstance(event, Notice))
    shutil.rmtree(tmp_path / "run")
    loop = script(model, mirror, head_seed=98).run(tmp_path / "run")  # finished: the tensors come back
    assert loop.ended.finished
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_left_by_break(model: Path, tmp_path: Path) -> None:
    """What was committed before is in the mirror when the loop has been left."""
    first = script(model, tmp_path / "mirror")
    first.run(tmp_path / "run", leave_after=12)
    assert any("holds step 10" in event.text for event in first.events if isinstance(event, Notice))
    shutil.rmtree(tmp_path / "run")
    Script(model, schedule=one_cycle, own_generator="kept").run(tmp_path / "whole")
    assert script(model, tmp_path / "mirror", head_seed=5).run(tmp_path / "run").ended.finished
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_another_loop_is_refused_before_anything_is_copied(model: Path, tmp_path: Path) -> None:
    script(model, tmp_path / "mirror").run(tmp_path / "run", stop_after=5)
    shutil.rmtree(tmp_path / "run")
    changed = script(model, tmp_path / "mirror")
    changed.make = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.5)
    with pytest.raises(CannotContinueError, match=r"the run in the mirror .*weight_decay.*give another mirror"):
        changed.run(tmp_path / "run")
    rows = script(model, tmp_path / "mirror")
    rows.options["data"] = [*make_rows(58)[:-1], make_rows(60)[-1]]
    with pytest.raises(CannotContinueError, match="first row that differs is row 58"):
        rows.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_restart(model: Path, tmp_path: Path) -> None:
    script(model, tmp_path / "mirror").run(tmp_path / "run", stop_after=5)
    anew = script(model, tmp_path / "mirror")
    anew.options["restart"] = True
    assert anew.run(tmp_path / "run").ended.finished
    assert (tmp_path / "before-restart-mirror-0" / "run.json").exists()
    assert (tmp_path / "before-restart-run-0" / "run.json").exists()
    url = f"memory://{tmp_path.name}/objects"
    fsspec.filesystem("memory").makedirs(f"/{tmp_path.name}", exist_ok=True)
    script(model, url).run(tmp_path / "other", stop_after=5)
    anew = script(model, url)
    anew.options["restart"] = True
    with pytest.raises(CannotContinueError, match="give the new run another mirror"):
        anew.run(tmp_path / "other")
