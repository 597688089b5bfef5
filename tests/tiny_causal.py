"""A complete small language model's folder, made in code, and rows to teach it: no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.tiny_chat import make_chat_folder

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = [
    "river",
    "stone",
    "cloud",
    "bright",
    "quiet",
    "engine",
    "paper",
    "window",
    "garden",
    "signal",
    "orange",
    "velvet",
    "copper",
    "harbor",
]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
}


def make_causal_folder(folder: Path, family: str = "qwen3", *, seed: int = 0, template: str | None = CHATML) -> Path:
    """Write a model with random weights that depend on `seed` alone, a tokenizer and a chat template."""
    make_chat_folder(folder, template)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]) + 64
    extra = {"head_dim": 8} if family in ("qwen3", "mistral") else {}
    config = transformers.AutoConfig.for_model(
        family, vocab_size=vocabulary, tie_word_embeddings=True, **SHAPE, **extra
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    return folder


def make_instructions(count: int) -> list[dict[str, Any]]:
    """Return rows of uneven length; the same for the same count."""
    rows = []
    for n in range(count):
        words = [WORDS[(n * 5 + k * (n % 3 + 1)) % len(WORDS)] for k in range(1 + n * 7 % 11)]
        rows.append({"instruction": "Say it backwards.", "input": " ".join(words), "output": " ".join(reversed(words))})
    return rows


def make_labelled(count: int) -> list[dict[str, Any]]:
    """Return texts with entities of two types, as spans."""
    rows = []
    for n in range(count):
        thing, place = WORDS[n % 7], WORDS[7 + n % 6]
        text = f"The {thing} is near the {place} number {n}."
        spans = [
            {"start": text.index(word), "end": text.index(word) + len(word), "type": kind, "text": word}
            for word, kind in ((thing, "thing"), (place, "place"))
        ]
        rows.append({"text": text, "entities": spans[: 1 + n % 2]})
    return rows
