"""The demo's data: what is promised of them, of their words and of their bytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from unbroken import demo


def rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_the_files_hold_what_they_should() -> None:
    train, test = rows(demo.train_path()), rows(demo.test_path())
    assert (len(train), len(test)) == (2560, 200)
    assert all(set(row) == {"term", "gloss"} for row in train + test)


@pytest.mark.parametrize("column", ["term", "gloss"])
def test_nothing_occurs_twice(column: str) -> None:
    values = [row[column] for row in rows(demo.train_path()) + rows(demo.test_path())]
    assert len(set(values)) == len(values)


def test_a_gloss_does_not_give_its_term_away() -> None:
    assert [row for row in rows(demo.test_path()) if row["term"] in row["gloss"]] == []


def test_the_archives_carry_no_name_and_no_date() -> None:
    for path in (demo.train_path(), demo.test_path()):
        head = path.read_bytes()[:10]
        assert head[3] == 0, "a flag is set: a name or a comment is stored"
        assert head[4:8] == bytes(4), "a date is stored"


def test_they_are_small_and_carry_their_licence() -> None:
    size = sum(path.stat().st_size for path in (demo.train_path(), demo.test_path()))
    assert size <= 200_000
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in (demo.FOLDER / "NOTICE").read_text("utf-8")
