"""Use a finished classifier: on texts, and on files of any size."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unbroken.base.errors import ConfigError, DataError
from unbroken.models.folder import resolve
from unbroken.plan.formats import ColumnMissingError
from unbroken.plan.source import read_blocks
from unbroken.run.preflight import require_output
from unbroken.store.files import replace_with
from unbroken.store.layout import UNFINISHED_MODEL
from unbroken.store.run import read_run
from unbroken.tasks.base_model import require_weights
from unbroken.tasks.origin import enclosing_run, resolve_model
from unbroken.tasks.rendering import rendered

if TYPE_CHECKING:  # both bring torch
    from torch import Tensor

    from unbroken.models.classifying import ClassifierSettings, LinearHead
    from unbroken.models.encoder import Encoder

Label = str | int
Floats = NDArray[np.float64]

CLASSIFIER_FILE = "classifier.json"  # SETTINGS_FILE of models/classifying.py, whose torch nobody should wait for
ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class TextClassifier:
    """An encoder with its head: texts in, labels or probabilities out. `settings` say what the labels are."""

    encoder: Encoder
    settings: ClassifierSettings
    head: LinearHead

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels, in the order of the columns of `predict_proba`."""
        return self.settings.labels

    @property
    def multi_label(self) -> bool:
        """Whether a text has any number of labels, not exactly one."""
        return self.settings.multi_label

    def predict_proba(self, texts: Sequence[str], show_progress: bool | None = False) -> Floats:
        """Return the probability [N, L] of each label for each text, in order.

        Rows sum to 1, to the precision of float32, unless a text may have several labels.
        """
        import torch

        from unbroken.models.inference import encode_texts
        from unbroken.tasks.classify.heads import EVALUATED_AT_ONCE  # bits depend on what is encoded together

        if not texts:
            return np.empty((0, len(self.labels)))
        embeddings = encode_texts(
            self.encoder,
            texts,
            prompt=self.encoder.resolve_prompt(),
            batch_size=EVALUATED_AT_ONCE,
            normalize=False,
            truncate_dim=None,
            show_progress=show_progress,
        )
        with torch.no_grad():
            found: Floats = self.head.probabilities(embeddings).double().cpu().numpy()
        return found

    def predict(self, texts: Sequence[str]) -> list[Any]:
        """Return each text's label; where a text may have several, a list of those that apply."""
        found = decided(self.predict_proba(texts), self.multi_label)
        if self.multi_label:
            return [[self.labels[place] for place in np.flatnonzero(row)] for row in found]
        return [self.labels[place] for place in found]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model folder that `SentenceTransformer` and `open_classifier` load: whole, or not at all.

        An earlier model folder there is replaced. Raises `ConfigError` if `path` is anything else, or in a run, and
        `StorageError`.
        """
        from unbroken.models.classifying import classifier_documents, classifier_layout
        from unbroken.store.model import replace_model

        folder = Path(path).expanduser()
        require_replaceable(folder)
        tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in self.encoder.state_dict().items():
            if not self.encoder.is_extra(name):
                file, key = self.encoder.layout(name)
                tensors[file][key] = tensor
        for name, tensor in self.head.state_dict().items():
            file, key = classifier_layout(name)
            tensors[file][key] = tensor
        replace_model(folder, self.encoder.documents() | classifier_documents(self.settings), tensors)


def decided(probabilities_NL: Floats, multi_label: bool) -> NDArray[Any]:
    """Return what is predicted: places of labels [N], or with several labels a text whether each applies [N, L]."""
    return probabilities_NL >= 0.5 if multi_label else probabilities_NL.argmax(axis=1)


def is_classifier(model: str | os.PathLike[str]) -> bool:
    """Tell whether a run, a checkpoint or a model folder holds a classifier, not an embedding model alone."""
    return (resolve(resolve_model(os.fspath(model)).model) / CLASSIFIER_FILE).exists()


def open_classifier(model: str | os.PathLike[str], device: str = "auto") -> TextClassifier:
    """Load the classifier of a run, a checkpoint or a model folder.

    Raises `ConfigError` if there is none, or if it is damaged.
    """
    name = resolve_model(os.fspath(model)).model
    folder = resolve(name)
    if not (folder / CLASSIFIER_FILE).exists():
        require_weights(name)
        raise ConfigError(
            f"{model} is an embedding model, without a classifier ({CLASSIFIER_FILE} is missing)",
            next_step=f"train one on it: `task: classify` with `model: {model}`; for embeddings, `unbroken encode`",
        )
    if (folder / UNFINISHED_MODEL).exists():
        raise ConfigError(
            f"{folder} is the model of an unfinished run: its head is not trained yet",
            why="whatever it answered would mean nothing",
            next_step=f"carry the run to its end: `unbroken train {enclosing_run(folder) or model}`",
        )
    from unbroken.models.classifying import read_classifier
    from unbroken.models.encoder import Encoder
    from unbroken.tasks.device import resolve_device

    encoder = Encoder.from_pretrained(folder, device=resolve_device(device))
    settings, head = read_classifier(folder, encoder.dimension)
    return TextClassifier(encoder, settings, head.to(encoder.device).eval())


def text_column(model: str | os.PathLike[str]) -> str:
    """Return the column that the model's run read its texts from; "text" for a model that is no run's."""
    run = enclosing_run(Path(model).expanduser())
    recorded = (read_run(run) or {}).get("config", {}) if run else {}
    return str((recorded.get("columns") or {}).get("text", "text"))


def predict_file(
    opening: Callable[[], TextClassifier],
    rows: Path,
    output: Path,
    *,
    column: str = "text",
    proba: bool = False,
    keep: bool = False,
) -> int:
    """Write one JSON object a line for each row, in order, whole or not at all; return how many.

    `label` is what is predicted and `probability` how likely it is; both are lists where a text may have several
    labels. `proba` adds `probabilities`, of every label by its name, `keep` the row itself as `input`. Memory does
    not grow with the file. `opening` loads the model: what is wrong with paths and first rows is found out before.
    Raises `ConfigError`, `DataError` and `StorageError`; an earlier file at `output` then stands.
    """
    require_output(output, ".jsonl", rows)
    blocks = (
        (table, table.texts(column), inputs) for table, inputs in read_blocks(rows, ROWS_AT_ONCE, column, whole=keep)
    )
    try:
        first = next(blocks)
    except ColumnMissingError as failure:
        advice = f"did you mean --column {failure.near}?" if failure.near else "say which holds the text: --column NAME"
        raise DataError(failure.what, why=failure.why, next_step=advice) from None
    classifier = opening()
    count = 0

    def written() -> Iterator[bytes]:
        nonlocal count
        for table, texts, inputs in chain([first], blocks):
            found = predictions(classifier, texts, proba)
            if keep:
                found = ({"input": row, **prediction} for row, prediction in zip(inputs, found, strict=True))
            yield rendered(table, found)
            count += len(texts)

    replace_with(output, written())
    return count


def predictions(classifier: TextClassifier, texts: Sequence[str], proba: bool) -> Iterator[dict[str, Any]]:
    """Yield what is said about each text."""
    probabilities = classifier.predict_proba(texts)
    found = decided(probabilities, classifier.multi_label)
    names = classifier.labels
    for row, chosen in zip(probabilities.tolist(), found, strict=True):
        prediction: dict[str, Any]
        if classifier.multi_label:
            places = np.flatnonzero(chosen)
            prediction = {"label": [names[i] for i in places], "probability": [row[i] for i in places]}
        else:
            prediction = {"label": names[chosen], "probability": row[chosen]}
        if proba:
            prediction["probabilities"] = dict(zip(map(str, names), row, strict=True))
        yield prediction


def require_replaceable(folder: Path) -> None:
    """Raise `ConfigError` unless a model may be written at `folder`: nothing there, an empty folder or a model."""
    run = enclosing_run(folder)
    if run is not None:
        raise ConfigError(
            f"{folder} belongs to the run {run}",
            why="what a run wrote is compared with its record",
            next_step="choose a folder outside it",
        )
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "modules.json").is_file()):
        raise ConfigError(f"{folder} is there and is no model folder", next_step="choose another name")
