"""Fitting a head in closed form: logistic regression on embeddings, as SetFit's default head.

The bits of the result are a function of the inputs: the solver sees copies in float64 at addresses divisible by 64,
and numpy's and scipy's BLAS run on one thread. A run's number of threads (`run/environment.py`) is torch's; theirs
is settled from the environment when they are loaded, before there is a run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbroken.base.errors import ConfigError, TrainingError

ALIGNMENT_BYTES = 64
SHORTEST = 1e-12  # what torch.nn.functional.normalize divides by at least
ClassWeight = Literal["balanced"] | Mapping[int, float] | None


class Fit(NamedTuple):
    """What was fitted, float32: `weight` [L, D], `bias` [L]; `notes` say what its user should know."""

    weight: Tensor
    bias: Tensor
    notes: tuple[str, ...]


def fit_logistic(
    embeddings_ND: NDArray[Any],
    targets: NDArray[Any],
    *,
    num_labels: int | None = None,
    multi_label: bool = False,
    one_vs_rest: bool = False,
    class_weight: ClassWeight = None,
    C: float = 1.0,
    max_iter: int = 100,
    normalize_embeddings: bool = False,
) -> Fit:
    """Fit a `LinearHead` of the same `multi_label`, `one_vs_rest` and `normalize_embeddings`.

    `targets` are indices of labels [N], or 0/1 [N, L] with `multi_label`. One label a text: multinomial regression,
    or with `one_vs_rest` one regression a label; any number of labels: one regression a label. `C` is the inverse
    strength of the L2 penalty, which the bias is free of. `class_weight`: "balanced" weighs by 1 / frequency, a
    mapping by index of the label (with a regression a label: its positive examples), as in scikit-learn.

    A label that no text has, or every one, leaves nothing to fit: its weights are 0, and its bias is the log-odds
    of one case more than were seen, ±log(N + 1). Raises `TrainingError` for embeddings that are not finite.
    """
    if not np.isfinite(embeddings_ND).all():
        raise TrainingError(
            "the embeddings of the training texts are not all finite, so no head can be fitted to them",
            next_step="lower the body's learning rate",
        )
    solver = Solver(embeddings_ND, normalize_embeddings, C, max_iter)
    if multi_label or one_vs_rest:
        columns_NL = np.asarray(targets) if multi_label else one_hot(targets, num_labels)
        weight, bias = fit_columns(solver, columns_NL, class_weight)
    else:
        weight, bias = fit_classes(solver, np.asarray(targets), num_labels, class_weight)
    return Fit(torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(bias.astype(np.float32)), solver.notes)


class Solver:
    """scikit-learn's logistic regression on one set of embeddings, run so that equal inputs give equal bits."""

    def __init__(self, embeddings_ND: NDArray[Any], normalize: bool, C: float, max_iter: int) -> None:
        self.embeddings_ND = aligned(embeddings_ND, np.float64)
        if normalize:
            lengths_N1 = np.linalg.norm(self.embeddings_ND, axis=1, keepdims=True)
            self.embeddings_ND /= np.maximum(lengths_N1, SHORTEST)
        self.C = C
        self.max_iter = max_iter
        self.unfinished = 0

    @property
    def dimension(self) -> int:
        """The width of an embedding."""
        return int(self.embeddings_ND.shape[1])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the fits done so far should say."""
        if not self.unfinished:
            return ()
        fits = "a logistic regression" if self.unfinished == 1 else f"{self.unfinished} logistic regressions"
        return (f"{fits} had not converged after {self.max_iter} iterations: raise the head's max_iter, or lower C",)

    def fit(
        self, classes_N: NDArray[Any], class_weight: ClassWeight
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return coefficients and intercepts: [K, D] and [K] for K >= 3 classes, [1, D] and [1] for two."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        weights = dict(class_weight) if isinstance(class_weight, Mapping) else class_weight
        regression = LogisticRegression(C=self.C, max_iter=self.max_iter, class_weight=weights)
        with warnings.catch_warnings(record=True) as raised, threadpool_limits(limits=1, user_api="blas"):
            warnings.simplefilter("always", ConvergenceWarning)
            regression.fit(self.embeddings_ND, aligned(classes_N, np.int64))
        self.unfinished += any(issubclass(warning.category, ConvergenceWarning) for warning in raised)
        return regression.coef_, regression.intercept_


def fit_classes(
    solver: Solver, targets_N: NDArray[Any], num_labels: int | None, class_weight: ClassWeight
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rows of a softmax over all labels; two labels have half of one regression's row each, signed."""
    present = np.unique(targets_N)
    weight, bias = unseen(solver, max(num_labels or 0, int(present[-1]) + 1), len(targets_N))
    if isinstance(class_weight, Mapping):  # scikit-learn refuses weights of classes it is not shown
        class_weight = {label: float(class_weight.get(label, 1.0)) for label in present.tolist()}
    if len(present) == 1:
        bias[present] = 0.0
    elif len(present) == 2:
        rows, intercepts = solver.fit(targets_N, class_weight)
        weight[present] = np.concatenate([-rows / 2, rows / 2])
        bias[present] = np.concatenate([-intercepts / 2, intercepts / 2])
    else:
        weight[present], bias[present] = solver.fit(targets_N, class_weight)
    return weight, bias


def fit_columns(
    solver: Solver, columns_NL: NDArray[Any], class_weight: ClassWeight
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rows of one regression a label: its texts against all others."""
    num_texts, num_labels = columns_NL.shape
    weight, bias = unseen(solver, num_labels, num_texts)
    for label in range(num_labels):
        column_N = columns_NL[:, label].astype(np.int64)
        if column_N.min() == column_N.max():
            bias[label] *= -1 if column_N[0] else 1
            continue
        weights = (
            {0: 1.0, 1: float(class_weight.get(label, 1.0))} if isinstance(class_weight, Mapping) else class_weight
        )
        rows, intercepts = solver.fit(column_N, weights)
        weight[label], bias[label] = rows[0], intercepts[0]
    return weight, bias


def unseen(solver: Solver, num_labels: int, num_texts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rows of labels that none of the texts has."""
    return np.zeros((num_labels, solver.dimension)), np.full(num_labels, -math.log(num_texts + 1))


def one_hot(targets_N: NDArray[Any], num_labels: int | None) -> NDArray[np.int64]:
    """Return indices as 0/1 [N, L]."""
    targets_N = np.asarray(targets_N)
    columns: NDArray[np.int64] = np.eye(max(num_labels or 0, int(targets_N.max()) + 1), dtype=np.int64)[targets_N]
    return columns


def aligned(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Return a contiguous copy at an address divisible by 64: some kernels take another path elsewhere."""
    array = np.asarray(array)
    size = array.size * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    copy: NDArray[Any] = memory[start : start + size].view(dtype).reshape(array.shape)
    copy[...] = array
    return copy


def class_weights(
    targets: Tensor, num_labels: int, class_weight: ClassWeight, multi_label: bool = False
) -> Tensor | None:
    """Return `class_weight` as the numbers [L] that `classification_loss` takes; None where all weigh the same.

    They mean what they mean in `fit_logistic`, up to a common factor of each regression.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, Mapping):
        if any(not 0 <= label < num_labels for label in class_weight):
            raise ConfigError(f"class_weight names a label beyond the {num_labels} there are")
        return torch.tensor([float(class_weight.get(label, 1.0)) for label in range(num_labels)])
    if multi_label:
        positive_L = targets.sum(dim=0).float()
        negative_L = len(targets) - positive_L
        return torch.where((positive_L > 0) & (negative_L > 0), negative_L / positive_L.clamp(min=1), 1.0)
    counts_L = torch.bincount(targets, minlength=num_labels).float()
    present = int((counts_L > 0).sum())
    return torch.where(counts_L > 0, len(targets) / (present * counts_L.clamp(min=1)), 1.0)
