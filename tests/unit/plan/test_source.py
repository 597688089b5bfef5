"""Reading what is good, and the same rows from every kind of file."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.plan.source import Table, content_digest, first_difference, read_rows

ROWS = [
    {"text": 'Grüße, "Welt"', "label": "a"},
    {"text": "two\nlines, one\r\ncell", "label": "b"},
    {"text": "line separator\u2028inside", "label": ""},
    {"text": "日本語 🎈", "label": "tab\there"},
]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in the kind of file that the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif kind == "json":
            json.dump(list(rows), file, indent=2)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


KINDS = ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "tsv", "tsv.gz", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows_and_digests(kind: str, tmp_path: Path) -> None:
    table = read_rows(write(tmp_path / f"rows.{kind}", ROWS))
    assert table.columns == {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}
    assert table.num_rows == 4
    expected = read_rows(ROWS).digests(["text", "label"])
    assert np.array_equal(table.digests(["text", "label"]), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_wanted_columns_are_kept(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows.{kind}", ROWS)
    assert read_rows(str(path), columns=["label"]).columns == {"label": ["a", "b", "", "tab\there"]}


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("jsonl.gz", ["line 1", "line 2", "line 3", "line 4"]),
        ("csv", ["line 2", "line 3", "line 6", "line 7"]),
        ("json", ["row 1", "row 2", "row 3", "row 4"]),
        ("parquet", ["row 1", "row 2", "row 3", "row 4"]),
    ],
)
def test_a_row_says_where_it_stands(kind: str, places: list[str], tmp_path: Path) -> None:
    rows = [ROWS[0], {"text": "three\n\nlines", "label": "b"}, *ROWS[2:]]
    table = read_rows(write(tmp_path / f"rows.{kind}", rows))
    assert [table.locate(row) for row in range(4)] == [f"rows.{kind}: {place}" for place in places]


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_bytes(b'\xef\xbb\xbf\r\n{"a": "x"}\r\n\r\n  \n{"a": "y"}')
    table = read_rows(lines)
    assert table.columns == {"a": ["x", "y"]}
    assert [table.locate(0), table.locate(1)] == ["rows.jsonl: line 2", "rows.jsonl: line 5"]
    comma = tmp_path / "rows.csv"
    comma.write_bytes(b"\xef\xbb\xbfa,b\r\n\r\n1,2\r\n\r\n3,4\r\n")
    table = read_rows(comma)
    assert table.columns == {"a": ["1", "3"], "b": ["2", "4"]}
    assert [table.locate(0), table.locate(1)] == ["rows.csv: line 3", "rows.csv: line 5"]


def test_a_json_file_may_hold_one_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('{"a": "x"}\n{"a": "y"}\n')
    table = read_rows(path)
    assert table.columns == {"a": ["x", "y"]}
    assert table.locate(1) == "train.json: line 2"


def test_capital_endings_are_known(tmp_path: Path) -> None:
    path = tmp_path / "TRAIN.JSONL"
    path.write_text('{"a": "x"}')
    assert read_rows(path).columns == {"a": ["x"]}


def test_without_wanted_columns_a_lacking_cell_is_none() -> None:
    table = read_rows([{"a": "x"}, {"b": "y"}, {"a": "z", "b": "w"}])
    assert table.columns == {"a": ["x", None, "z"], "b": [None, "y", "w"]}


def test_a_field_may_be_longer_than_the_csv_module_likes(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = write(tmp_path / "long.csv", [{"a": "x" * 200_000}])
    assert read_rows(path).texts("a") == ["x" * 200_000]
    assert csv.field_size_limit() == limit


class FakeDataset:
    @property
    def column_names(self) -> list[str]:
        return ["text", "label"]

    def __getitem__(self, column: str) -> list[str]:
        return [row[column] for row in ROWS]


def test_a_dataset_is_read_by_its_looks() -> None:
    table = read_rows(FakeDataset(), columns=["text"])
    assert table.columns == {"text": [row["text"] for row in ROWS]}
    assert table.locate(3) == "dataset: row 4"
    assert read_rows(FakeDataset(), name="mine").locate(0) == "mine: row 1"


def test_a_real_dataset_gives_plain_values_whatever_its_format() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([{"t": "x", "l": ["p", "q"]}, {"t": "y", "l": []}]).with_format("numpy")
    table = read_rows(dataset)
    assert table.columns == {"t": ["x", "y"], "l": [["p", "q"], []]}
    assert table.text_lists("l") == [["p", "q"], []]


def test_numbers_are_read_from_numbers_and_from_text() -> None:
    table = read_rows([{"s": value} for value in (1, 0.5, "2.5", " -3 ", "1e-3", np.float32(0.25), np.int64(7))])
    assert table.numbers("s").tolist() == [1.0, 0.5, 2.5, -3.0, 0.001, 0.25, 7.0]
    assert table.numbers("s").dtype == np.float64


def test_digests_depend_on_the_used_cells_alone() -> None:
    plain = read_rows([{"a": "x", "b": {"p": 1, "q": 2}}])
    other = read_rows([{"unused": 1, "b": {"q": 2, "p": 1}, "a": "x"}])
    assert plain.digests(["a", "b"]).tolist() == other.digests(["a", "b"]).tolist()
    assert plain.digests(["a", "b"]).tolist() != plain.digests(["b", "a"]).tolist()
    assert plain.digests(["a"]).dtype == np.uint64


def test_cells_do_not_run_into_each_other() -> None:
    rows = [("ab", "c"), ("a", "bc"), ('a","b', "c"), ("a", 'b","c'), ("", "abc"), ("abc", "")]
    digests = Table("t", {"a": [row[0] for row in rows], "b": [row[1] for row in rows]}).digests(["a", "b"])
    assert len(set(digests.tolist())) == len(rows)


def test_the_content_digest_depends_on_every_row_and_on_the_order() -> None:
    digests = np.array([1, 2, 3], dtype=np.uint64)
    others = [digests[::-1], digests[:2], np.array([1, 2, 4], dtype=np.uint64)]
    found = {content_digest(each) for each in (digests, *others)}
    assert len(found) == 4
    assert content_digest(digests.astype(">u8")) == content_digest(digests)


@pytest.mark.parametrize(
    ("old", "new", "row"),
    [
        ([], [], None),
        ([1, 2], [1, 2], None),
        ([1, 2], [1, 3], 1),
        ([1, 2], [1, 2, 3], 2),
        ([1], [], 0),
        ([1], [2, 3], 0),
    ],
)
def test_first_difference(old: list[int], new: list[int], row: int | None) -> None:
    assert first_difference(np.array(old, dtype=np.uint64), np.array(new, dtype=np.uint64)) == row


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT}), min_size=1, max_size=8))
def test_any_text_survives_every_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    expected = read_rows(rows)
    for kind in KINDS:
        table = read_rows(write(folder / f"rows.{kind}", rows))
        assert table.columns == expected.columns
