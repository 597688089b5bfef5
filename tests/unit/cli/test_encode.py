"""`unbroken encode`: one embedding a line, with the prompt that the model itself would use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.unit.cli.bad_input import Desk

from unbroken.cli.main import run
from unbroken.models.encoder import Encoder
from unbroken.tasks.embed.measure import read_texts

ONE_LINE = "one\u2028line\x0cand\x0bmore\x1c\x85, all\rof it"  # str.splitlines makes seven of it


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"river\nstone\n", ["river", "stone"]),
        (b"river\r\nstone", ["river", "stone"]),
        (b"river\r\r\n", ["river\r"]),
        (f"{ONE_LINE}\ntwo".encode(), [ONE_LINE, "two"]),
        (b"river\n\nstone\n\n", ["river", "", "stone", ""]),
    ],
)
def test_a_line_ends_with_a_line_feed_only(content: bytes, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    assert read_texts(tmp_path / "texts.txt", "text") == lines


def test_the_prompt_is_the_model_s_own_unless_one_is_given(desk: Desk) -> None:
    shutil.copytree(desk.root / "model", desk.root / "prompted")
    settings = {"prompts": {"query": "find the river "}, "default_prompt_name": "query"}
    (desk.root / "prompted" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    (desk.root / "texts.txt").write_text("quiet stone\nbright cloud\n")
    encoder = Encoder.from_pretrained(str(desk.root / "prompted"))
    for given, prompt in (((), "find the river "), (("--prompt", ""), ""), (("--prompt", "garden "), "garden ")):
        assert run(["encode", "prompted", "texts.txt", "-o", "out.npy", *given]) == 0
        expected = encoder.encode(["quiet stone", "bright cloud"], prompt=prompt)
        np.testing.assert_array_equal(np.load(desk.root / "out.npy"), expected)
