from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tiny import make_model_folder, make_rows
from unbroken.models.arena import Arena, open_arena
from unbroken.models.folder import read_folder
from unbroken.models.tokenizing import Tokenizer

TEXTS = [row["positive"] for row in make_rows(60)]


class Reader:
    """All an arena needs of an encoder."""

    def __init__(self, folder: Path) -> None:
        self.fast_tokenizer = Tokenizer(read_folder(folder), 32)


@pytest.fixture
def encoder(tmp_path: Path) -> Reader:
    return Reader(make_model_folder(tmp_path / "model"))


def never() -> Sequence[str]:
    raise AssertionError("the texts were read although the arena is there")


def build(cache: Path, encoder: Reader, texts: Sequence[str] = TEXTS, **options: object) -> Arena:
    return open_arena(cache, content="c", texts=lambda: texts, encoder=encoder, **options)


def test_rows_are_what_the_tokenizer_gives(tmp_path: Path, encoder: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbroken.models.arena.BLOCK_TEXTS", 7)
    told: list[tuple[int, int]] = []
    arena = build(tmp_path / "cache", encoder, on_progress=lambda done, total: told.append((done, total)))
    expected = encoder.fast_tokenizer(TEXTS)
    assert len(arena) == len(TEXTS)
    assert arena.lengths.tolist() == expected.lengths.tolist()
    assert arena.ids.dtype == np.int32
    rows = np.array([5, 0, 59, 5])
    assert arena.rows(rows).to_lists() == expected.select(rows).to_lists()
    assert arena.rows(np.zeros(0, np.int64)).to_lists() == []
    assert (told[0], told[-1]) == ((7, 60), (60, 60))


def test_it_is_built_once(tmp_path: Path, encoder: Reader) -> None:
    first = build(tmp_path, encoder)
    again = open_arena(tmp_path, content="c", texts=never, encoder=encoder)
    np.testing.assert_array_equal(again.ids, first.ids)
    assert isinstance(again.ids.base, np.memmap)
    assert not list(tmp_path.glob("*tmp-*"))


def test_the_key_is_content_tokenizer_prompt_and_length(tmp_path: Path, encoder: Reader) -> None:
    build(tmp_path / "cache", encoder)
    for options in ({"prompt": "river "}, {"max_length": 5}):
        assert build(tmp_path / "cache", encoder, **options).ids.size
    open_arena(tmp_path / "cache", content="other", texts=lambda: TEXTS, encoder=encoder)
    encoder.fast_tokenizer.digest = "other"
    build(tmp_path / "cache", encoder)
    assert len(list((tmp_path / "cache").glob("tokens-*"))) == 5


def test_a_prompt_is_counted_in_every_row(tmp_path: Path, encoder: Reader) -> None:
    rows = build(tmp_path, encoder, prompt="river stone ").rows(np.arange(3))
    assert rows.prompt_lengths.tolist() == [3, 3, 3]


@pytest.mark.parametrize("name", ["ids.npy", "offsets.npy", "arena.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_arena_is_rebuilt(tmp_path: Path, encoder: Reader, name: str, damage: str) -> None:
    good = build(tmp_path / "cache", encoder).ids.tolist()
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(bytes(data) if damage == "flip" else bytes(data[:-1]))
    assert build(tmp_path / "cache", encoder).ids.tolist() == good


def test_no_texts_and_empty_texts(tmp_path: Path, encoder: Reader) -> None:
    assert len(build(tmp_path / "a", encoder, [])) == 0
    assert build(tmp_path / "b", encoder, ["", ""]).lengths.tolist() == [2, 2]
