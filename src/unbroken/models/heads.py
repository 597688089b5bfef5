"""What may follow pooling: Dense layers and normalisation, as sentence-transformers has them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from unbroken.base.errors import ConfigError
from unbroken.models.folder import Part


class Normalize(nn.Module):
    """Scales every embedding [N, D] to unit length."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return embeddings of length 1 (zero vectors stay zero)."""
        return F.normalize(embeddings, p=2, dim=-1)


class Dense(nn.Module):
    """A linear layer with an activation, and a residual connection if asked: [N, in] -> [N, out]."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, activation: nn.Module, use_residual: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = activation
        self.use_residual = use_residual
        self.residual: nn.Module = nn.Identity()
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    @property
    def out_features(self) -> int:
        """The width of what comes out."""
        return self.linear.out_features

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the transformed embeddings."""
        projected: Tensor = self.activation(self.linear(embeddings))
        return projected + self.residual(embeddings) if self.use_residual else projected


def build_head(part: Part) -> nn.Module:
    """Build a Dense or Normalize from its part. Raises `ConfigError` for an activation that is not torch's own."""
    if part.kind == "Normalize":
        return Normalize()
    config = part.config
    missing = {"in_features", "out_features"} - set(config)
    if missing:
        raise ConfigError(f"{part.file('config.json')}: {min(missing)!r} is missing")
    return Dense(
        int(config["in_features"]),
        int(config["out_features"]),
        bias=bool(config.get("bias", True)),
        activation=activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"), part),
        use_residual=bool(config.get("use_residual", False)),
    )


def activation(name: Any, part: Part) -> nn.Module:
    """Return the torch module an `activation_function` such as `torch.nn.modules.activation.Tanh` names."""
    words = str(name).split(".")
    found = getattr(nn, words[-1], None) if words[:2] == ["torch", "nn"] else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"{part.file('config.json')}: activation {name!r} is not one of torch.nn's")
    return found()
