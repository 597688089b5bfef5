"""Transformers that run in Hugging Face's own modules: packed where that is tested, in padded buckets elsewhere.

Importing this module imports transformers' modelling code (seconds); only `build_backbone` does, when it must.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import AttentionInterface
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from unbroken.base.errors import ConfigError
from unbroken.models.backbone import Backbone
from unbroken.models.dropout import Dropout
from unbroken.models.linear import Linear
from unbroken.models.packing import ATTENTION_NAME, Pack, packed_attention

# Families whose packed results are compared with the padded ones in tests/pairs/test_encoder.py.
PACKED_FAMILIES = frozenset({"electra", "distilbert", "modernbert", "llama", "mistral", "qwen2", "qwen3"})
# The longest text of a padded bucket over its shortest.
BUCKET_RATIO = 1.25
# The token where a bucket has none. Attention is masked there, so that it takes part in no result.
PADDING_ID = 0

AttentionInterface.register(ATTENTION_NAME, packed_attention)


class HuggingFaceBackbone(Backbone):
    """A Hugging Face base model."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        super().__init__()
        self.model = model
        self.packed = config.model_type in PACKED_FAMILIES
        if not self.packed:
            self.reason = f"models of type {config.model_type!r} run in padded buckets of similar length, not packed"
            self.padding_id = PADDING_ID
        self.prefix = str(getattr(model, "base_model_prefix", ""))
        self.width = int(config.hidden_size)
        limit = getattr(config, "max_position_embeddings", None)
        self.max_positions = limit if limit != -1 else None
        self.position_limit = position_limit(model)

    def forward(self, ids_T: Tensor, pack: Pack) -> Tensor:
        """Return the token vectors [T, D] of packed ids [T]."""
        if not self.packed:
            return self._bucketed(ids_T, pack)
        output = self.model(input_ids=ids_T[None], position_ids=pack.positions[None], pack=pack)
        vectors_TD: Tensor = output.last_hidden_state.squeeze(0)
        return vectors_TD

    def _bucketed(self, ids_T: Tensor, pack: Pack) -> Tensor:
        outputs = []
        for runs in buckets(pack):
            width = runs[-1][1]
            mask = torch.cat([token_mask(n, length, width, ids_T.device) for n, length in runs])
            count = sum(n * length for n, length in runs)
            ids, ids_T = ids_T[:count], ids_T[count:]
            padded = ids.new_full(mask.shape, PADDING_ID).masked_scatter(mask, ids)
            outputs.append(self.model(input_ids=padded, attention_mask=mask.long()).last_hidden_state[mask])
        return torch.cat(outputs)


def buckets(pack: Pack) -> list[list[tuple[int, int]]]:
    """Group a pack's runs so that no text is padded to more than `BUCKET_RATIO` times its length."""
    groups: list[list[tuple[int, int]]] = []
    for n, length in pack.runs:
        if groups and length <= BUCKET_RATIO * groups[-1][0][1]:
            groups[-1].append((n, length))
        elif length:
            groups.append([(n, length)])
    return groups


def token_mask(n: int, length: int, width: int, device: torch.device) -> Tensor:
    """Return which places of `n` right-padded texts of `length` tokens hold a token: bool [n, width]."""
    return (torch.arange(width, device=device) < length).expand(n, width)


def build(config_values: Mapping[str, Any], place: Path) -> HuggingFaceBackbone:
    """Build the base model of a configuration, its parameters allocated and not initialised.

    Its buffers have their values: they are not in weight files. Raises `ConfigError` for a configuration
    transformers does not know.
    """
    return HuggingFaceBackbone(*build_model(config_values, place, AutoModel, PACKED_FAMILIES))


def build_model(
    config_values: Mapping[str, Any],
    place: Path,
    kind: Any,
    packed_families: frozenset[str],
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, Any]:
    """Build a model as `build` does, of the auto class `kind`; return it and its configuration.

    Its attention is the packed one if its family is among `packed_families`.
    """
    values = {key: value for key, value in config_values.items() if key not in ("dtype", "torch_dtype")}
    try:
        config = AutoConfig.for_model(**values)
        config.use_cache = False
        extra: dict[str, Any] = {}
        if config.model_type in packed_families:
            extra["attn_implementation"] = ATTENTION_NAME
        if kind is AutoModel and has_pooler(config):
            extra["add_pooling_layer"] = False
        with no_init_weights():
            model = kind.from_config(config, dtype=dtype, **extra)
    except (ValueError, KeyError, TypeError, ImportError, AttributeError) as failure:
        reason = str(failure).strip().splitlines() or [type(failure).__name__]
        raise ConfigError(f"{place}/config.json: transformers cannot build this model: {reason[0]}") from None
    quicken(model)
    return model, config


def quicken(model: nn.Module) -> None:
    """Give the model's plain Linear and Dropout modules our faster forward; they hold nothing more and nothing else."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif type(module) is nn.Dropout and not module.inplace:
            module.__class__ = Dropout


def has_pooler(config: Any) -> bool:
    """Return whether the family's base model has a pooler that can be left out; its output is never used."""
    return "add_pooling_layer" in inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters


def position_limit(model: nn.Module) -> int | None:
    """Return how many tokens a text may have by the model's table of positions, None if it has no table."""
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return None
