"""Every mistake in rows and in model folders: one line with file, row, cause and next action, nothing written."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from tests.tiny import make_rows
from tests.unit.cli.bad_input import Desk

CORRECT = "correct it or remove the row"
GOOD = b'{"anchor": "a", "positive": "b"}\n'
PACKED = gzip.compress(GOOD * 5000)

# The name and content of the file of rows, what else is configured, and the line.
DATA: dict[str, tuple[str, bytes | None, dict[str, Any], str]] = {
    "not there": ("rows.jsonl", None, {}, "no file rows.jsonl; did you mean 'train.jsonl'?"),
    "name misspelt": ("trian.jsonl", None, {}, "no file trian.jsonl; did you mean 'train.jsonl'?"),
    "folder not there": (
        "data/rows.jsonl",
        None,
        {},
        "no file data/rows.jsonl: there is no folder data; correct the path",
    ),
    "a folder": ("runs", None, {}, "runs is a folder, not a file; name one file in it"),
    "empty": ("rows.jsonl", b"", {}, "rows.jsonl is empty: it has no row of data; give a source with rows"),
    "only a header": (
        "rows.csv",
        b"anchor,positive\n",
        {},
        "rows.csv is empty: it has no row of data; give a source with rows",
    ),
    "broken JSON": (
        "rows.jsonl",
        GOOD + b'{"anchor": "a" "positive"}\n',
        {},
        "rows.jsonl: line 2, column 16: broken JSON; Expecting ',' delimiter; write each row as "
        "one complete JSON object",
    ),
    "a row that is a list": (
        "rows.jsonl",
        GOOD + b'["a", "b"]\n',
        {},
        'rows.jsonl: line 2 is a list, not an object; write it as {"column": ...}',
    ),
    "column missing": (
        "rows.jsonl",
        b'{"anchor": "a", "answer": "b"}\n',
        {},
        "rows.jsonl has no column 'positive' (for positive); it has anchor, answer; say which "
        "column it is: `columns: {positive: ...}`",
    ),
    "column named wrong": (
        "rows.jsonl",
        GOOD,
        {"columns": {"anchor": "ancor"}},
        "rows.jsonl has no column 'ancor' (for anchor); it has anchor, positive; say which "
        "column it is: `columns: {anchor: anchor}`",
    ),
    "column missing in one row": (
        "rows.jsonl",
        GOOD + b'{"anchor": "a"}\n',
        {},
        "rows.jsonl: line 2, column 'positive' holds null where text is expected; " + CORRECT,
    ),
    "null": (
        "rows.jsonl",
        GOOD + b'{"anchor": null, "positive": "b"}\n',
        {},
        "rows.jsonl: line 2, column 'anchor' holds null where text is expected; " + CORRECT,
    ),
    "a number for text": (
        "rows.jsonl",
        GOOD + b'{"anchor": "a", "positive": 3}\n',
        {},
        "rows.jsonl: line 2, column 'positive' holds 3 where text is expected; " + CORRECT,
    ),
    "half a character": (
        "rows.jsonl",
        GOOD + b'{"anchor": "\\ud800", "positive": "b"}\n',
        {},
        "rows.jsonl: line 2, column 'anchor' holds text with half a surrogate pair where text is expected; " + CORRECT,
    ),
    "not UTF-8": (
        "rows.jsonl",
        GOOD + b'{"anchor": "\xff", "positive": "b"}\n',
        {},
        "rows.jsonl: line 2 is not UTF-8 (byte 0xff at 13); save the file as UTF-8",
    ),
    "fields missing": (
        "rows.csv",
        b"anchor,positive\na,b\nc\n",
        {},
        "rows.csv: line 3 has 1 field where the header has 2; put double quotes around fields "
        "that contain ',', quotes or line ends",
    ),
    "quote left open": (
        "rows.csv",
        b'anchor,positive\n"a,b\n',
        {},
        "rows.csv: line 2 cannot be split into fields; unexpected end of data; close every "
        "quoted field, and double the quotes inside it",
    ),
    "a column twice": (
        "rows.csv",
        b"anchor,anchor\na,b\n",
        {},
        "rows.csv: there are two columns 'anchor'; rename one of them",
    ),
    "unknown kind": (
        "rows.txt",
        b"a\tb\n",
        {},
        "rows.txt: this kind of file is not known; use .jsonl, .json, .csv or .tsv (also with .gz), or .parquet",
    ),
    "no kind": (
        "rows",
        b"a\tb\n",
        {},
        "rows: this kind of file is not known; use .jsonl, .json, .csv or .tsv (also with .gz), or .parquet",
    ),
    "gz that is none": (
        "rows.jsonl.gz",
        GOOD,
        {},
        "rows.jsonl.gz: damaged or cut off, readable up to line 0; Not a gzipped file (b'{\"'); "
        "copy or download the file again",
    ),
    "gz cut off": (
        "rows.jsonl.gz",
        PACKED[: len(PACKED) // 2],
        {},
        "rows.jsonl.gz: damaged or cut off, readable up to line 0; Compressed file ended before "
        "the end-of-stream marker was reached; copy or download the file again",
    ),
    "parquet that is none": (
        "rows.parquet",
        GOOD,
        {},
        "rows.parquet: not a whole parquet file; Parquet magic bytes not found in footer. Either "
        "the file is corrupted or this is not a parquet file.; copy or write it again",
    ),
    "score as text": (
        "rows.jsonl",
        b'{"sentence1": "a", "sentence2": "b", "score": "good"}\n',
        {"loss": "cosent"},
        "rows.jsonl: line 1, column 'score' holds the text 'good' where a finite number is expected; " + CORRECT,
    ),
    "score NaN": (
        "rows.jsonl",
        b'{"sentence1": "a", "sentence2": "b", "score": NaN}\n',
        {"loss": "cosent"},
        "rows.jsonl: line 1, column 'score' holds NaN where a finite number is expected; " + CORRECT,
    ),
    "score true": (
        "rows.jsonl",
        b'{"sentence1": "a", "sentence2": "b", "score": true}\n',
        {"loss": "cosent"},
        "rows.jsonl: line 1, column 'score' holds true where a finite number is expected; " + CORRECT,
    ),
    "two negatives for a triplet": (
        "rows.jsonl",
        b'{"anchor": "a", "positive": "b", "negative": ["c"]}\n'
        b'{"anchor": "a", "positive": "b", "negative": ["c", "d"]}\n',
        {"loss": "triplet"},
        "rows.jsonl: line 2, column 'negative' holds 2 negatives; the triplet loss needs exactly "
        "one per row; split the row, or use multiple_negatives_ranking, which takes any number",
    ),
    "fewer than a batch with drop_last": (
        "rows.jsonl",
        GOOD,
        {"drop_last": True},
        "1 examples are fewer than one batch of 4; with drop_last an epoch would have no step; "
        "set batch_size to 1 or less, or drop_last to false",
    ),
    "no negative for a triplet": (
        "rows.jsonl",
        GOOD,
        {"loss": "triplet"},
        "rows.jsonl has no column 'negative' (for negative); it has anchor, positive; say which "
        "column it is: `columns: {negative: ...}`",
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_rows_to_train_on(case: str, desk: Desk) -> None:
    name, content, changes, line = DATA[case]
    (desk.root / "runs").mkdir()
    if content is not None:
        desk.place({name: content})
    desk.configure(train_data=name, **changes)
    desk.refuses(3, line)


@pytest.mark.parametrize(
    ("rows", "changes", "line"),
    [
        (
            [{"anchor": "a", "answer": "b"}],
            {},
            "held-out.jsonl has no column 'positive' (for positive); it has anchor, answer; say "
            "which column it is: `columns: {positive: ...}`",
        ),
        (
            [{"anchor": "a", "positive": None}],
            {},
            "held-out.jsonl: line 1, column 'positive' holds null where text is expected; " + CORRECT,
        ),
        (
            make_rows(1) * 3,
            {"loss": "cosent"},
            "held-out.jsonl: all scores are equal; a correlation with them is not defined; give "
            "eval_data with at least two different scores",
        ),
        (None, {}, "no file held-out.jsonl; did you mean 'eval.jsonl'?"),
    ],
)
def test_rows_to_evaluate_on(rows: list[dict[str, Any]] | None, changes: dict[str, Any], line: str, desk: Desk) -> None:
    """Found before the first step, not hours later."""
    if rows is not None:
        desk.write_rows("held-out.jsonl", rows)
    desk.configure(eval_data="held-out.jsonl", **changes)
    desk.refuses(3, line)


def broken_model(desk: Desk, **files: bytes | None) -> None:
    """Make `broken/` a copy of the model with other files: `name=content`, None for none."""
    source = (desk.root / "model").resolve()
    for path in sorted(source.rglob("*")):
        if path.is_file():
            desk.place({f"broken/{path.relative_to(source)}": path.read_bytes()})
    for name, content in files.items():
        (desk.root / "broken" / name).unlink(missing_ok=True)
        if content is not None:
            desk.place({f"broken/{name}": content})


CONFIG_OF_NO_MODEL = json.dumps({"model_type": "gpt-17", "hidden_size": 4}).encode()
MODELS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no weights": ({"model.safetensors": None}, "broken has no weights: model.safetensors is missing…"),
    "weights in pickle": (
        {"model.safetensors": None, "pytorch_model.bin": b"PK"},
        "broken has its weights only as pytorch_model.bin, which can run code when loaded; "
        "convert it: load it with transformers and save_pretrained() it…",
    ),
    "weights cut off": (
        {"model.safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00{"},
        "weights file broken/model.safetensors is damaged…",
    ),
    "weights empty": ({"model.safetensors": b""}, "weights file broken/model.safetensors is damaged…"),
    "tokenizer damaged": ({"tokenizer.json": b'{"version": '}, "broken/tokenizer.json is damaged…"),
    "no tokenizer": ({"tokenizer.json": None}, "broken has no tokenizer: tokenizer.json is missing…"),
    "config damaged": ({"config.json": b"{"}, "broken/config.json is damaged…"),
    "no config": ({"config.json": None}, "broken: config.json is missing…"),
    "config of an unknown model": (
        {"config.json": CONFIG_OF_NO_MODEL},
        "broken/config.json: transformers cannot build this model: Unrecognized model identifier: gpt-17…",
    ),
    "modules damaged": ({"modules.json": b"[{"}, "broken/modules.json is damaged…"),
    "unknown module": (
        {"modules.json": b'[{"type": "my.Module", "path": ""}]'},
        "broken/modules.json: module 'my.Module' is not supported; supported are Transformer, "
        "Pooling, Dense, Normalize…",
    ),
    "nothing": (
        dict.fromkeys(["modules.json", "config.json"]),
        "broken is not a model folder: it holds neither modules.json nor config.json…",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_folder(case: str, desk: Desk) -> None:
    files, line = MODELS[case]
    broken_model(desk, **files)
    desk.configure(model="broken")
    desk.refuses(2, line)
