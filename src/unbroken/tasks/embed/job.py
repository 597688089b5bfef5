"""From a configuration to the job of an embedding run: plan, encoding, loss, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbroken.models.arena import Arena, open_arena
from unbroken.models.encoder import Encoder
from unbroken.models.ragged import Ragged
from unbroken.run.job import Job, Phase
from unbroken.step import losses
from unbroken.step.gradients import Scope, cached_gradients
from unbroken.tasks.course import course_of
from unbroken.tasks.embed.config import EmbedConfig
from unbroken.tasks.embed.data import NEGATIVE, SCORE, EmbedData
from unbroken.tasks.embed.evaluation import Evaluation
from unbroken.tasks.optimizers import adamw

ROOT = "encoder"


@dataclass(frozen=True)
class Batch:
    """The texts of one step: each chunk holds the texts of some examples, role after role.

    `sizes[chunk][role]` counts the texts of each role in a chunk; `scores` are the labels of the whole batch.
    """

    chunks: list[Ragged]
    sizes: list[list[int]]
    scores: Tensor | None

    def by_role(self, embeddings_ND: Tensor) -> list[Tensor]:
        """Split the rows of all chunks, in order, into one tensor per role."""
        pieces = torch.split(embeddings_ND, [size for sizes in self.sizes for size in sizes])
        num_roles = len(self.sizes[0])
        if len(self.sizes) == 1:
            return list(pieces)
        return [torch.cat(pieces[role::num_roles]) for role in range(num_roles)]


@dataclass(frozen=True)
class Role:
    """The token ids of all texts in one role, and where each example's texts lie if it has several."""

    arena: Arena
    bounds: NDArray[np.int64] | None

    def rows(self, ids: NDArray[np.int64]) -> Ragged:
        """Return the texts of the given examples."""
        if self.bounds is None:
            return self.arena.rows(ids)
        spans = [np.arange(self.bounds[i], self.bounds[i + 1], dtype=np.int64) for i in ids]
        return self.arena.rows(np.concatenate(spans))


@dataclass(frozen=True)
class Encoding:
    """Makes batches from example ids; the epoch makes no difference, since nothing about a text is drawn."""

    roles: list[Role]
    scores: NDArray[Any] | None
    chunk_size: int

    def __call__(self, ids: NDArray[np.int64], epoch: int) -> Batch:
        """Return the batch of the given examples, in their order."""
        chunks, sizes = [], []
        for start in range(0, len(ids), self.chunk_size):
            parts = [role.rows(ids[start : start + self.chunk_size]) for role in self.roles]
            chunks.append(Ragged.concat(parts))
            sizes.append([len(part) for part in parts])
        scores = None if self.scores is None else torch.from_numpy(self.scores[ids].astype(np.float32))
        return Batch(chunks, sizes, scores)


def build_job(
    config: EmbedConfig,
    encoder: Encoder,
    data: EmbedData,
    evaluation: Evaluation | None,
    cache: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Job:
    """Return the job of an embedding run over `data`; tokenises into `cache` what is not there yet."""
    summary = data.summary
    course = course_of(config, summary.num_examples)
    chunk_size = config.micro_batch_size or config.batch_size
    encoding = Encoding(
        [tokenise(data, role, encoder, config, cache, on_progress) for role in summary.roles if role != SCORE],
        data.array("scores", partial(data.numbers, SCORE)) if SCORE in summary.roles else None,
        chunk_size,
    )
    encoder.train()
    encoder.reuse_table_gradients()
    return Job(
        seed=config.seed,
        phases=(
            Phase(
                name="embed",
                end_step=course.total_steps,
                plan=course.plan,
                optimizer=partial(adamw, config=config, learning_rate=config.learning_rate),
                learning_rate=course.rate,
                max_grad_norm=config.max_grad_norm,
                draws_per_step=-(-config.batch_size // chunk_size) + 1,
            ),
        ),
        modules={ROOT: encoder},
        encode=encoding,
        gradients=partial(gradients, encoder, partial(LOSSES[config.loss], config)),
        layout=partial(layout, encoder),
        documents=partial(documents, encoder),
        evaluate=partial(evaluation.measure, encoder) if evaluation else dict,
        evaluation_id=evaluation.identity if evaluation else "",
    )


def tokenise(
    data: EmbedData,
    role: str,
    encoder: Encoder,
    config: EmbedConfig,
    cache: Path,
    on_progress: Callable[[int, int], None] | None,
) -> Role:
    """Return a role's token ids, from the cache where they are there already."""
    arena = open_arena(
        cache,
        content=f"{data.summary.digest}/{role}",
        texts=lambda: data.texts(role)[0],
        encoder=encoder,
        prompt=config.prompts.get(role, ""),
        on_progress=on_progress,
    )
    if role != NEGATIVE:
        return Role(arena, None)
    bounds = data.array("bounds", lambda: _bounds(data))
    return Role(arena, bounds if len(bounds) else None)


def _bounds(data: EmbedData) -> NDArray[np.int64]:
    bounds = data.texts(NEGATIVE)[1]
    return np.zeros(0, dtype=np.int64) if bounds is None else bounds


def gradients(
    encoder: Encoder, loss: Callable[[list[Tensor], Tensor | None], Tensor], batch: Batch, scope: Scope
) -> Tensor:
    """Leave the batch's gradients in the encoder and return the detached loss."""
    return cached_gradients(
        encoder.embed, lambda embeddings_ND: loss(batch.by_role(embeddings_ND), batch.scores), batch.chunks, scope
    )


def ranking_loss(config: EmbedConfig, roles: list[Tensor], scores: Tensor | None) -> Tensor:
    """Take anchors, positives and perhaps negatives; every positive and negative is a candidate for every anchor."""
    anchors_BD, *candidates = roles
    return losses.multiple_negatives_ranking(
        anchors_BD, torch.cat(candidates), config.resolved_scale, config.similarity, config.symmetric
    )


def graded_loss(config: EmbedConfig, roles: list[Tensor], scores: Tensor | None) -> Tensor:
    """Take first and second sentences and their scores."""
    assert scores is not None
    first_BD, second_BD = roles
    return losses.cosent(first_BD, second_BD, scores.to(first_BD.device), config.resolved_scale)


def triplet_loss(config: EmbedConfig, roles: list[Tensor], scores: Tensor | None) -> Tensor:
    """Take anchors, positives and one negative for each."""
    anchors_BD, positives_BD, negatives_BD = roles
    return losses.triplet(anchors_BD, positives_BD, negatives_BD, config.margin, config.distance)


LOSSES: dict[str, Callable[[EmbedConfig, list[Tensor], Tensor | None], Tensor]] = {
    "multiple_negatives_ranking": ranking_loss,
    "cosent": graded_loss,
    "triplet": triplet_loss,
}


def layout(encoder: Encoder, name: str) -> tuple[str, str]:
    """Place the encoder's tensors in the model folder, where sentence-transformers finds them."""
    file, key = encoder.layout(name.removeprefix(f"{ROOT}."))
    return f"model/{file}", key


def documents(encoder: Encoder) -> Mapping[str, bytes]:
    """Return the model folder's other files."""
    return {f"model/{path}": content for path, content in encoder.documents().items()}
