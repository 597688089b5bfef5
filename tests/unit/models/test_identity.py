from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import make_model_folder
from unbroken.base.errors import ConfigError
from unbroken.models.identity import model_digest, tokenizer_digest, weights_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model_folder(tmp_path / "model")


def test_a_copy_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("a card changes nothing")
    assert model_digest(copy) == model_digest(str(folder))
    assert tokenizer_digest(copy) == tokenizer_digest(folder)
    assert weights_bytes(copy) == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "modules.json", "1_Pooling/config.json"])
def test_any_part_makes_another_model(folder: Path, name: str) -> None:
    before = model_digest(folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert model_digest(folder) != before


def test_the_tokenizer_is_what_decides_the_ids(folder: Path) -> None:
    before = tokenizer_digest(folder)
    (folder / "vocab.txt").write_text("unused beside tokenizer.json")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    assert tokenizer_digest(folder) == before
    (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert tokenizer_digest(folder) != before


def test_no_model_is_one_line(tmp_path: Path) -> None:
    for function in (model_digest, tokenizer_digest, weights_bytes):
        with pytest.raises(ConfigError, match="no model folder at"):
            function(tmp_path / "nowhere")


def test_identity_needs_no_torch() -> None:
    program = "import sys, unbroken.models.identity; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
