from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny import SPECIAL, WORDS, make_model_folder
from unbroken.base.errors import ConfigError
from unbroken.models.folder import read_folder
from unbroken.models.tokenizing import Tokenizer

CLS, SEP = 2, 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model_folder(tmp_path / "model")


def open_tokenizer(folder: Path, max_length: int = 32) -> Tokenizer:
    return Tokenizer(read_folder(folder), max_length)


def test_special_tokens_are_added_and_nothing_is_padded(folder: Path) -> None:
    rows = open_tokenizer(folder)(["river stone", "", "cloud"]).to_lists()
    assert [len(row) for row in rows] == [4, 2, 3]
    assert all(row[0] == CLS and row[-1] == SEP for row in rows)


def test_truncation_keeps_the_special_tokens(folder: Path) -> None:
    tokenizer = open_tokenizer(folder, max_length=6)
    long, short = tokenizer(["river " * 50, "river"]).to_lists()
    assert (len(long), long[0], long[-1], len(short)) == (6, CLS, SEP, 3)
    assert tokenizer(["river " * 50], max_length=4).lengths.tolist() == [4]
    assert tokenizer(["river " * 50]).lengths.tolist() == [6]


def test_truncation_side_is_the_folders(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"truncation_side": "left"}))
    text = " ".join(WORDS[:10])
    last = open_tokenizer(folder)([WORDS[9]]).to_lists()[0]
    assert open_tokenizer(folder, max_length=3)([text]).to_lists()[0] == last


def test_a_prompt_goes_in_front_and_is_counted(folder: Path) -> None:
    tokenizer = open_tokenizer(folder)
    ragged = tokenizer(["cloud"], prompt="river stone ")
    assert ragged.to_lists() == tokenizer(["river stone cloud"]).to_lists()
    assert ragged.prompt_lengths.tolist() == [3]
    assert tokenizer(["cloud"]).prompt_lengths.tolist() == [0]


def test_lower_casing_asked_for_by_the_folder(folder: Path) -> None:
    definition = json.loads((folder / "tokenizer.json").read_bytes())
    definition["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    plain = open_tokenizer(folder)
    assert plain(["RIVER"]).to_lists() != plain(["river"]).to_lists()
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": True}))
    lower = open_tokenizer(folder)
    assert lower(["RIVER"]).to_lists() == plain(["river"]).to_lists()
    assert lower.digest != plain.digest
    assert lower.hugging_face()(["RIVER"])["input_ids"] == plain(["river"]).to_lists()


def test_no_tokenizer_and_a_damaged_one(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is damaged"):
        open_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer: tokenizer\.json is missing"):
        open_tokenizer(folder)


def test_a_vocabulary_alone_is_converted(folder: Path) -> None:
    expected = open_tokenizer(folder)(["river stone", "x"]).to_lists()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *letters, *[f"##{x}" for x in letters], *WORDS]))
    (folder / "tokenizer.json").unlink()
    assert open_tokenizer(folder)(["river stone", "x"]).to_lists() == expected
