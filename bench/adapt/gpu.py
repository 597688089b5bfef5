"""Random-weight Qwen models for a GPU: what they learn means nothing, what they cost does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

PEAK = 989.4e12  # dense bfloat16 operations per second of an H100 or H200 SXM (NVIDIA's data sheet); MFU refers to it
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# Sizes of the published models (config.json of Qwen2.5-0.5B, Qwen3-1.7B, Qwen2.5-7B).
MODELS: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "qwen3-1.7b": {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "qwen2-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}


def random_model(values: dict[str, Any], tokenizer: Path, folder: Path) -> Path:
    """Write a model of these sizes in bfloat16, its weights drawn from seed 0, with the tokenizer of another folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    own: dict[str, Any] = json.loads((tokenizer / "config.json").read_bytes())
    ends = {key: own[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in own}
    config = AutoConfig.for_model(**values, **ends, max_position_embeddings=32768)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in TOKENIZER:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)
    return folder
