"""What an embedding run can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from unbroken.base.config import closest, content, identity
from unbroken.tasks.common import TrainingConfig

LossName = Literal["multiple_negatives_ranking", "cosent", "triplet"]

# The roles each loss reads, and the column names people give them where `columns` says nothing.
ROLES: dict[str, tuple[str, ...]] = {
    "multiple_negatives_ranking": ("anchor", "positive", "negative"),
    "cosent": ("sentence1", "sentence2", "score"),
    "triplet": ("anchor", "positive", "negative"),
}
OPTIONAL_ROLES = {"multiple_negatives_ranking": ("negative",), "cosent": (), "triplet": ()}
# What evaluation measures for each loss, the main one first: known before anything is loaded.
METRICS = {
    "multiple_negatives_ranking": (
        "ndcg@10",
        "mrr@10",
        "map@100",
        *(f"{name}@{k}" for k in (1, 3, 5, 10) for name in ("accuracy", "precision", "recall")),
    ),
    "cosent": ("spearman_cosine", "pearson_cosine"),
    "triplet": ("cosine_accuracy",),
}


class EmbedConfig(TrainingConfig):
    """Train an embedding model (a bi-encoder)."""

    task: Literal["embed"] = identity("embed", description="the kind of learning")
    columns: dict[str, str | list[str]] = content(
        {},
        description="role -> column: anchor, positive, negative (one or several); or sentence1, sentence2, score",
    )
    loss: LossName = identity("multiple_negatives_ranking", description="what is learned from a batch")
    scale: float | None = identity(None, gt=0, description="1 / temperature of the similarities; default 20")
    temperature: float | None = identity(None, gt=0, description="1 / scale")
    similarity: Literal["cosine", "dot"] = identity("cosine", description="of multiple_negatives_ranking")
    symmetric: bool = identity(False, description="multiple_negatives_ranking: find the anchor for a positive too")
    margin: float = identity(5.0, ge=0, description="triplet: how much farther the negative must be")
    distance: Literal["euclidean", "cosine", "manhattan"] = identity("euclidean", description="triplet: which distance")
    prompts: dict[str, str] = identity({}, description="role -> text put before every text of that column")

    @model_validator(mode="after")
    def _roles_and_scale(self) -> Self:
        roles = ROLES[self.loss]
        for role in (*self.columns, *self.prompts):
            if role not in roles:
                raise ValueError(f"loss '{self.loss}' reads {', '.join(roles)}, not '{role}'; {_advice(role)}")
        for role, columns in self.columns.items():
            several = role == "negative" and self.loss != "triplet"
            if not isinstance(columns, str) and len(columns) != 1 and not several:
                raise ValueError(f"columns: '{role}' of loss '{self.loss}' is one column, not {len(columns)}; name one")
        if self.scale is not None and self.temperature is not None:
            raise ValueError("give scale or temperature, not both: scale = 1 / temperature")
        known = METRICS[self.loss]
        if self.metric_for_best_model not in (None, *known):
            near = closest(str(self.metric_for_best_model), known)
            raise ValueError(
                f"metric_for_best_model: '{self.metric_for_best_model}' is not measured for loss '{self.loss}'; "
                + (f"did you mean '{near}'?" if near else f"give one of {', '.join(known)}")
            )
        return self

    @field_validator("columns")
    @classmethod
    def _columns_named(cls, columns: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        for role, names in columns.items():
            if "" in ([names] if isinstance(names, str) else names):
                raise ValueError(f"'{role}' names no column; leave it out for the column '{role}'")
        return columns

    @classmethod
    def left_open(cls, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recorded values of what is left open; who gives a scale leaves no temperature open."""
        other = {"scale": "temperature", "temperature": "scale"}
        given = {other[key] for key in other if asked.get(key) is not None}
        return {key: value for key, value in super().left_open(recorded, asked).items() if key not in given}

    def resolved_identity(self) -> dict[str, Any]:
        """Return what the identity keys mean: a temperature is a scale, no metric is the main one."""
        values = super().resolved_identity() | {"scale": self.resolved_scale, "metric_for_best_model": self.best_metric}
        del values["temperature"]
        return values

    @property
    def resolved_scale(self) -> float:
        """The factor on the similarities."""
        if self.temperature is not None:
            return 1.0 / self.temperature
        return 20.0 if self.scale is None else self.scale

    @property
    def best_metric(self) -> str:
        """What `load_best_model_at_end` chooses by unless told otherwise."""
        return self.metric_for_best_model or METRICS[self.loss][0]


def _advice(role: str) -> str:
    """Say which losses read a role, for a role put into another one."""
    losses = [loss for loss, roles in ROLES.items() if role in roles]
    return f"it belongs to {' and '.join(losses)}" if losses else "name one of these"
