"""The transformer inside an encoder: what every kind of it offers, and how one is built from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbroken.base.errors import ConfigError
from unbroken.models.bert import PREFIXES, Bert, covers
from unbroken.models.packing import Pack


class Backbone(nn.Module):
    """Maps token ids to token vectors. Tensors in `model` are named as in Hugging Face's base model.

    `packed` says whether texts run as one sequence, `reason` why not if not. `prefix` may stand in front of names
    in weight files. `width` is the size of a token vector. `max_positions` is what the configuration says,
    `position_limit` the longest text the model can take, None where there is no table of positions. `padding_id` is
    the token put where a padded batch has none, None where nothing is padded.
    """

    model: nn.Module
    packed: bool = True
    reason: str = ""
    prefix: str
    width: int
    max_positions: int | None
    position_limit: int | None
    padding_id: int | None = None

    def forward(self, ids_T: Tensor, pack: Pack) -> Tensor:
        """Return the token vectors [T, D] of packed ids [T]."""
        raise NotImplementedError


class BertBackbone(Backbone):
    """BERT and its relatives in our own modules."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model = Bert(config)
        self.prefix = PREFIXES[model.config["model_type"]]
        self.width = int(model.config["hidden_size"])
        self.max_positions = int(model.config["max_position_embeddings"])
        self.position_limit = self.max_positions - model.embeddings.first_position

    def forward(self, ids_T: Tensor, pack: Pack) -> Tensor:
        """Return the token vectors [T, D] of packed ids [T]."""
        vectors_TD: Tensor = self.model(ids_T, pack)
        return vectors_TD


def build_backbone(config: Mapping[str, Any], place: Path) -> Backbone:
    """Build the transformer of a configuration; its parameters have shapes and no values yet.

    Raises `ConfigError` for a configuration neither we nor transformers know.
    """
    if "model_type" not in config:
        raise ConfigError(
            f"{place}/config.json names no model_type",
            next_step="copy the model folder again, whole, or name another model",
        )
    if covers(config):
        with torch.device("meta"):
            return BertBackbone(config)
    from unbroken.models.hugging_face import build

    return build(config, place)
