"""What an embedding run can be told."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from unbroken.base.config import content, identity
from unbroken.tasks.common import TrainingConfig

LossName = Literal["multiple_negatives_ranking", "cosent", "triplet"]

# The roles each loss reads, and the column names people give them where `columns` says nothing.
ROLES: dict[str, tuple[str, ...]] = {
    "multiple_negatives_ranking": ("anchor", "positive", "negative"),
    "cosent": ("sentence1", "sentence2", "score"),
    "triplet": ("anchor", "positive", "negative"),
}
OPTIONAL_ROLES = {"multiple_negatives_ranking": ("negative",), "cosent": (), "triplet": ()}


class EmbedConfig(TrainingConfig):
    """Train an embedding model (a bi-encoder)."""

    task: Literal["embed"] = identity("embed")
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
    pooling_mode: str | None = identity(None, description="for a folder without pooling: mean, cls, lasttoken, ...")

    @model_validator(mode="after")
    def _roles_and_scale(self) -> Self:
        roles = ROLES[self.loss]
        for role in (*self.columns, *self.prompts):
            if role not in roles:
                raise ValueError(f"loss '{self.loss}' reads {', '.join(roles)}; it has no '{role}'")
        if self.scale is not None and self.temperature is not None:
            raise ValueError("give scale or temperature, not both: scale = 1 / temperature")
        return self

    @property
    def resolved_scale(self) -> float:
        """The factor on the similarities."""
        if self.temperature is not None:
            return 1.0 / self.temperature
        return 20.0 if self.scale is None else self.scale

    @property
    def best_metric(self) -> str:
        """What `load_best_model_at_end` chooses by unless told otherwise."""
        main: dict[str, Any] = {"cosent": "spearman_cosine", "triplet": "cosine_accuracy"}
        return self.metric_for_best_model or main.get(self.loss, "ndcg@10")
