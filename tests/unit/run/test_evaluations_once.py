from __future__ import annotations

from pathlib import Path

from tests.exact.test_embed import values
from tests.tiny import make_model_folder, make_rows

from unbroken.run.report import Evaluated, Event
from unbroken.run.stop import StopRequest
from unbroken.tasks.train import Request, carry_out


def test_each_evaluation_is_shown_once(tmp_path: Path) -> None:
    seen: list[Event] = []
    asked = values(make_model_folder(tmp_path / "model"), max_steps=4, eval_data=make_rows(8, seed=2), eval_steps=2)
    carry_out(Request(asked | {"output_dir": str(tmp_path / "run")}), seen.append, StopRequest())
    assert [event.step for event in seen if isinstance(event, Evaluated)] == [0, 2, 4]
