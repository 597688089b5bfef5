"""Files of rows block by block: the same rows and the same messages as when they are read whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unbroken.base.errors import DataError
from unbroken.plan import source
from unbroken.plan.source import read_blocks, read_rows

ROWS: list[dict[str, Any]] = [{"text": f"text {n}", "id": str(n)} for n in range(10)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    match path.name.partition(".")[2]:
        case "jsonl":
            path.write_text(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case "json":
            path.write_text("\n \n" + json.dumps(rows))
        case "lines.json":
            path.write_text("\n" + lines)
        case "csv":
            path.write_text("text,id\n" + "".join(f'"{row["text"]}",{row["id"]}\n' for row in rows))
        case "tsv":
            path.write_text("text\tid\n" + "".join(f"{row['text']}\t{row['id']}\n" for row in rows))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "lines.json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_the_same_rows_and_places_as_read_whole(ending: str, size: int, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows.{ending}", ROWS)
    whole, row = read_rows(path), 0
    for table, inputs in read_blocks(path, size, "text"):
        assert 0 < len(inputs) <= size
        assert table.texts("text") == [values["text"] for values in inputs]
        for place, values in enumerate(inputs):
            assert values == ROWS[row]
            assert table.locate(place) == whole.locate(row)
            row += 1
    assert row == len(ROWS)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json", "parquet"])
def test_a_bad_cell_far_down_is_named_by_its_place(ending: str, tmp_path: Path) -> None:
    rows = [*ROWS[:8], {"text": None, "id": "8"}] if ending != "csv" else ROWS
    path = write(tmp_path / f"rows.{ending}", rows)
    if ending == "csv":
        path.write_text(path.read_text() + "one,too,many\n")
    with pytest.raises(DataError) as whole:
        read_rows(path).texts("text")
    with pytest.raises(DataError) as in_blocks:
        [table.texts("text") for table, _ in read_blocks(path, 3, "text")]
    assert str(in_blocks.value) == str(whole.value)
    assert {"jsonl": "line 9,", "csv": "line 12 ", "json": "row 9,", "parquet": "row 9,"}[ending] in str(whole.value)


def test_only_a_line_feed_ends_a_line_of_text(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("river\u2028stone\x0c\r\n\nend\rof".encode())
    (tmp_path / "texts.txt.gz").write_bytes(gzip.compress((tmp_path / "texts.txt").read_bytes()))
    for name in ("texts.txt", "texts.txt.gz"):
        found = [row for _, rows in read_blocks(tmp_path / name, 2, "body") for row in rows]
        assert found == [{"body": "river\u2028stone\x0c"}, {"body": ""}, {"body": "end\rof"}]


def test_only_the_column_asked_for_is_read_of_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    assert next(read_blocks(path, 2, "text", whole=False))[1] == [{"text": "text 0"}, {"text": "text 1"}]
    with pytest.raises(DataError, match="there is no column 'body'"):
        next(read_blocks(path, 2, "body", whole=False))


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt", "header.csv"])
def test_nothing_in_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("text,id\n" if name.endswith("csv") else "")
    with pytest.raises(DataError, match=f"{name} is empty: it has no row of data"):
        next(read_blocks(tmp_path / name, 4, "text"))


def test_no_more_is_read_than_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third block is broken JSON, and nobody hears of it before it is its turn."""
    path = write(tmp_path / "rows.jsonl", ROWS[:6])
    path.write_text(path.read_text() + "{broken\n")
    read = 0
    real = source.decoded_lines

    def counted(*given: Any) -> Any:
        nonlocal read
        for line in real(*given):
            read += 1
            yield line

    monkeypatch.setattr("unbroken.plan.formats.decoded_lines", counted)
    blocks = read_blocks(path, 3, "text")
    next(blocks)
    assert read == 3
    next(blocks)
    with pytest.raises(DataError, match="line 7"):
        next(blocks)
