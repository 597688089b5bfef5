"""`unbroken check`: what it sees in data and configuration, what it refuses as `train` would, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.exact.runs import train
from tests.tiny import WORDS, make_rows
from tests.unit.cli.bad_input import CONFIG, Desk

from unbroken.cli.main import run
from unbroken.store.lock import RunLock


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder below `root`: when it was changed, and its content."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


def checked(desk: Desk, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run `check` with --json; nothing on disk may change."""
    before = tree(desk.root)
    assert run(["check", *arguments, "--json"]) == code
    assert tree(desk.root) == before
    out, err = desk.capfd.readouterr()
    found = json.loads(out)
    assert isinstance(found, dict)
    assert found["exit_code"] == code
    assert len(err.splitlines()) == len(found["problems"])
    return found


def begin(desk: Desk, **changes: Any) -> None:
    """Train the desk's configuration in runs/a and stop after two of its four steps."""
    train({**CONFIG, **changes}, desk.root / "runs" / "a", stop_after=2)


def test_a_sound_configuration(desk: Desk) -> None:
    desk.configure(eval_data="eval.jsonl")
    found = checked(desk, "c.yaml")
    assert found["problems"] == []
    assert found["data.rows"] == 20
    assert found["data.columns"] == {"anchor": "anchor", "positive": "positive", "negative": "negative"}
    assert found["data.first_anchor"] == WORDS[0]
    assert found["lengths.tokens.anchor.p50"] == 3  # [CLS] river [SEP]
    assert found["lengths.tokens.positive.truncated_share"] == 0
    assert (found["steps.steps"], found["steps.steps_per_epoch"]) == (4, 5)
    assert found["duplicates.duplicate_rows"] == 0
    assert found["configuration.seed"] == 42
    assert found["memory.needed_bytes"] > 4 * found["memory.weights_bytes"]
    assert found["disk.needed_bytes"] < found["disk.free_bytes"]


def test_it_is_readable_too(desk: Desk) -> None:
    assert run(["check", "c.yaml"]) == 0
    text = desk.capfd.readouterr().out
    for title in ("configuration", "data", "lengths", "duplicates", "leakage", "steps", "memory", "disk"):
        assert f"\n{title}\n" in f"\n{text}"
    assert "\x1b" not in text


def test_timing_updates_and_writes_nothing(desk: Desk) -> None:
    desk.configure(micro_batch_size=2, loss="triplet")
    found = checked(desk, "c.yaml", "--time")
    assert found["time.step_seconds"] > 0
    assert found["time.steps_measured"] == 4


def test_duplicates_and_false_negatives(desk: Desk) -> None:
    rows = [{"anchor": f"word {i}", "positive": "the same" if i < 3 else f"text {i}"} for i in range(19)]
    desk.write_rows("train.jsonl", [*rows, rows[-1]])
    desk.configure(batch_size=20)
    found = checked(desk, "c.yaml")
    assert found["duplicates.duplicate_rows"] == 1
    assert found["duplicates.repeated_positives"] == 3
    assert found["duplicates.repeated_anchors"] == 1
    assert found["duplicates.batches_with_a_repeated_positive_share"] == 1.0
    assert any("the same positive twice" in text for text in found["warnings"])


def test_a_share_of_batches_is_counted_on_the_batches_that_are_drawn(desk: Desk) -> None:
    rows = [{"anchor": f"word {i}", "positive": f"text {i // 2}" if i < 2 else f"text {i}"} for i in range(20)]
    desk.write_rows("train.jsonl", rows)
    desk.configure(shuffle=False)
    assert checked(desk, "c.yaml")["duplicates.batches_with_a_repeated_positive_share"] == 0.2  # the first of five


def test_negatives_that_are_positives(desk: Desk) -> None:
    rows = make_rows(20)
    rows[3]["negative"] = rows[3]["positive"]
    desk.write_rows("train.jsonl", rows)
    assert checked(desk, "c.yaml")["duplicates.rows_whose_negative_is_their_positive"] == 1
    lists = [{"anchor": "a", "positive": "b", "negative": ["c"] * i + ["b"] * (i == 2)} for i in range(20)]
    desk.write_rows("train.jsonl", lists)
    assert checked(desk, "c.yaml")["duplicates.rows_whose_negative_is_their_positive"] == 1


def test_leakage(desk: Desk) -> None:
    rows = make_rows(20)
    desk.write_rows("eval.jsonl", [rows[0], {"anchor": "new", "positive": rows[1]["positive"], "negative": "newer"}])
    desk.configure(eval_data="eval.jsonl")
    found = checked(desk, "c.yaml")
    assert found["leakage.rows_in_train_data"] == 1
    assert found["leakage.text.anchor.in_train_data"] == 1
    assert found["leakage.text.positive.in_train_data"] == 2
    assert any("metrics will flatter" in text for text in found["warnings"])


def test_truncation(desk: Desk) -> None:
    found = checked(desk, "c.yaml", "--set", "max_length=4")
    assert found["lengths.tokens.positive.truncated_share"] > 0.5
    assert found["lengths.tokens.positive.max"] > 4
    assert any("are cut off after 4 tokens" in text for text in found["warnings"])


@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("batch_sise=3", 2, "did you mean 'batch_size'?"),
        ("model=nowhere/at/all", 2, "nowhere/at"),
        ("max_length=9999", 2, "9999"),
        ("device=cuda:99", 2, "cuda:99"),
        ("columns={anchor: missing}", 3, "missing"),
        ("train_data=trian.jsonl", 3, "did you mean 'train.jsonl'?"),
    ],
)
def test_what_train_would_refuse(desk: Desk, setting: str, code: int, said: str) -> None:
    found = checked(desk, "c.yaml", "--set", setting, code=code)
    assert said in found["problems"][0]


def test_a_folder_in_use_does_not_hide_the_rest(desk: Desk) -> None:
    desk.place({"runs/a/notes.txt": b"mine"})
    found = checked(desk, "c.yaml", code=2)
    assert "holds files (notes.txt) but is no run" in found["problems"][0]
    assert found["data.rows"] == 20


def test_a_run_that_can_go_on(desk: Desk) -> None:
    begin(desk)
    for what in ("c.yaml", "runs/a"):
        found = checked(desk, what)
        assert found["run.state"] == "stopped"
        assert found["run.newest_checkpoint_that_verifies"] == 2
        assert found["run.steps_left"] == 2
        assert found["contract.differences"] == 0
        assert found["environment.changes"] == 0


def test_a_broken_contract(desk: Desk) -> None:
    begin(desk)
    found = checked(desk, "c.yaml", "--set", "learning_rate=0.5", code=4)
    assert "learning_rate: 5e-05 (this run) -> 0.5 (--set)" in found["problems"][0]
    assert found["contract.differing.learning_rate.asked"] == 0.5


def test_changed_data_name_the_row(desk: Desk) -> None:
    begin(desk)
    rows = make_rows(20)
    rows[6]["positive"] = "something else"
    desk.write_rows("train.jsonl", rows)
    found = checked(desk, "c.yaml", code=4)
    assert "the first row that differs is row 7" in found["problems"][0]
    assert found["contract.data_as_recorded"] is False


def test_a_run_that_is_held(desk: Desk) -> None:
    begin(desk)
    with RunLock(desk.root / "runs" / "a"):
        found = checked(desk, "c.yaml", code=75)
        assert "is in use by process" in found["problems"][0]
        checked(desk, "c.yaml", "--set", "learning_rate=0.5", code=4)


def test_broken_checkpoints(desk: Desk) -> None:
    begin(desk, save_steps=1)
    checkpoints = sorted((desk.root / "runs" / "a" / "checkpoints").glob("0*"))
    (checkpoints[-1] / "state.json").write_bytes(b"{}")
    found = checked(desk, "c.yaml")
    assert found["run.newest_checkpoint_that_verifies"] == 1
    assert found["run.steps_to_replay"] == 1
    assert any("state.json" in text for text in found["warnings"])
    for checkpoint in checkpoints:
        (checkpoint / "state.json").write_bytes(b"{}")
    assert "no checkpoint of runs/a verifies" in checked(desk, "c.yaml", code=4)["problems"][0]


def test_a_finished_run(desk: Desk) -> None:
    train(CONFIG, desk.root / "runs" / "a")
    found = checked(desk, "c.yaml")
    assert (found["run.state"], found["run.steps_left"]) == ("finished", 0)
