"""A classifier as scikit-learn's estimators are: for its pipelines, cross-validation and searches.

It trains by a run like any other, and reads SetFit's folders beside our own; so it stands where both can be reached.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from unbroken.base.config import shown
from unbroken.base.errors import DataError
from unbroken.bridges.folders import open_any
from unbroken.run.report import Ended, plain, silent
from unbroken.run.stop import STOPPED, StopRequest
from unbroken.tasks.classify.data import are_vectors, lists_in
from unbroken.tasks.classify.predict import TextClassifier, decided
from unbroken.tasks.request import Request
from unbroken.tasks.train import carry_out

OWN = ("settings", "verbose")  # parameters that are no keys of a configuration


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Few-shot text classification with scikit-learn's conventions.

    Parameters are the keys of `ClassifyConfig`; None leaves one to its default there, and `settings` holds any keys
    that have no parameter of their own. `fit` trains in a temporary folder; with `output_dir` it is a run that is
    there to stay: fitting again with the same data goes on where it stopped, or finds it finished.

    After `fit`: `classes_`, the labels in the order of the columns of `predict_proba`; `classifier_`, the model as a
    `TextClassifier`; `ended_`, how the run ended, with its proof. Where texts have any number of labels, given as
    lists of labels or a matrix of 0 and 1, predictions are such a matrix with a column for each of `classes_`.
    """

    classes_: NDArray[Any]
    classifier_: TextClassifier
    ended_: Ended

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        output_dir: str | os.PathLike[str] | None = None,
        labels: list[str | int] | None = None,
        samples_per_label: int | None = None,
        pairs: str | None = None,
        sampling_strategy: str | None = None,
        num_iterations: int | None = None,
        loss: str | None = None,
        batch_size: int | tuple[int, int] | None = None,
        num_epochs: float | tuple[float, float] | None = None,
        max_steps: int | None = None,
        body_learning_rate: float | tuple[float, float] | None = None,
        warmup_ratio: float | None = None,
        micro_batch_size: int | None = None,
        max_length: int | None = None,
        head: str | None = None,
        head_learning_rate: float | None = None,
        l2_weight: float | None = None,
        end_to_end: bool | None = None,
        class_weight: str | dict[Any, float] | None = None,
        normalize_embeddings: bool | None = None,
        seed: int | None = None,
        threads: int | str | None = None,
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.output_dir = output_dir
        self.labels = labels
        self.samples_per_label = samples_per_label
        self.pairs = pairs
        self.sampling_strategy = sampling_strategy
        self.num_iterations = num_iterations
        self.loss = loss
        self.batch_size = batch_size
        self.num_epochs = num_epochs
        self.max_steps = max_steps
        self.body_learning_rate = body_learning_rate
        self.warmup_ratio = warmup_ratio
        self.micro_batch_size = micro_batch_size
        self.max_length = max_length
        self.head = head
        self.head_learning_rate = head_learning_rate
        self.l2_weight = l2_weight
        self.end_to_end = end_to_end
        self.class_weight = class_weight
        self.normalize_embeddings = normalize_embeddings
        self.seed = seed
        self.threads = threads
        self.device = device
        self.settings = settings
        self.verbose = verbose

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, allow_pickle: bool = False, device: str | None = None
    ) -> Self:
        """Load the classifier of a run, a checkpoint, a model folder, or a folder SetFit wrote.

        SetFit's head is a pickle, which is read, as data, only with `allow_pickle` and with a warning. Raises
        `ConfigError` if there is no classifier, or if it is damaged.
        """
        loaded = cls(path, device=device)
        loaded._take(open_any(path, allow_pickle=allow_pickle, device=device or "auto"))
        return loaded

    def fit(self, X: Any, y: Any) -> Self:
        """Train on texts `X` with labels `y`: one each, lists of them, or a matrix of 0 and 1 with a column a label.

        A stop by a signal ends as it would without us: Ctrl-C raises `KeyboardInterrupt`, others `SystemExit`; with
        `output_dir` nothing but time is lost. Raises `ConfigError` for a bad parameter, `DataError` for bad texts or
        labels, `CannotContinueError` if `output_dir` holds a run with other data or parameters.
        """
        texts, labels = texts_of(X), labels_of(y)
        if len(texts) != len(labels):
            raise DataError(f"X has {len(texts):,} texts and y {len(labels):,} labels", next_step="give one for each")
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        with self._folder() as folder:
            values = self._values() | {"train_data": rows, "output_dir": str(folder)}
            stop = StopRequest()
            ended = carry_out(Request.of(values), plain if self.verbose else silent, stop)
            if not ended.finished:
                if stop.signal is signal.SIGINT:
                    raise KeyboardInterrupt
                sys.exit(stop.exit_code or STOPPED)
            self._take(open_any(folder, device=self.device or "auto"))
        self.ended_ = ended
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label of each text; of texts with any number of labels, a matrix of 0 and 1."""
        found = decided(self._probabilities(X), self.classifier_.multi_label)
        return found.astype(np.int64) if self.classifier_.multi_label else self.classes_[found]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability [texts, classes] of each of `classes_`.

        Rows sum to 1 as scikit-learn's metrics want it, to the precision of float64, unless a text may have several.
        """
        found = self._probabilities(X)
        return found if self.classifier_.multi_label else found / found.sum(axis=1, keepdims=True)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy; of texts with any number of labels, the share of those with all of them right."""
        from sklearn.metrics import accuracy_score

        found, labels = self.predict(X), labels_of(y)
        truth = self._matrix(labels) if self.classifier_.multi_label else labels
        return float(accuracy_score(truth, found, sample_weight=sample_weight))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model folder that `SentenceTransformer` and `from_pretrained` load: whole, or not at all.

        An earlier model folder there is replaced. Raises `ConfigError` if `path` is anything else, or in a run.
        """
        self._require_fitted()
        self.classifier_.save(path)

    def __sklearn_tags__(self) -> Any:
        """Say what scikit-learn should know: one text a row, not numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string = True, False, True
        tags.classifier_tags.multi_label = True
        return tags

    def _take(self, classifier: TextClassifier) -> None:
        kinds = {type(label) for label in classifier.labels}
        self.classifier_ = classifier
        self.classes_ = np.array(classifier.labels, dtype=object if len(kinds) > 1 else None)

    def _values(self) -> dict[str, Any]:
        """Return the configuration: what was left open is left out."""
        given = {key: value for key, value in self.get_params(deep=False).items() if key not in OWN}
        values = {key: plain_value(value) for key, value in given.items() if value is not None}
        return {"task": "classify", **values, **(self.settings or {})}

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.output_dir is not None:
            yield Path(self.output_dir).expanduser()
            return
        with TemporaryDirectory(prefix="unbroken-") as folder:
            yield Path(folder) / "run"

    def _require_fitted(self) -> None:
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "classifier_")

    def _probabilities(self, X: Any) -> NDArray[np.float64]:
        self._require_fitted()
        return self.classifier_.predict_proba(texts_of(X))

    def _matrix(self, labels: list[Any]) -> NDArray[np.int64]:
        """Return lists of labels, or vectors of 0 and 1, as a matrix with a column for each of `classes_`."""
        names = self.classifier_.labels
        if are_vectors(lists_in(labels), len(names)):
            return np.array(labels, dtype=np.int64)
        places = {name: place for place, name in enumerate(names)}
        matrix = np.zeros((len(labels), len(names)), dtype=np.int64)
        for row, cell in enumerate(labels):
            for name in cell:
                if name not in places:
                    raise DataError(f"y[{row}] holds {shown(name)}, which is none of the {len(names)} classes")
                matrix[row, places[name]] = 1
        return matrix


def texts_of(X: Any) -> list[str]:
    """Return a list, an array or a column of texts as a list. Raises `DataError` for anything else."""
    if isinstance(X, str | bytes):
        raise DataError("X is a single text", next_step="give a list of texts: [text]")
    if getattr(X, "ndim", 1) != 1:
        advice = "give one column of it: X['text']" if hasattr(X, "columns") else "give one text a row: X[:, 0]"
        raise DataError(f"X has {X.ndim} dimensions, where a list of texts is expected", next_step=advice)
    texts = X.tolist() if hasattr(X, "tolist") else list(X)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"X[{row}] is {shown(text)}, where a text is expected", next_step="leave it out, or correct it"
            )
    if not texts:
        raise DataError("X holds no text", next_step="give at least one")
    return [str(text) for text in texts]  # numpy's own kind of text becomes Python's


def labels_of(y: Any) -> list[Any]:
    """Return labels as a list of plain values: labels, lists of labels, or lists of 0 and 1."""
    if hasattr(y, "toarray"):  # scipy's sparse matrices
        y = y.toarray()
    if getattr(y, "ndim", 1) == 2:
        return vectors_of(np.asarray(y))
    cells = y.tolist() if hasattr(y, "tolist") else list(y)
    return [plain_value(sorted(cell) if isinstance(cell, set | frozenset) else cell) for cell in cells]


def vectors_of(matrix: NDArray[Any]) -> list[Any]:
    """Return a matrix of 0 and 1 as lists; of a single column of labels, the labels."""
    if matrix.shape[1] == 1:
        return [plain_value(cell) for cell in matrix[:, 0].tolist()]
    if matrix.dtype.kind in "biuf" and np.isin(matrix, (0, 1)).all():
        return list(matrix.astype(np.int64).tolist())
    raise DataError(
        f"y has {matrix.shape[1]} columns and holds more than 0 and 1",
        next_step="give one label a text, lists of labels, or a matrix of 0 and 1 with a column for each label",
    )


def plain_value(value: Any) -> Any:
    """Return numpy's numbers, texts and arrays, and paths, as Python's own values, in lists and mappings too."""
    match value:
        case np.generic():
            return value.item()
        case np.ndarray():
            return value.tolist()
        case os.PathLike():
            return os.fspath(value)
        case Mapping():
            return {plain_value(key): plain_value(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain_value(inner) for inner in value]
    return value
