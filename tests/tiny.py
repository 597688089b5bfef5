"""A complete sentence-transformers folder, two layers deep and made in code, with dropout on: no download."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

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
    "meadow",
    "lantern",
    "winter",
    "summer",
    "morning",
    "evening",
    "table",
    "chair",
    "bottle",
    "mirror",
    "forest",
    "desert",
    "island",
    "valley",
    "bridge",
    "tower",
    "castle",
    "market",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer(*, special: bool = True) -> Tokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*SPECIAL, *letters, *[f"##{letter}" for letter in letters], *WORDS]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def make_model_folder(folder: Path, *, dropout: float = 0.1, seed: int = 0, special: bool = True) -> Path:
    """Write the folder and return it; the weights depend on `seed` only. Without `special` a word is one token."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(special=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        architectures=["BertModel"],
    )
    config.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    write(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 64})
    return folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows that serve every loss: texts of one to nine words, the first of a single token."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))

    return [
        {
            "anchor": WORDS[i % len(WORDS)],
            "positive": text(),
            "negative": text(),
            "sentence1": text(),
            "sentence2": text(),
            "score": round(draw.random(), 3),
        }
        for i in range(count)
    ]
