"""Packed encoding against the stock padded model: embeddings and every gradient, family by family."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from tiny import make_tokenizer
from unbroken.models.bert import VOCAB_SIZES, Bert
from unbroken.models.encoder import Encoder, EncoderWarning
from unbroken.models.packing import ATTENTION_NAME
from unbroken.models.ragged import Ragged

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = SMALL | {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PACKED: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SMALL, **CALM),
    "bert-relu": lambda: transformers.BertConfig(**SMALL, **CALM, hidden_act="relu"),
    "roberta": lambda: transformers.RobertaConfig(**SMALL, **CALM),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SMALL, **CALM),
    "camembert": lambda: transformers.CamembertConfig(**SMALL, **CALM),
    "mpnet": lambda: transformers.MPNetConfig(**SMALL, **CALM),
    "electra": lambda: transformers.ElectraConfig(**SMALL, **CALM, embedding_size=16),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=97, dim=32, n_layers=2, n_heads=4, hidden_dim=48, dropout=0.0, attention_dropout=0.0
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **SMALL, local_attention=8, global_attn_every_n_layers=2, pad_token_id=0, cls_token_id=1, sep_token_id=2
    ),
    "llama": lambda: transformers.LlamaConfig(**{k: v for k, v in DECODER.items() if k != "head_dim"}),
    "mistral": lambda: transformers.MistralConfig(**DECODER, sliding_window=5),
    "qwen2": lambda: transformers.Qwen2Config(**{k: v for k, v in DECODER.items() if k != "head_dim"}),
    "qwen3": lambda: transformers.Qwen3Config(**DECODER),
}
BUCKETED: dict[str, Callable[[], Any]] = {
    "deberta-v2": lambda: transformers.DebertaV2Config(**SMALL, **CALM, relative_attention=True, type_vocab_size=0),
    "albert": lambda: transformers.AlbertConfig(**SMALL, **CALM, embedding_size=16),
}
LENGTHS = [7, 1, 12, 7, 3, 30, 12, 2, 1, 7]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save_random(folder: Path, config: Any) -> None:
    """Write a model whose every parameter, biases and normalisation included, is random."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))


def load(folder: Path, dtype: torch.dtype) -> Encoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EncoderWarning)
        return Encoder.from_pretrained(folder).to(dtype)


def padded_reference(folder: Path, rows: list[list[int]], dtype: torch.dtype) -> tuple[Tensor, nn.Module]:
    """Return mean-pooled embeddings of the stock model on one right-padded batch."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).to(dtype)
    width = max(map(len, rows))
    ids = torch.tensor([row + [model.config.pad_token_id or 0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    vectors = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.to(dtype)[..., None]
    return (vectors * weights).sum(1) / weights.sum(1), model


def assert_near(actual: Tensor | None, expected: Tensor, tolerance: float, scale: float, what: str) -> None:
    assert actual is not None, what
    assert float((actual - expected).detach().abs().max()) <= tolerance * scale, what


def size(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


def random_rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 97, size=length).tolist() for length in lengths]


def compare(folder: Path, rows: list[list[int]], dtype: torch.dtype, tolerance: float) -> None:
    """Check embeddings and gradients; small gradients are judged by a hundredth of the largest."""
    expected, model = padded_reference(folder, rows, dtype)
    encoder = load(folder, dtype)
    actual = encoder.embed(Ragged.from_lists(rows))
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_near(actual, expected, tolerance, size(expected), "embeddings")
    gradients = {name: parameter.grad for name, parameter in encoder.backbone.model.named_parameters()}
    reference = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name, gradient in gradients.items() if gradient is not None} == set(reference)
    floor = max(map(size, reference.values())) / 100
    for name, gradient in reference.items():
        assert_near(gradients[name], gradient, tolerance, max(size(gradient), floor), name)


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_packed_equals_padded(family: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    save_random(tmp_path, PACKED[family]())
    compare(tmp_path, random_rows(LENGTHS), dtype, tolerance)


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_do_not_see_each_other(family: str, tmp_path: Path) -> None:
    """Order and company make no difference; one row and one token work."""
    save_random(tmp_path, PACKED[family]())
    encoder = load(tmp_path, torch.float64)
    assert encoder.packed
    rows = random_rows(LENGTHS)
    together = encoder.embed(Ragged.from_lists(rows)).detach()
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = encoder.embed(Ragged.from_lists([rows[i] for i in order])).detach()
    assert_near(shuffled, together[torch.from_numpy(order)], 1e-10, size(together), "shuffled")
    for index in (0, 1, 5):
        alone = encoder.embed(Ragged.from_lists([rows[index]])).detach()
        assert_near(alone[0], together[index], 1e-10, size(together), f"row {index} alone")


@pytest.mark.parametrize("family", BUCKETED)
def test_models_that_cannot_be_packed_run_in_buckets(family: str, tmp_path: Path) -> None:
    save_random(tmp_path, BUCKETED[family]())
    with pytest.warns(EncoderWarning) as warned:
        encoder = Encoder.from_pretrained(tmp_path)
    assert not encoder.packed
    assert any("padded buckets" in str(warning.message) for warning in warned)
    compare(tmp_path, random_rows(LENGTHS), torch.float64, 1e-10)


def test_packed_attention_has_no_mask_function() -> None:
    """With one, transformers would build a mask as long as the whole batch, squared."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    assert ATTENTION_NAME not in ALL_MASK_ATTENTION_FUNCTIONS


def test_packed_model_refuses_a_padded_call(tmp_path: Path) -> None:
    save_random(tmp_path, PACKED["qwen3"]())
    encoder = load(tmp_path, torch.float32)
    with pytest.raises(RuntimeError, match="without a pack"):
        encoder.backbone.model(input_ids=torch.tensor([[5, 6], [7, 0]]), attention_mask=torch.tensor([[1, 1], [1, 0]]))


def test_own_defaults_are_transformers(tmp_path: Path) -> None:
    """A config.json that leaves everything out means the same to both."""
    for family, defaults in VOCAB_SIZES.items():
        theirs = transformers.AutoConfig.for_model(family).to_dict()
        with torch.device("meta"):
            ours = Bert({"model_type": family, "num_hidden_layers": 1}).config
        known = {key: value for key, value in ours.items() if key in theirs and key != "num_hidden_layers"}
        assert known == {key: theirs[key] for key in known}, family
        assert ours["vocab_size"] == defaults
