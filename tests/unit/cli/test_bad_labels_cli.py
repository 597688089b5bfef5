"""Labelled texts that nothing can be learned from, or measured on: one line, exit 3, for `train` and for `check`."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.cli.bad_input import Desk

from unbroken.cli.main import run

GOOD = [
    {"text": f"{word} number {i}", "label": label} for i in range(4) for word, label in (("red", "a"), ("sea", "b"))
]
HELD_OUT = [{"text": "red", "label": "a"}, {"text": "sea", "label": "b"}]
SEVERAL = [{"text": "red", "label": ["a"]}, {"text": "sea", "label": ["b", "c"]}]
CORRECT = "correct it or remove the row"

# Rows to train on, rows to evaluate on, what else is configured, and the line.
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any], str]] = {
    "one class only": (
        [{"text": "red", "label": "a"}] * 3,
        HELD_OUT[:1],
        {},
        "train.jsonl: all 3 rows are of one class ('a'); there is nothing to tell apart; add rows of another class",
    ),
    "a class with one example": (
        [*GOOD, {"text": "sun", "label": "c"}],
        [*HELD_OUT, {"text": "moon", "label": "c"}],
        {},
        "train.jsonl: line 9 is the only example of class 'c'; what two texts of a class have in common cannot be "
        "learned from one; add an example of it, or remove the row",
    ),
    "empty text": (
        [*GOOD, {"text": "", "label": "a"}],
        HELD_OUT,
        {},
        f"train.jsonl: line 9, column 'text' holds an empty text; it would be an example of nothing; {CORRECT}",
    ),
    "text of spaces to evaluate on": (
        GOOD,
        [*HELD_OUT, {"text": " \t", "label": "a"}],
        {},
        f"eval.jsonl: line 3, column 'text' holds an empty text; it would be an example of nothing; {CORRECT}",
    ),
    "unknown label to evaluate on": (
        GOOD,
        [*HELD_OUT, {"text": "sun", "label": "sky"}],
        {},
        "eval.jsonl: line 3, column 'label' holds 'sky', which is none of the 2 classes (a, b); it could never be "
        f"predicted; {CORRECT}",
    ),
    "label misspelt to evaluate on": (
        [{**row, "label": {"a": "flight", "b": "hotel"}[row["label"]]} for row in GOOD],
        [{"text": "red", "label": "fligth"}],
        {},
        "eval.jsonl: line 1, column 'label' holds 'fligth', which is none of the 2 classes (flight, hotel); it could "
        "never be predicted; did you mean 'flight'?",
    ),
    "label absent from what is evaluated on": (
        GOOD,
        HELD_OUT[:1],
        {},
        "eval.jsonl has no row of 1 of the classes (b): nothing is measured on them; add such rows, or leave the class "
        "out of train_data too",
    ),
    "more samples than there are": (
        GOOD,
        HELD_OUT,
        {"samples_per_label": 8},
        "train.jsonl: samples_per_label asks for 8 examples of each class, and 'a' has 4 (2 classes have too few); "
        "classes would be drawn unevenly; set samples_per_label to 4 or less, or add examples",
    ),
    "no label": (
        [*GOOD, {"text": "sun", "label": None}],
        HELD_OUT,
        {},
        "train.jsonl: line 9, column 'label' holds null where a label (text or a whole number) is expected; " + CORRECT,
    ),
    "labels of two kinds": (
        [*GOOD, {"text": "sun", "label": 3}],
        HELD_OUT,
        {},
        "train.jsonl: line 9, column 'label' holds 3 where a label like the first ('a') is expected; " + CORRECT,
    ),
}


def lay_out(desk: Desk, case: str) -> str:
    rows, held_out, changes, line = CASES[case]
    desk.write_rows("train.jsonl", rows)
    desk.write_rows("eval.jsonl", held_out)
    own = {"task": "classify", "eval_data": "eval.jsonl", "batch_size": 4}
    desk.configure(**own, **changes)
    return line


@pytest.mark.parametrize("case", CASES)
def test_train(case: str, desk: Desk) -> None:
    line = lay_out(desk, case)
    desk.refuses(3, line)


@pytest.mark.parametrize("case", CASES)
def test_check(case: str, desk: Desk) -> None:
    """It goes on looking, and says the same."""
    line = lay_out(desk, case)
    desk.capfd.readouterr()
    assert run(["check", "c.yaml"]) == 3
    assert desk.capfd.readouterr().err == f"unbroken: {line}\n"


def test_nothing_is_wrong_otherwise(desk: Desk) -> None:
    """The control: the rows that the cases change are sound."""
    for rows, held_out in ((GOOD, HELD_OUT), (SEVERAL * 2, SEVERAL)):
        desk.write_rows("train.jsonl", rows)
        desk.write_rows("eval.jsonl", held_out)
        desk.configure(
            task="classify", eval_data="eval.jsonl", batch_size=4, max_steps=2, output_dir=f"runs/{len(rows)}"
        )
        assert run(["check", "c.yaml"]) == 0
        assert run(["train", "c.yaml"]) == 0
