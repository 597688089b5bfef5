"""The judge of the fault board: what is a refusal, a crash, exact; and one row of ours in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.faults import outcome, table
from bench.faults.outcome import Outcome
from bench.faults.systems import Ended

OWN_RAISE = """Traceback (most recent call last):
  File "/site-packages/transformers/trainer.py", line 9, in train
    raise ValueError(f"Can't find a valid checkpoint at {path}")
ValueError: Can't find a valid checkpoint at /runs/checkpoint-12
"""
ACCIDENT = """Traceback (most recent call last):
  File "/site-packages/transformers/trainer.py", line 9, in train
    with open(path) as file:
         ^^^^^^^^^^
FileNotFoundError: [Errno 2] No such file or directory: '/runs/checkpoint-12/trainer_state.json'
"""
DEEPER = """Traceback (most recent call last):
  File "/site-packages/transformers/trainer.py", line 9, in train
    torch.load(path)
  File "/site-packages/torch/serialization.py", line 9, in load
    raise RuntimeError("failed finding central directory")
RuntimeError: failed finding central directory
"""


@pytest.mark.parametrize(
    ("code", "text", "refusal"),
    [
        (4, "unbroken: runs/a was started with another configuration\n", True),
        (1, OWN_RAISE, True),
        (1, ACCIDENT, False),
        (1, DEEPER, False),
        (1, "unbroken: internal error: KeyError: 'x'\n", False),
        (1, "", False),
        (-11, "", False),
    ],
)
def test_a_refusal_is_a_message_of_its_own(code: int, text: str, refusal: bool) -> None:
    assert outcome.is_refusal(Ended(code, text, 0.0)) is refusal


def test_a_cell_begins_with_the_worst() -> None:
    found = [Outcome("a", "exact"), Outcome("b", "silently wrong", "distance 0.1"), Outcome("c", "exact")]
    assert table.summary(found, applies=True) == "**silently wrong** 1, **exact** 2<br>b: distance 0.1"
    assert table.summary(None, applies=True) == "not run"
    assert table.summary([], applies=True) == "not run"
    assert table.summary(None, applies=False) == "n/a"


def test_kills_are_told_apart_by_where_they_struck() -> None:
    found = [Outcome("during a save, newest checkpoint 4", "crash", "why"), Outcome("outside a save, ...", "exact")]
    shown = table.summary(found, applies=True)
    assert shown.startswith("outside a save: **exact** 1<br>during a save: **crash** 1<br>during a save, newest")


def test_a_board_can_be_made_in_parts(tmp_path: Path) -> None:
    cells = {("1", "ours"): table.Cell([Outcome("a", "exact", "b")], "2026-01-02 03:04", "abc", 1.5)}
    table.write(tmp_path / "board.md", cells, ["ours", "st"])
    assert table.read(tmp_path / "board.md") == cells
    assert "| **exact** 1<br>b | not run |" in (tmp_path / "board.md").read_text(encoding="utf-8")
    assert table.read(tmp_path / "none.md") == {}


@pytest.mark.slow
def test_a_row_of_ours(tmp_path: Path) -> None:
    """Real processes: exact where nothing happened, refused where the data changed; the judge tells a wrong model."""
    from bench.faults.inputs import make_inputs
    from bench.faults.rows import changes, exact
    from bench.faults.systems import System

    make_inputs(tmp_path)
    system = System("ours", tmp_path)
    try:
        assert [found.kind for found in exact.controls(system)] == ["exact", "exact"]
        assert [found.kind for found in changes.moved_folder(system)] == ["exact"]
        refused = changes.changed_data(system)
        assert {found.kind for found in refused} == {"refuses"}
        assert all(found.remark.endswith("taken back: exact") for found in refused)
        spec = system.stopped()
        other = system.spec(seed=5)
        judged = outcome.conclude(system, spec, "control: compared with another seed", oracle=other)
        assert judged.kind == "silently wrong"
    finally:
        system.server.close()
