"""A small causal model's folder without weights: byte-level tokenizer, special tokens, perhaps a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "List the people and places in the text. Answer with JSON.",
    '{"person": ["Ada Lovelace"], "place": ["London", "Zürich"], "date": []}',
    "What is the weather like in 東京 today? 天気はどうですか",
    "### Instruction:\n### Response:\nHuman: Assistant: user\nassistant\nsystem\n",
    "a a a a a a a a",
    "It is sunny, 25 °C. 🙂🙂 Take care!\n\n\tThanks.  Bye",
]
# As Llama 3's and Qwen's tokenizers have it: line ends stay together whatever follows them.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|im_sep|>",
    "<|end_of_turn|>",
    "<|EOT|>",
    "<human>",
    "<bot>",
    *(f"<reserved_{n}>" for n in (102, 103, 106, 107)),
]


def make_chat_folder(
    folder: Path,
    template: str | list[dict[str, str]] | None = None,
    *,
    eos: str = "<|im_end|>",
    bos: str | None = None,
    special: list[str] = SPECIAL,
    nfc: bool = False,
    metaspace: bool = False,
    **config: Any,
) -> Path:
    """Write config.json and a tokenizer; with `bos` the tokenizer puts it before every text."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(byte_fallback=metaspace, unk_token="<unk>" if metaspace else None))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        alphabet = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        split = pre_tokenizers.Split(Regex(PIECES), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        special_tokens=alphabet,
        initial_alphabet=[] if metaspace else pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    about: dict[str, Any] = {"eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"}
    if bos is not None:
        about["bos_token"] = bos
    if template is not None:
        about["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    values = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, **config}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder
