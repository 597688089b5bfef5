"""Each kind of bad input gets one line: file, row, cause, next action."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unbroken.base.errors import DataError
from unbroken.plan.source import read_rows

JSON_ADVICE = "write each row as one complete JSON object"
CSV_ADVICE = "put double quotes around fields that contain ',', quotes or line ends"
QUOTE_ADVICE = "close every quoted field, and double the quotes inside it"


def complaint(source: Any, columns: list[str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(source, columns=columns)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 3
    return message


BROKEN = {
    "empty.jsonl": (b"", "empty.jsonl is empty: it has no row of data; give a source with rows"),
    "blank.jsonl": (b"\n \n", "blank.jsonl is empty: it has no row of data; give a source with rows"),
    "empty.json": (b"[]", "empty.json is empty: it has no row of data; give a source with rows"),
    "empty.csv": (b"a,b\n", "empty.csv is empty: it has no row of data; give a source with rows"),
    "empty.csv.gz": (b"", "empty.csv.gz is empty: it has no row of data; give a source with rows"),
    "broken.jsonl": (
        b'{"a": "x"}\n\n{"a": "y" "b"}\n',
        f"broken.jsonl: line 3, column 11: broken JSON; Expecting ',' delimiter; {JSON_ADVICE}",
    ),
    "cut.jsonl": (
        b'{"a": "x"}\n{"a": "y',
        f"cut.jsonl: line 2, column 7: broken JSON; Unterminated string starting at; {JSON_ADVICE}",
    ),
    "two.jsonl": (b'{"a": 1} {"a": 2}', f"two.jsonl: line 1, column 10: broken JSON; Extra data; {JSON_ADVICE}"),
    "broken.json": (
        b'[\n  {"a": "x"},\n  {"a": }\n]',
        f"broken.json: line 3, column 9: broken JSON; Expecting value; {JSON_ADVICE}",
    ),
    "list.jsonl": (b'["x"]\n', 'list.jsonl: line 1 is a list, not an object; write it as {"column": ...}'),
    "number.jsonl": (
        b'{"a": "x"}\n17\n',
        'number.jsonl: line 2 is 17, not an object; write it as {"column": ...}',
    ),
    "null.json": (b'[{"a": 1}, null]', 'null.json: row 2 is null, not an object; write it as {"column": ...}'),
    "latin.jsonl": (
        b'{"a": "x"}\n{"a": "Stra\xdfe"}\n',
        "latin.jsonl: line 2 is not UTF-8 (byte 0xdf at 12); save the file as UTF-8",
    ),
    "latin.csv": (b"a\n\xff\n", "latin.csv: line 2 is not UTF-8 (byte 0xff at 1); save the file as UTF-8"),
    "sixteen.csv": (
        "a\nb\n".encode("utf-16"),
        "sixteen.csv: line 1 is not UTF-8 (byte 0xff at 1); save the file as UTF-8",
    ),
    "few.csv": (b"a,b\n1,2\n3\n", f"few.csv: line 3 has 1 field where the header has 2; {CSV_ADVICE}"),
    "many.csv": (b"a,b\n\n1,2,3\n", f"many.csv: line 3 has 3 fields where the header has 2; {CSV_ADVICE}"),
    "open.csv": (
        b'a,b\n1,"2\n3,4\n',
        f"open.csv: line 2 cannot be split into fields; unexpected end of data; {QUOTE_ADVICE}",
    ),
    "quote.tsv": (
        b'a\tb\n"x" y\tz\n',
        f"quote.tsv: line 2 cannot be split into fields; '\t' expected after '\"'; {QUOTE_ADVICE}",
    ),
    "twice.csv": (b"a,a\n1,2\n", "twice.csv: there are two columns 'a'; rename one of them"),
    "notes.txt": (
        b"hello",
        "notes.txt: this kind of file is not known; use .jsonl, .json, .csv or .tsv (also with .gz), or .parquet",
    ),
    "not.jsonl.gz": (
        b'{"a": 1}',
        "not.jsonl.gz: damaged or cut off, readable up to line 0; Not a gzipped file (b'{\"'); "
        "copy or download the file again",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_explained_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert complaint(tmp_path / name) == message


def test_json_nested_too_deep_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 200_000)
    assert complaint(path).startswith("deep.jsonl: line 1: broken JSON; maximum recursion depth")


def test_a_number_of_too_many_digits_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "digits.jsonl"
    path.write_text('{"a": ' + "1" * 5000 + "}")
    assert complaint(path).startswith("digits.jsonl: line 1: broken JSON; Exceeds the limit")


@pytest.mark.parametrize("lost_bytes", [1, 8, 500])
def test_a_cut_gzip_file_is_explained(lost_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress(b"".join(b'{"a": "%x"}\n' % (number**9) for number in range(500)))
    path.write_bytes(whole[:-lost_bytes])
    message = complaint(path)
    assert message.startswith("cut.jsonl.gz: damaged or cut off, readable up to line ")
    assert message.endswith("; copy or download the file again")


def test_a_damaged_gzip_file_is_explained(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b'{"a": "x"}\n' * 500))
    whole[-6] ^= 1
    path = tmp_path / "flipped.jsonl.gz"
    path.write_bytes(bytes(whole))
    assert "flipped.jsonl.gz: damaged or cut off" in complaint(path)


@pytest.mark.parametrize("keep", [0, 3, 100, -10])
def test_a_damaged_parquet_file_is_explained(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": ["x"] * 100}), path)
    path.write_bytes(path.read_bytes()[:keep])
    message = complaint(path)
    assert message.startswith("rows.parquet: not a whole parquet file; ")
    assert message.endswith("; copy or write it again")


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "debian.train.jsonl.gz").touch()
    missing = tmp_path / "debian.trian.jsonl.gz"
    assert complaint(missing) == f"no file {missing}; did you mean 'debian.train.jsonl.gz'?"
    assert complaint(tmp_path / "zzz") == f"no file {tmp_path / 'zzz'}; correct the path"


def test_a_missing_folder_and_a_folder_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "a.csv"
    assert complaint(path) == f"no file {path}: there is no folder {tmp_path / 'nowhere'}; correct the path"
    assert complaint(tmp_path) == f"{tmp_path} is a folder, not a file; name one file in it"


def test_a_file_that_the_system_refuses_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    expected = f"{path} cannot be read; Permission denied; check the disk and the file's permissions"
    assert complaint(path) == expected


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_a_missing_column_names_those_there_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    match path.suffix:
        case ".csv":
            path.write_text("text,label\nx,y\n")
        case ".parquet":
            pq.write_table(pa.table({"text": ["x"], "label": ["y"]}), path)
        case _:
            path.write_text('[{"text": "x", "label": "y"}]'.strip("[]" if path.suffix == ".jsonl" else ""))
    expected = f"{name}: there is no column 'texts'; the columns are text, label; did you mean 'text'?"
    assert complaint(path, ["label", "texts"]) == expected
    with pytest.raises(DataError, match="no column 'other'; the columns are text, label; name one of these"):
        read_rows(path).texts("other")


def test_a_later_row_without_the_column_is_named() -> None:
    expected = "rows: row 2: there is no column 'b'; the columns are a; name one of these, or add the column"
    assert complaint([{"a": "x", "b": "y"}, {"a": "z"}], ["a", "b"]) == expected


def test_sources_that_are_no_tables_are_explained() -> None:
    advice = "give one split, as in dataset['train'], or a list of its rows"
    splits = type("DatasetDict", (dict,), {"column_names": {"train": ["a"]}})()
    assert complaint(splits) == f"dataset is DatasetDict, which has no rows by number; {advice}"
    assert complaint(17) == "rows cannot be read from int; give a file, a list of objects or a datasets.Dataset"
    assert complaint([]) == "rows is empty: it has no row of data; give a source with rows"
    assert complaint(["x"]) == "rows: row 1 is the text 'x', not an object; write it as {\"column\": ...}"


ADVICE = "correct it or remove the row"


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (float("nan"), "NaN"),
        ({"p": 1}, "an object"),
        (["x"], "a list"),
        (b"x", "a bytes"),
        ("\ud800", "text with half a surrogate pair"),
    ],
)
def test_a_cell_that_is_not_text_is_named(cell: Any, found: str) -> None:
    table = read_rows([{"a": "x"}, {"a": cell}])
    with pytest.raises(DataError) as caught:
        table.texts("a")
    assert str(caught.value) == f"rows: row 2, column 'a' holds {found} where text is expected; {ADVICE}"


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (None, "null"),
        (False, "false"),
        ("x" * 50, f"the text '{'x' * 40}'..."),
        ("nan", "the text 'nan'"),
        ("1e999", "the text '1e999'"),
        (10**400, "1" + "0" * 39),
        ([1], "a list"),
    ],
)
def test_a_cell_that_is_not_a_number_is_named(cell: Any, found: str) -> None:
    table = read_rows([{"a": 1}, {"a": cell}])
    with pytest.raises(DataError) as caught:
        table.numbers("a")
    assert str(caught.value) == f"rows: row 2, column 'a' holds {found} where a finite number is expected; {ADVICE}"


def test_a_cell_that_is_not_a_list_of_texts_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"neg": ["x", "y"]}\n\n{"neg": ["x", null]}\n')
    with pytest.raises(DataError) as caught:
        read_rows(path).text_lists("neg")
    assert str(caught.value) == (
        f"rows.jsonl: line 3, column 'neg', item 2 holds null where text is expected; {ADVICE}"
    )
    with pytest.raises(DataError, match="column 'neg' holds the text 'x' where a list of texts is expected"):
        read_rows([{"neg": "x"}]).text_lists("neg")


@pytest.mark.parametrize("cell", [float("nan"), float("inf"), datetime.date(2026, 1, 1)])
def test_a_cell_without_a_json_form_has_no_digest(cell: Any) -> None:
    with pytest.raises(DataError, match=r"rows: row 2: .* JSON"):
        read_rows([{"a": 1}, {"a": cell}]).digests(["a"])
