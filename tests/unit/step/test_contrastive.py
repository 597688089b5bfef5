"""Weights that make batches unbiased, by exact enumeration; losses where there is nothing to compare."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unbroken.plan.pairs import count_pairs
from unbroken.plan.strata import Strata
from unbroken.step import contrastive
from unbroken.step.contrastive import (
    batch_all_triplet,
    batch_hard_soft_margin_triplet,
    batch_hard_triplet,
    batch_semi_hard_triplet,
    cosine_similarity,
    distillation,
    pair_cosine,
    pair_weights,
    sharing,
    supervised_contrastive,
)
from unbroken.step.generators import seeded

torch.set_num_threads(1)

CLASSES = [
    [0, 0, 0, 1, 1, 2, 2, 2],
    [0, 0, 0, 0, 0, 1, 1, 2],
    [0, 1, 1, 1],
    [0, 0, 1, 1, 2, 2],
    [0, 1, 2, 3, 3],
    [0] * 5,
]
TARGETS = [
    [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]],
    [[1, 1], [1, 0], [0, 1], [1, 1], [1, 0]],
]


def embeddings(num: int, dim: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    with seeded(7):
        return (2 * torch.randn(num, dim)).to(dtype).requires_grad_()


def objective(embeddings_ND: Tensor, same_NN: Tensor, positives: int, negatives: int, balanced: bool) -> Tensor:
    """SetFit's objective over all pairs of different examples, pair by pair."""
    omega = (1 / (2 * positives), 1 / (2 * negatives or 1)) if balanced else (1 / (positives + negatives),) * 2
    total = torch.zeros((), dtype=torch.float64)
    for i, j in combinations(range(len(embeddings_ND)), 2):
        cosine = F.cosine_similarity(embeddings_ND[i], embeddings_ND[j], dim=0)
        total = total + ((cosine - 1) ** 2 * omega[0] if same_NN[i, j] else cosine**2 * omega[1])
    return total


def strata_draws(plan: Strata) -> Iterator[tuple[list[int], float]]:
    """Every batch the design can draw, and its probability: any classes, any examples of each."""
    num_classes = len(plan.grouped.sizes)
    for held in combinations(range(num_classes), plan.num_classes):
        members = [np.flatnonzero(plan.grouped.numbers == number).tolist() for number in held]
        given = [combinations(each, int(plan.given[number])) for each, number in zip(members, held, strict=True)]
        batches = list(product(*given))
        chance = 1 / len(list(combinations(range(num_classes), plan.num_classes))) / len(batches)
        yield from (([example for each in batch for example in each], chance) for batch in batches)


def expected_gradient(leaf: Tensor, losses: Iterator[tuple[Tensor, float]]) -> tuple[Tensor, Tensor]:
    """The mean loss of all draws, weighted by their probability, and its gradient."""
    mean = sum((loss * chance for loss, chance in losses), torch.zeros((), dtype=torch.float64))
    return mean.detach(), torch.autograd.grad(mean, leaf)[0]


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("batch_size", [4, 6])
def test_stratified_batches_are_unbiased(classes: list[int], batch_size: int, balanced: bool) -> None:
    labels, leaf = torch.tensor(classes), embeddings(len(classes))
    plan, counts = Strata(np.array(classes), batch_size, seed=0), count_pairs(np.array(classes))

    def losses(forget_sizes: bool) -> Iterator[tuple[Tensor, float]]:
        for ids, chance in strata_draws(plan):
            probabilities = torch.from_numpy(plan.pair_probabilities(np.array(ids)))
            if forget_sizes:
                probabilities = torch.full_like(probabilities, probabilities.mean().item())
            weights = pair_weights(labels[ids], probabilities, *counts, balanced=balanced)
            yield pair_cosine(leaf[ids], labels[ids], weights), chance

    assert sum(chance for _, chance in strata_draws(plan)) == pytest.approx(1, abs=1e-12)
    whole = objective(leaf, labels[:, None] == labels, *counts, balanced=balanced)
    gradient = torch.autograd.grad(whole, leaf)[0]
    found = expected_gradient(leaf, losses(forget_sizes=False))
    torch.testing.assert_close(found[0], whole.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], gradient, rtol=0, atol=1e-12)
    pairs = plan.pair_probabilities(np.arange(len(classes)))[np.triu_indices(len(classes), 1)]
    if np.ptp(pairs) > 1e-12:  # the control: where pairs differ in probability, weights that do not are found out
        assert (expected_gradient(leaf, losses(forget_sizes=True))[1] - gradient).abs().max() > 1e-3


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_simple_batches_of_several_labels_are_unbiased(targets: list[list[int]], size: int, balanced: bool) -> None:
    labels, num = torch.tensor(targets), len(targets)
    leaf, counts = embeddings(num), count_pairs(np.array(targets))
    batches = list(combinations(range(num), size))

    def losses() -> Iterator[tuple[Tensor, float]]:
        for ids in map(list, batches):
            same = sharing(labels[ids])
            weights = pair_weights(same, size * (size - 1) / (num * (num - 1)), *counts, balanced=balanced)
            yield pair_cosine(leaf[ids], same, weights), 1 / len(batches)

    whole = objective(leaf, sharing(labels), *counts, balanced=balanced)
    found = expected_gradient(leaf, losses())
    torch.testing.assert_close(found[0], whole.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], torch.autograd.grad(whole, leaf)[0], rtol=0, atol=1e-12)


def test_weights_of_equal_classes_are_two_means() -> None:
    """Half of (N-1)/(N+1) times the positives' mean, N = 4 examples a class, and half the negatives' mean."""
    classes = np.repeat(np.arange(3), 4)
    plan = Strata(classes, 6, seed=1)
    ids = plan.draw(0).ids
    labels = torch.from_numpy(classes[ids])
    weights = pair_weights(labels, torch.from_numpy(plan.pair_probabilities(ids)), *count_pairs(classes))
    same = labels[:, None] == labels
    positives, negatives = weights.triu(1)[same.triu(1)], weights.triu(1)[~same & (weights.triu(1) > 0)]
    torch.testing.assert_close(positives, torch.full_like(positives, 0.5 * 3 / 5 / len(positives)), rtol=1e-14, atol=0)
    torch.testing.assert_close(negatives, torch.full_like(negatives, 0.5 / len(negatives)), rtol=1e-14, atol=0)
    assert (len(positives), len(negatives)) == (3, 12)
    assert torch.equal(weights, weights.T)
    assert not weights.diagonal().any()


def test_examples_share_what_both_have() -> None:
    labels = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert sharing(labels).int().tolist() == expected


def fixed_teacher(embeddings_ND: Tensor, _: Tensor) -> Tensor:
    return distillation(embeddings_ND, embeddings(len(embeddings_ND), 3, embeddings_ND.dtype))


def unit_weights(embeddings_ND: Tensor, targets: Tensor) -> Tensor:
    return pair_cosine(embeddings_ND, targets, torch.ones(len(embeddings_ND), len(embeddings_ND)))


TRIPLETS: dict[str, Any] = {
    "all": batch_all_triplet,
    "hard": batch_hard_triplet,
    "semi-hard": batch_semi_hard_triplet,
    "soft": batch_hard_soft_margin_triplet,
    "all euclidean": lambda x, y: batch_all_triplet(x, y, 5.0, "euclidean"),
    "hard euclidean": lambda x, y: batch_hard_triplet(x, y, 5.0, "euclidean"),
    "semi-hard euclidean": lambda x, y: batch_semi_hard_triplet(x, y, 5.0, "euclidean"),
    "soft euclidean": lambda x, y: batch_hard_soft_margin_triplet(x, y, "euclidean"),
}
LOSSES = {"contrastive": supervised_contrastive, "pairs": unit_weights, "teacher": fixed_teacher, **TRIPLETS}


def assert_nothing(loss: Tensor, leaf: Tensor) -> None:
    assert loss.requires_grad
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, leaf)[0].any()


@pytest.mark.parametrize("name", TRIPLETS)
@pytest.mark.parametrize("targets", [[0], [1, 1, 1, 1], [0, 1, 2, 3]])
def test_without_a_triplet_there_is_nothing_to_learn(name: str, targets: list[int]) -> None:
    leaf = embeddings(len(targets))
    assert_nothing(TRIPLETS[name](leaf, torch.tensor(targets)), leaf)


@pytest.mark.parametrize("targets", [[0], [0, 1, 2, 3]])
def test_without_positives_there_is_nothing_to_find(targets: list[int]) -> None:
    leaf = embeddings(len(targets))
    assert_nothing(supervised_contrastive(leaf, torch.tensor(targets)), leaf)


@pytest.mark.parametrize("name", ["pairs", "teacher"])
def test_one_example_makes_no_pair(name: str) -> None:
    leaf = embeddings(1)
    assert_nothing(LOSSES[name](leaf, torch.tensor([3])), leaf)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_rows_and_equal_rows_have_finite_gradients(name: str, dtype: torch.dtype) -> None:
    with torch.no_grad():
        leaf = embeddings(8, dtype=dtype)
        leaf[1] = leaf[4] = 0
        leaf[3] = leaf[5] = leaf[2]
    loss = LOSSES[name](leaf, torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]))
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, leaf)[0]).all()


def test_a_pair_with_a_zero_row_has_finite_gradients() -> None:
    first, second = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    loss = cosine_similarity(first, second, torch.tensor([1, 0]))
    assert loss.item() == 0.5
    assert torch.isfinite(torch.autograd.grad(loss, first)[0]).all()


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_a_number_is_not_hidden(name: str) -> None:
    leaf = embeddings(6)
    with torch.no_grad():
        leaf[2, 1] = torch.nan
    assert LOSSES[name](leaf, torch.tensor([0, 0, 1, 1, 2, 2])).isnan()


@pytest.mark.parametrize("name", LOSSES)
def test_a_matrix_of_shared_labels_does_what_classes_do(name: str) -> None:
    leaf, classes = embeddings(9), torch.tensor([0, 0, 1, 1, 2, 2, 2, 0, 3])
    found = [LOSSES[name](leaf, targets) for targets in (classes, classes[:, None] == classes)]
    gradients = [torch.autograd.grad(loss, leaf)[0] for loss in found]
    assert torch.equal(found[0], found[1])
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    targets = sharing(torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 1, 1]]))
    assert torch.autograd.gradcheck(lambda leaf: LOSSES[name](leaf, targets), embeddings(7))


def plain_triplets(name: str, leaf: Tensor, same: Tensor, margin: float) -> list[float]:
    """The terms that each loss is the mean of, triplet by triplet, on cosine distances."""
    apart = (1 - F.normalize(leaf) @ F.normalize(leaf).T).detach().tolist()
    terms = []
    for a, row in enumerate(apart):
        near = [each for p, each in enumerate(row) if p != a and same[a, p]]
        far = [each for n, each in enumerate(row) if n != a and not same[a, n]]
        if name == "all":
            terms += [p - n + margin for p in near for n in far if p - n + margin > 0]
        elif name == "semi-hard" and far:
            beyond = [min([n for n in far if n > p], default=max(far)) for p in near]
            terms += [max(0, p - n + margin) for p, n in zip(near, beyond, strict=True)]
        elif name == "hard":
            terms += [max(0, max(near, default=0) - min(far) + margin) if far else 0]
        elif name == "soft":
            terms += [math.log1p(math.exp(max(near, default=0) - min(far))) if far else 0]
    return terms


@pytest.mark.parametrize("margin", [0.25, 1.0])
@pytest.mark.parametrize("name", ["all", "hard", "semi-hard", "soft"])
def test_triplets_of_several_labels(name: str, margin: float) -> None:
    labels = [[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0]]
    for count in (8, 9):  # the second of eight shares a label with all; the ninth has none
        same, leaf = sharing(torch.tensor(labels[:count])), embeddings(count)
        loss = TRIPLETS[name](leaf, same) if name == "soft" else TRIPLETS[name](leaf, same, margin)
        assert loss.item() == pytest.approx(np.mean(plain_triplets(name, leaf, same, margin)), abs=1e-14)


def test_comparing_triplets_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf, classes = embeddings(30), torch.arange(30) % 4
    whole = batch_all_triplet(leaf, classes)
    monkeypatch.setattr(contrastive, "BLOCK", 2 * 30 * 30 + 1)
    blocks = batch_all_triplet(leaf, classes)
    assert torch.equal(whole, blocks)
    assert torch.equal(*(torch.autograd.grad(loss, leaf)[0] for loss in (whole, blocks)))


class Recorded(TorchDispatchMode):
    """Names of the operations on floating-point numbers, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.names.add(func.overloadpacket.__name__)
        return result


# Those that add by atomics on CUDA, so in any order, after torch.use_deterministic_algorithms' own list.
ATOMIC = {
    "index_add",
    "index_add_",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "put_",
    "scatter_add",
    "scatter_add_",
}
ATOMIC |= {"scatter_reduce", "scatter_reduce_", "cumsum", "bincount", "histc", "embedding_dense_backward"}


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_summed_by_atomics(name: str) -> None:
    leaf, classes = embeddings(12), torch.arange(12) % 3
    with Recorded() as recorded:
        torch.autograd.grad(LOSSES[name](leaf, classes), leaf)
    assert "mm" in recorded.names
    assert not recorded.names & ATOMIC


def test_a_sum_by_atomics_is_noticed() -> None:
    leaf = embeddings(4)
    with Recorded() as recorded:
        torch.autograd.grad(leaf[torch.tensor([0, 0, 1])].sum(), leaf)
    assert recorded.names & ATOMIC
