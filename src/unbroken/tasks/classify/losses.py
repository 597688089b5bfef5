"""From a configuration to the loss of the first phase over one batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbroken.plan.pairs import count_pairs
from unbroken.plan.plan import Draws
from unbroken.plan.strata import Strata
from unbroken.step import contrastive
from unbroken.tasks.classify.batches import Batch
from unbroken.tasks.classify.config import ClassifyConfig

Loss = Callable[[Tensor, Batch], Tensor]


def body_loss(config: ClassifyConfig, plan: Draws, targets: NDArray[np.int64], taught_NE: Tensor | None = None) -> Loss:
    """Return the loss of the embeddings [N, D] of a batch; `targets` are those of all examples.

    So are `taught_NE`, the embeddings by the teacher, where there is one.
    """
    if config.teacher is not None:
        assert taught_NE is not None
        return partial(paired_by_teacher if config.pairs == "sampled" else by_teacher, taught_NE)
    if config.pairs == "sampled":
        return paired
    if config.loss == "cosine_similarity":
        positives, negatives = count_pairs(targets)
        alone = len(targets) if targets.ndim == 1 else int(targets.any(axis=1).sum())  # pairs of a text with itself
        return partial(compared, plan, len(targets), positives - alone, negatives)
    if config.loss == "supervised_contrastive":
        return partial(labelled, partial(contrastive.supervised_contrastive, temperature=config.temperature))
    function = LOSSES[config.loss]
    if config.loss == "batch_hard_soft_margin_triplet":
        return partial(labelled, partial(function, distance=config.distance))
    return partial(labelled, partial(function, margin=config.margin, distance=config.distance))


def paired(embeddings_ND: Tensor, batch: Batch) -> Tensor:
    """Take texts two by two: those that share a label are to have the cosine 1, others 0."""
    first, second = batch.targets[0::2], batch.targets[1::2]
    same = first == second if batch.targets.ndim == 1 else (first * second).any(dim=1)
    return contrastive.cosine_similarity(embeddings_ND[0::2], embeddings_ND[1::2], same.to(embeddings_ND.device))


def by_teacher(taught_NE: Tensor, embeddings_ND: Tensor, batch: Batch) -> Tensor:
    """Compare each text of the batch with every other: their cosines are to be the teacher's."""
    return contrastive.distillation(embeddings_ND, taught(taught_NE, embeddings_ND, batch))


def paired_by_teacher(taught_NE: Tensor, embeddings_ND: Tensor, batch: Batch) -> Tensor:
    """Take texts two by two: their cosine is to be the teacher's."""
    theirs_NE = taught(taught_NE, embeddings_ND, batch)
    targets_B = torch.nn.functional.cosine_similarity(theirs_NE[0::2], theirs_NE[1::2])
    return contrastive.cosine_similarity(embeddings_ND[0::2], embeddings_ND[1::2], targets_B)


def taught(taught_NE: Tensor, embeddings_ND: Tensor, batch: Batch) -> Tensor:
    """Return the teacher's embeddings of the batch's texts, where the student's are."""
    return taught_NE[torch.from_numpy(batch.ids)].to(embeddings_ND.device)


def compared(
    plan: Draws, num_examples: int, positives: int, negatives: int, embeddings_ND: Tensor, batch: Batch
) -> Tensor:
    """Compare each text of the batch with every other, each pair weighted by how rarely a batch holds it."""
    if isinstance(plan, Strata):
        probabilities: Tensor | float = torch.from_numpy(plan.pair_probabilities(batch.ids))
    else:
        size = len(batch.ids)
        probabilities = size * (size - 1) / (num_examples * (num_examples - 1))
    targets = _comparable(batch.targets)
    weights = contrastive.pair_weights(targets, probabilities, positives, negatives)
    device = embeddings_ND.device
    return contrastive.pair_cosine(embeddings_ND, targets.to(device), weights.to(device))


def labelled(function: Callable[[Tensor, Tensor], Tensor], embeddings_ND: Tensor, batch: Batch) -> Tensor:
    """Apply a loss of embeddings and what shares a label with what."""
    return function(embeddings_ND, _comparable(batch.targets).to(embeddings_ND.device))


def _comparable(targets: Tensor) -> Tensor:
    return targets if targets.ndim == 1 else contrastive.sharing(targets)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "batch_all_triplet": contrastive.batch_all_triplet,
    "batch_hard_triplet": contrastive.batch_hard_triplet,
    "batch_semi_hard_triplet": contrastive.batch_semi_hard_triplet,
    "batch_hard_soft_margin_triplet": contrastive.batch_hard_soft_margin_triplet,
}
