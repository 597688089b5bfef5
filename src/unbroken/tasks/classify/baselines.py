"""What a run is compared with: classifiers that cost next to nothing, trained on the very same examples.

Each takes the training's texts and targets, and returns its decisions on other texts as 0/1 [N, L].
Shape suffixes: N texts, M training texts, L labels, D dimensions, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbroken.models.classifying import ClassifierSettings, LinearHead
from unbroken.models.logistic import ClassWeight, fit_logistic
from unbroken.tasks.classify.scores import Bools, Floats, decide, one_hot
from unbroken.tasks.ranking import nearest

WORDS, LETTERS = (1, 2), (3, 5)  # words in a row, and letters in a row within a word, that are counted
MOST_FEATURES = 50_000  # of words, and of letters: the most frequent
MOST_WEIGHTS = 2_000_000  # of the regression on them: its solver holds some 25 copies, 400 MB


@dataclass(frozen=True)
class Texts:
    """Texts, their targets ([N] class indices or 0/1 [N, L]), and the untuned model's embeddings [N, D] of them."""

    texts: Sequence[str]
    targets: NDArray[np.int64]
    embeddings: Tensor | None = None


@dataclass(frozen=True)
class HeadFitter:
    """Fits heads like the run's own: the same labels, class weights and normalisation."""

    settings: ClassifierSettings
    class_weight: ClassWeight

    def __call__(self, embeddings_MD: Tensor, targets: NDArray[np.int64]) -> LinearHead:
        """Return a logistic regression on these embeddings."""
        weight, bias, _ = fit_logistic(
            embeddings_MD.float().cpu().numpy(),
            targets,
            num_labels=len(self.settings.labels),
            multi_label=self.settings.multi_label,
            one_vs_rest=self.settings.one_vs_rest,
            class_weight=self.class_weight,
            normalize_embeddings=self.settings.normalize_embeddings,
        )
        head = self.settings.head()
        head.load_state_dict({"weight": weight, "bias": bias, "temperature": torch.ones(())})
        return head


@torch.no_grad()
def head_probabilities(head: LinearHead, embeddings_ND: Tensor) -> Floats:
    """Return what a head on the CPU makes of embeddings: [N, L]."""
    return head.probabilities(embeddings_ND.float().cpu()).double().numpy()


def majority(training: Texts, texts: Texts, num_labels: int) -> Bools:
    """Give every text the most frequent class (of equals the first), or the labels that most training texts have."""
    truth_ML = one_hot(training.targets, num_labels)
    found_L = truth_ML.mean(axis=0) >= 0.5 if training.targets.ndim == 2 else np.zeros(num_labels, dtype=bool)
    if training.targets.ndim == 1:
        found_L[truth_ML.sum(axis=0).argmax()] = True
    return np.tile(found_L, (len(texts.texts), 1))


def tfidf_regression(training: Texts, texts: Texts, num_labels: int) -> Bools:
    """Logistic regression on how often words, pairs of words and runs of letters occur, rare ones weighing more."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    most = max(1, min(MOST_FEATURES, MOST_WEIGHTS // (2 * num_labels)))
    counted = make_union(
        TfidfVectorizer(ngram_range=WORDS, token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, max_features=most),
        TfidfVectorizer(analyzer="char_wb", ngram_range=LETTERS, sublinear_tf=True, max_features=most),
    )
    features_MF, features_NF = counted.fit_transform(training.texts), counted.transform(texts.texts)
    if training.targets.ndim == 1:
        regression = _regression(features_MF, training.targets)
        return one_hot(regression.predict(features_NF), num_labels)
    found_NL = np.zeros((len(texts.texts), num_labels), dtype=bool)
    for label, column_M in enumerate(training.targets.T):
        constant = column_M.min() == column_M.max()
        found_NL[:, label] = column_M[0] if constant else _regression(features_MF, column_M).predict(features_NF)
    return found_NL


def nearest_neighbour(training: Texts, texts: Texts, num_labels: int) -> Bools:
    """Give every text the labels of the training text whose embedding has the highest cosine with its own."""
    assert training.embeddings is not None, "neighbours are found by embeddings"
    assert texts.embeddings is not None, "neighbours are found by embeddings"
    rows = nearest(texts.embeddings, training.embeddings, 1, "cosine")[:, 0]
    return one_hot(training.targets[rows], num_labels)


def embedding_regression(fit: HeadFitter, training: Texts, texts: Texts, num_labels: int) -> Bools:
    """Logistic regression on the untuned model's embeddings: the run without its first phase."""
    assert training.embeddings is not None, "the regression is on embeddings"
    assert texts.embeddings is not None, "the regression is on embeddings"
    head = fit(training.embeddings, training.targets)
    return decide(head_probabilities(head, texts.embeddings), training.targets.ndim == 2)


Baseline = Callable[[Texts, Texts, int], Bools]
ON_TEXTS: dict[str, Baseline] = {"majority": majority, "tfidf_regression": tfidf_regression}


def on_embeddings(fit: HeadFitter) -> dict[str, Baseline]:
    """Return the baselines that need the untuned model's embeddings."""
    return {
        "untuned_nearest_neighbour": nearest_neighbour,
        "untuned_regression": partial(embedding_regression, fit),
    }


def _regression(features_MF: Any, classes_M: NDArray[np.int64]) -> Any:
    """Fit scikit-learn's, on one thread: the bits of sums depend on how they are shared out."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(limits=1, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # a decision hardly moves in the last iterations
        return LogisticRegression().fit(features_MF, classes_M)
