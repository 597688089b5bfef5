from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.exact.runs import train
from tests.exact.test_embed import values
from tests.tiny import make_model_folder, make_rows

from unbroken.run.evaluation import Evaluations
from unbroken.run.report import Evaluated, Event
from unbroken.run.stop import StopRequest
from unbroken.store import files
from unbroken.store.journal import read_records
from unbroken.tasks.train import Request, carry_out


def test_each_evaluation_is_shown_once(tmp_path: Path) -> None:
    seen: list[Event] = []
    asked = values(make_model_folder(tmp_path / "model"), max_steps=4, eval_data=make_rows(8, seed=2), eval_steps=2)
    carry_out(Request(asked | {"output_dir": str(tmp_path / "run")}), seen.append, StopRequest())
    assert [event.step for event in seen if isinstance(event, Evaluated)] == [0, 2, 4]


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def die_in_evaluation(monkeypatch: pytest.MonkeyPatch, step: int, kept: bool) -> None:
    """Kill the process in the evaluation after `step`: when its file is half written, or kept but not on record."""
    keep, create = Evaluations._keep, files.create_file

    def dying(self: Evaluations, number: int, *arguments: Any) -> None:
        if number == step and not kept:
            monkeypatch.setattr(files, "create_file", half)
            monkeypatch.setattr(files, "discard", lambda path: None)
        keep(self, number, *arguments)
        if number == step:
            raise Killed

    def half(path: Path, *arguments: Any) -> Any:
        written = create(path, *arguments)
        if path.parent.name != "eval":  # the commit's thread writes too
            return written
        raise Killed

    monkeypatch.setattr(Evaluations, "_keep", dying)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("step", [0, 2, 3, 4])
def test_killed_while_an_evaluation_is_kept(step: int, kept: bool, tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model")
    asked = values(model, max_steps=4, eval_data=make_rows(8, seed=2), eval_steps=1, save_steps=2)
    train(asked, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        die_in_evaluation(patch, step, kept)
        with pytest.raises(Killed):
            train(asked, tmp_path / "killed")
    assert train(asked, tmp_path / "killed").finished
    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "whole")
    assert len(evaluations(tmp_path / "whole")) == 5
    assert not [path for path in (tmp_path / "killed").rglob("*") if path.name.startswith(".tmp-")]


def test_resuming_at_an_evaluated_step_records_nothing_twice(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model")
    asked = values(model, max_steps=4, eval_data=make_rows(8, seed=2), eval_steps=1, save_steps=2)
    train(asked, tmp_path / "run", stop_after=2)
    train(asked, tmp_path / "run", stop_after=2)
    train(asked, tmp_path / "run")
    numbers = [number for number, _ in evaluations(tmp_path / "run")]
    assert numbers == [0, 1, 2, 3, 4]


def evaluations(root: Path) -> list[tuple[int, dict[str, float]]]:
    records = [record for record in read_records(root / "journal.jsonl") if record["kind"] == "evaluation"]
    return [(record["n"], record["metrics"]) for record in records]
