"""BERT and its nearest relatives, packed: our own modules under Hugging Face's names.

Importing transformers' modelling code takes over two seconds, most of a short run and of every restart; these few
modules need torch alone. Covered: BERT (MiniLM, BGE, E5, GTE), RoBERTa, XLM-RoBERTa, CamemBERT and MPNet, the last
with its relative position bias (which transformers cannot run unpadded). tests/pairs compares them with theirs.

Shape suffixes: T tokens of all texts, D hidden size, H heads; in one run, texts of L tokens each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbroken.models.dropout import Dropout
from unbroken.models.linear import Linear
from unbroken.models.lookup import Lookup
from unbroken.models.packing import Pack, attend

# The name in front of every tensor in files of these families' larger models, such as masked language models.
PREFIXES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "mpnet": "mpnet",
}
# These count positions from padding_idx + 1, as fairseq did.
OFFSET_FAMILIES = {"roberta", "xlm-roberta", "camembert", "mpnet"}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}
# transformers' defaults for what a config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "relative_attention_num_buckets": 32,
}
VOCAB_SIZES = {"bert": 30522, "roberta": 50265, "xlm-roberta": 30522, "camembert": 30522, "mpnet": 30527}

MAX_DISTANCE = 128


def covers(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration describes a model that `Bert` computes."""
    return (
        config.get("model_type") in PREFIXES
        and config.get("hidden_act", "gelu") in ACTIVATIONS
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and not config.get("quantization_config")
    )


class Bert(nn.Module):
    """Token ids to token vectors, all texts of a batch in one sequence.

    Parameters are named as in Hugging Face's base model (without a pooler), and `config` holds its configuration.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        family = str(config["model_type"])
        defaults = DEFAULTS | {
            "vocab_size": VOCAB_SIZES[family],
            "pad_token_id": 1 if family in OFFSET_FAMILIES else 0,
        }
        self.config: dict[str, Any] = defaults | {key: value for key, value in config.items() if value is not None}
        self.embeddings = Embeddings(self.config)
        self.encoder = Layers(self.config)

    def get_input_embeddings(self) -> Lookup:
        """Return the table of token vectors; the name is Hugging Face's."""
        return self.embeddings.word_embeddings

    def forward(self, ids_T: Tensor, pack: Pack) -> Tensor:
        """Return the token vectors [T, D]."""
        vectors_TD: Tensor = self.encoder(self.embeddings(ids_T, pack.positions), pack)
        return vectors_TD


class Embeddings(nn.Module):
    """What each token is and where it stands; every token is of type 0, as single texts' are."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        family, width, pad = config["model_type"], config["hidden_size"], config["pad_token_id"]
        padding = 1 if family == "mpnet" else pad
        offset = family in OFFSET_FAMILIES
        self.first_position = padding + 1 if offset else 0
        vocabulary = torch.empty(config["vocab_size"], width)
        self.word_embeddings = Lookup(config["vocab_size"], width, padding, vocabulary)
        self.position_embeddings = table(config["max_position_embeddings"], width, padding if offset else None)
        self.token_type_embeddings = None if family == "mpnet" else table(config["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.dropout = Dropout(config["hidden_dropout_prob"])

    def forward(self, ids_T: Tensor, positions_T: Tensor) -> Tensor:
        """Return the input of the first layer, [T, D]."""
        vectors_TD = self.word_embeddings(ids_T)
        if self.token_type_embeddings is not None:
            vectors_TD = vectors_TD + self.token_type_embeddings.weight[0]
        vectors_TD = vectors_TD + self.position_embeddings(positions_T + self.first_position)
        embedded_TD: Tensor = self.dropout(self.LayerNorm(vectors_TD))
        return embedded_TD


class Layers(nn.Module):
    """The stack of layers and, for MPNet, the relative position bias they share."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.relative_attention_bias = None
        if config["model_type"] == "mpnet":
            buckets, heads = config["relative_attention_num_buckets"], config["num_attention_heads"]
            self.relative_attention_bias = table(buckets, heads)

    def forward(self, vectors_TD: Tensor, pack: Pack) -> Tensor:
        """Return the output of the last layer, [T, D]."""
        biases = None
        if self.relative_attention_bias is not None:
            biases = [self.bias(length, vectors_TD.device) for _, length in pack.runs]
        for layer in self.layer:
            vectors_TD = layer(vectors_TD, pack, biases)
        return vectors_TD

    def bias(self, length: int, device: torch.device) -> Tensor:
        """Return what is added to the scores of texts of `length` tokens: [H, L, L]."""
        assert self.relative_attention_bias is not None
        bias_LLH: Tensor = self.relative_attention_bias(relative_buckets(length, device))
        return bias_LLH.permute(2, 0, 1)


class Layer(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual and normalisation."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.attention = MPNetAttention(config) if config["model_type"] == "mpnet" else Attention(config)
        self.intermediate = Inner(config)
        self.output = Joined(config["intermediate_size"], config)

    def forward(self, vectors_TD: Tensor, pack: Pack, biases: Sequence[Tensor] | None) -> Tensor:
        """Return the layer's output, [T, D]."""
        attended_TD = self.attention(vectors_TD, pack, biases)
        joined_TD: Tensor = self.output(self.intermediate(attended_TD), attended_TD)
        return joined_TD


class Inner(nn.Module):
    """The wide middle of the feed-forward part."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.dense = Linear(config["hidden_size"], config["intermediate_size"])
        self.activation = ACTIVATIONS[config["hidden_act"]]

    def forward(self, vectors_TD: Tensor) -> Tensor:
        """Return the activated projection, [T, intermediate]."""
        return self.activation(self.dense(vectors_TD))


class Joined(nn.Module):
    """A projection back to the hidden size, joined to the residual and normalised."""

    def __init__(self, in_features: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.dense = Linear(in_features, config["hidden_size"])
        self.LayerNorm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.dropout = Dropout(config["hidden_dropout_prob"])

    def forward(self, inner: Tensor, residual_TD: Tensor) -> Tensor:
        """Return the joined vectors, [T, D]."""
        joined_TD: Tensor = self.LayerNorm(self.dropout(self.dense(inner)) + residual_TD)
        return joined_TD


class Attention(nn.Module):
    """BERT's attention block; `self` is the name the weights have."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.self = Heads(config)
        self.output = Joined(config["hidden_size"], config)

    def forward(self, vectors_TD: Tensor, pack: Pack, biases: Sequence[Tensor] | None) -> Tensor:
        """Return the attended vectors joined to the input, [T, D]."""
        joined_TD: Tensor = self.output(self.self(vectors_TD, pack, biases), vectors_TD)
        return joined_TD


class Heads(nn.Module):
    """Self-attention within each text, under BERT's names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.num_heads = config["num_attention_heads"]
        self.dropout = Dropout(config["attention_probs_dropout_prob"])
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)

    def forward(self, vectors_TD: Tensor, pack: Pack, biases: Sequence[Tensor] | None) -> Tensor:
        """Return the heads' outputs side by side, [T, D]."""
        projections = [self.query, self.key, self.value]
        return attend_heads(vectors_TD, projections, self.num_heads, pack, biases, self.dropout)


class MPNetAttention(nn.Module):
    """MPNet's attention block."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.attn = MPNetHeads(config)
        self.LayerNorm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.dropout = Dropout(config["hidden_dropout_prob"])

    def forward(self, vectors_TD: Tensor, pack: Pack, biases: Sequence[Tensor] | None) -> Tensor:
        """Return the attended vectors joined to the input, [T, D]."""
        joined_TD: Tensor = self.LayerNorm(self.dropout(self.attn(vectors_TD, pack, biases)) + vectors_TD)
        return joined_TD


class MPNetHeads(nn.Module):
    """Self-attention within each text and the projection after it, under MPNet's names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.num_heads = config["num_attention_heads"]
        self.dropout = Dropout(config["attention_probs_dropout_prob"])
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.o = Linear(width, width)

    def forward(self, vectors_TD: Tensor, pack: Pack, biases: Sequence[Tensor] | None) -> Tensor:
        """Return the projected outputs of the heads, [T, D]."""
        projections = [self.q, self.k, self.v]
        attended_TD = attend_heads(vectors_TD, projections, self.num_heads, pack, biases, self.dropout)
        projected_TD: Tensor = self.o(attended_TD)
        return projected_TD


def attend_heads(
    vectors_TD: Tensor,
    projections: Sequence[Linear],
    num_heads: int,
    pack: Pack,
    biases: Sequence[Tensor] | None,
    dropout: Dropout,
) -> Tensor:
    """Project to query, key and value, attend within each text, and put the heads side by side: [T, D]."""
    query, key, value = (project(vectors_TD).unflatten(1, (num_heads, -1)) for project in projections)
    probability = dropout.p if dropout.training else 0.0
    return attend(query, key, value, pack, dropout=probability, biases=biases).flatten(1)


def table(rows: int, width: int, padding_idx: int | None = None) -> nn.Embedding:
    """Return an embedding without values: drawing them on the meta device imports torch's compiler (1.5 s)."""
    return nn.Embedding(rows, width, padding_idx=padding_idx, _weight=torch.empty(rows, width))


def relative_buckets(length: int, device: torch.device, num_buckets: int = 32) -> Tensor:
    """Return the bucket of each pair of positions (T5's scheme, both directions): int64 [L, L].

    Distances below 8 have a bucket each, larger ones share them on a logarithmic scale up to 128.
    """
    place = torch.arange(length, device=device)
    distance = place[None, :] - place[:, None]
    half, exact = num_buckets // 2, num_buckets // 4
    apart = distance.abs()
    scaled = torch.log(apart.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    far = (exact + scaled.long()).clamp(max=half - 1)
    return torch.where(apart < exact, apart, far) + half * (distance > 0)
