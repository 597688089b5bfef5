"""Which training texts look mislabelled: those that a head trained on the others would label otherwise.

Confident learning in its simplest form (Northcutt et al. 2021, arXiv 1911.00068). Every text is judged by a head that
has not seen it; a probability counts relative to the mean that texts of its label give that label, so that classes
which are hard, or rare, do not look wrong as a whole.
Shape suffixes: N texts, L labels, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unbroken.base.seeds import derive
from unbroken.base.stopping import poll
from unbroken.plan.permutation import permute
from unbroken.tasks.classify.baselines import HeadFitter, head_probabilities
from unbroken.tasks.classify.scores import Floats

FOLDS, FOLDS_OF_MANY = 10, 3
MANY = 5000  # texts from which on fewer folds do: the others are nearly all there are


@dataclass(frozen=True)
class Suspect:
    """A training text (`row` counts from 0) that others would label otherwise.

    `probability` is what they give the label it has, and `relative` that over its mean among texts of this label: the
    lower, the likelier a mistake. `stands_out` where the suggested label is as sure as it is for texts that have it.
    """

    row: int
    label: int
    suggested: int
    probability: float
    suggested_probability: float
    relative: float
    stands_out: bool


def num_folds(num_texts: int) -> int:
    """Return into how many parts so many texts are split."""
    return FOLDS if num_texts <= MANY else FOLDS_OF_MANY


def folds(classes_N: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each text: each class is spread evenly, in an order keyed by `seed`.

    So no fold holds all of a class that has two texts or more.
    """
    fold_N = np.empty(len(classes_N), dtype=np.int64)
    begun = 0
    for label in np.unique(classes_N):
        members = np.flatnonzero(classes_N == label)
        places = permute(derive(seed, "report", "folds", int(label)), np.arange(len(members)), len(members))
        fold_N[members] = (places + begun) % count
        begun += len(members)
    return fold_N


def held_out_probabilities(
    embeddings_ND: Tensor, classes_N: NDArray[np.int64], fit: HeadFitter, seed: int, advance: Callable[[int], None]
) -> Floats:
    """Return the probabilities [N, L] that each text gets from a head fitted to the other folds."""
    count = num_folds(len(classes_N))
    fold_N = folds(classes_N, count, seed)
    probabilities_NL = np.zeros((len(classes_N), len(fit.settings.labels)))
    for fold in range(count):
        poll()
        inside = fold_N == fold
        if inside.any():
            head = fit(embeddings_ND[np.flatnonzero(~inside)], classes_N[~inside])
            probabilities_NL[inside] = head_probabilities(head, embeddings_ND[np.flatnonzero(inside)])
        advance(1)
    return probabilities_NL


def suspects(probabilities_NL: Floats, classes_N: NDArray[np.int64]) -> list[Suspect]:
    """Return the texts that are given another label than they have, the likeliest mistakes first."""
    rows = np.arange(len(classes_N))
    given_N = probabilities_NL[rows, classes_N]
    sums_L = np.bincount(classes_N, weights=given_N, minlength=probabilities_NL.shape[1])
    counts_L = np.bincount(classes_N, minlength=probabilities_NL.shape[1])
    usual_L = sums_L / np.maximum(1, counts_L)
    suggested_N = probabilities_NL.argmax(axis=1)
    highest_N = probabilities_NL[rows, suggested_N]
    relative_N = given_N / usual_L[classes_N]
    order = np.argsort(relative_N, kind="stable")
    return [
        Suspect(
            row=int(row),
            label=int(classes_N[row]),
            suggested=int(suggested_N[row]),
            probability=float(given_N[row]),
            suggested_probability=float(highest_N[row]),
            relative=float(relative_N[row]),
            stands_out=bool(highest_N[row] >= usual_L[suggested_N[row]]),
        )
        for row in order
        if suggested_N[row] != classes_N[row]
    ]
