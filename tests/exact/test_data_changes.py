"""The rows of a run, changed in every way: refused where they say something else, taken for the same where not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.exact.test_contract_fields import everything
from tests.tiny import WORDS, make_model_folder
from unbroken.base.errors import CannotContinueError, DataError

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {
        "anchor": f"stone {word}",
        "positive": f"{word}, \N{LATIN SMALL LETTER E WITH ACUTE}\N{PARTY POPPER} river",
        "id": i,
    }
    for i, word in enumerate(WORDS[:11])
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "embed",
        "model": str(model),
        "train_data": str(data),
        "batch_size": 4,
        "max_steps": 6,
        "threads": 1,
    } | changes


def lines(rows: Rows, **how: Any) -> bytes:
    return "".join(json.dumps(row, **how) + "\n" for row in rows).encode()


def table(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: Rows) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    buffer = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `data.jsonl`, of the run `whole` and of the run `midway`, stopped after three of six steps."""
    root = tmp_path_factory.mktemp("runs")
    (root / "data.jsonl").write_bytes(lines(ROWS))
    train(values(model, root / "data.jsonl"), root / "whole")
    train(values(model, root / "data.jsonl"), root / "midway", stop_after=3)
    return root


@pytest.fixture
def desk(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs / "midway", tmp_path / "run", symlinks=True)
    shutil.copy2(runs / "data.jsonl", tmp_path / "data.jsonl")
    return tmp_path


def edited(number: int, **change: Any) -> Rows:
    return [*ROWS[:number], {**ROWS[number], **change}, *ROWS[number + 1 :]]


OTHER: dict[str, tuple[Rows, int]] = {
    "a row edited": (edited(4, positive="something else"), 5),
    "the last row edited": (edited(10, anchor="x"), 11),
    "a letter in another case": (edited(2, anchor=ROWS[2]["anchor"].upper()), 3),
    "a space at the end": (edited(2, anchor=ROWS[2]["anchor"] + " "), 3),
    "the same letter, decomposed": (edited(2, positive=ROWS[2]["positive"].replace("\u00e9", "e\u0301")), 3),
    "two columns exchanged in a row": (edited(7, anchor=ROWS[7]["positive"], positive=ROWS[7]["anchor"]), 8),
    "a row appended": ([*ROWS, {"anchor": "a", "positive": "b"}], 12),
    "a row put in front": ([{"anchor": "a", "positive": "b"}, *ROWS], 1),
    "a row removed": ([*ROWS[:6], *ROWS[7:]], 7),
    "the last row removed": (ROWS[:-1], 11),
    "a row doubled": ([*ROWS[:3], ROWS[2], *ROWS[3:]], 4),
    "two rows in another order": ([*ROWS[:8], ROWS[9], ROWS[8], ROWS[10]], 9),
    "all rows in another order": (ROWS[::-1], 1),
    "other rows under the same path": ([{"anchor": f"a {i}", "positive": f"b {i}"} for i in range(11)], 1),
}


@pytest.mark.parametrize("case", OTHER)
def test_other_rows_are_refused_by_the_first_that_differs(case: str, model: Path, desk: Path, runs: Path) -> None:
    rows, first = OTHER[case]
    (desk / "data.jsonl").write_bytes(lines(rows))
    before = everything(desk / "run")
    with pytest.raises(CannotContinueError) as refusal:
        train(values(model, desk / "data.jsonl"), desk / "run", origins={"train_data": "c.yaml"})
    counts = f"{len(ROWS)} rows then, {len(rows)} now (c.yaml)"
    assert f"{counts}; the first row that differs is row {first};" in str(refusal.value)
    assert refusal.value.exit_code == 4
    assert everything(desk / "run") == before, "something on disk was touched"
    (desk / "data.jsonl").write_bytes(lines(ROWS))  # put back: nothing was lost by asking
    assert train(values(model, desk / "data.jsonl"), desk / "run").finished
    assert_same_run(desk / "run", runs / "whole")


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(desk: Path) -> Path:
        (desk / name).parent.mkdir(exist_ok=True)
        (desk / name).write_bytes(content)
        return desk / name

    return write


def touched(desk: Path) -> Path:
    os.utime(desk / "data.jsonl", (0, 0))
    return desk / "data.jsonl"


def linked(desk: Path) -> Path:
    (desk / "link.jsonl").symlink_to(desk / "data.jsonl")
    return desk / "link.jsonl"


SAME: dict[str, Callable[[Path], Path]] = {
    "only its time": touched,
    "another path": written("elsewhere/rows.jsonl", lines(ROWS)),
    "through a link": linked,
    "packed": written("data.jsonl.gz", gzip.compress(lines(ROWS))),
    "letters for escapes": written("data.jsonl", lines(ROWS, ensure_ascii=False)),
    "keys in another order": written("data.jsonl", lines([dict(reversed(row.items())) for row in ROWS])),
    "spaces": written("data.jsonl", lines(ROWS, separators=(" ,  ", " : "))),
    "no spaces": written("data.jsonl", lines(ROWS, separators=(",", ":"))),
    "line ends of another system": written("data.jsonl", lines(ROWS).replace(b"\n", b"\r\n")),
    "no line end at the end": written("data.jsonl", lines(ROWS).removesuffix(b"\n")),
    "a column nobody reads": written("data.jsonl", lines([{**row, "id": 7, "note": "new"} for row in ROWS])),
    "one JSON list": written("data.json", json.dumps(ROWS, indent=2).encode()),
    "a table": written("data.csv", table(ROWS)),
    "a table with tabs": written("data.tsv", table(ROWS, "\t")),
    "parquet": written("data.parquet", parquet(ROWS)),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_rows_are_the_same_run(case: str, model: Path, desk: Path, runs: Path) -> None:
    path = SAME[case](desk)
    assert train(values(model, path), desk / "run").finished
    assert_same_run(desk / "run", runs / "whole")


def test_a_renamed_column(model: Path, desk: Path, runs: Path) -> None:
    """Under its new name alone it is missing; said which one it is, the data are the same."""
    rows = [{"term": row["anchor"], "positive": row["positive"]} for row in ROWS]
    (desk / "data.jsonl").write_bytes(lines(rows))
    before = everything(desk / "run")
    with pytest.raises(DataError, match=r"has no column 'anchor' \(for anchor\); it has term, positive"):
        train(values(model, desk / "data.jsonl"), desk / "run")
    with pytest.raises(CannotContinueError, match="the training data are not those"):
        train(values(model, desk / "data.jsonl", columns={"anchor": "positive", "positive": "term"}), desk / "run")
    assert everything(desk / "run") == before
    assert train(values(model, desk / "data.jsonl", columns={"anchor": "term"}), desk / "run").finished
    assert_same_run(desk / "run", runs / "whole")


def test_a_column_that_gets_a_role_is_another_run(model: Path, desk: Path) -> None:
    """A `negative` that was not there is read by this loss as soon as it is."""
    (desk / "data.jsonl").write_bytes(lines([{**row, "negative": "stone"} for row in ROWS]))
    with pytest.raises(CannotContinueError, match="the first row that differs is row 1"):
        train(values(model, desk / "data.jsonl"), desk / "run")


@pytest.mark.parametrize("left", [None, b"", b"1234567"])
def test_without_the_digests_the_row_cannot_be_named(left: bytes | None, model: Path, desk: Path) -> None:
    """It is refused all the same: `data.digests` only helps to say why."""
    (desk / "run" / "data.digests").unlink()
    if left is not None:
        (desk / "run" / "data.digests").write_bytes(left)
    (desk / "data.jsonl").write_bytes(lines(ROWS[::-1]))
    with pytest.raises(CannotContinueError, match="the training data are not those"):
        train(values(model, desk / "data.jsonl"), desk / "run")
