"""How good a finished classifier is on rows: the metrics of its run's evaluation, and each class by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError
from unbroken.store.run import read_run
from unbroken.tasks.classify.config import METRICS, ClassifyConfig
from unbroken.tasks.classify.data import LabelledTexts, Labels, are_vectors, lists_in
from unbroken.tasks.classify.predict import TextClassifier, decided, open_classifier
from unbroken.tasks.classify.scores import ClassScore, class_scores, one_hot
from unbroken.tasks.origin import enclosing_run
from unbroken.tasks.request import ROWS_IN_MEMORY

Metric = str | Callable[[Any, Any], float]
RECORDED = ("columns", "eval_data", "labels", "metric")


@dataclass(frozen=True)
class Measured:
    """Metrics by name, those asked for first, and a line for each class in the order of the classifier."""

    metrics: dict[str, float]
    classes: tuple[ClassScore, ...]


class HeldOutTexts(LabelledTexts):
    """Rows whose labels must be the classifier's; lists of labels may be names or vectors of 0 and 1."""

    trained_on = False

    def __init__(self, config: ClassifyConfig, opening: Callable[[], TextClassifier]) -> None:
        super().__init__(config.eval_data, config)
        self._opening = opening

    @cached_property
    def labels(self) -> Labels:
        """The classifier's labels."""
        classifier, vectors = self._opening(), False
        if classifier.multi_label:
            vectors = are_vectors(lists_in(self.cells), len(classifier.labels))
        return Labels(classifier.labels, classifier.multi_label, vectors)


def measure(
    model: str | os.PathLike[str],
    data: Any = None,
    columns: Mapping[str, str] | None = None,
    metric: Metric | Sequence[Metric] | None = None,
    device: str = "auto",
) -> Measured:
    """Return the metrics of a run, checkpoint or model folder on rows; what is not given is taken from the run.

    `metric` names what comes first; a function of true and predicted labels (0 and 1 for each, where a text may have
    several) is one under its own name. Raises `ConfigError` if there are no rows to measure on or a metric is not
    known, `DataError` for a bad row or a label the classifier does not know.
    """
    config = config_of(model, data, columns)
    asked = config.metric if metric is None else metric
    first: Sequence[Metric] = [asked] if isinstance(asked, str) or callable(asked) else asked
    require_known(first)
    opening = cache(partial(open_classifier, model, device))
    rows = HeldOutTexts(config, opening)
    texts = rows.texts  # read and checked before a model is loaded
    return measured(opening(), texts, rows.targets, first)


def config_of(model: str | os.PathLike[str], data: Any, columns: Mapping[str, str] | None) -> ClassifyConfig:
    """Return what says where the rows are and how to read them: as given, else as in the model's run."""
    run = enclosing_run(Path(model))
    recorded = (read_run(run) or {}).get("config", {}) if run else {}
    values: dict[str, Any] = {"output_dir": "", "train_data": "none", "model": os.fspath(model)}
    if recorded.get("task") == "classify":
        values |= {key: recorded[key] for key in RECORDED if key in recorded}
    values |= {"columns": dict(columns)} if columns else {}
    values |= {"eval_data": data} if data is not None else {}
    if values.get("eval_data") is None:
        raise ConfigError(f"no rows to measure {model} on", next_step="give a file: unbroken evaluate MODEL FILE")
    if isinstance(values["eval_data"], str) and ROWS_IN_MEMORY.fullmatch(values["eval_data"]):
        raise ConfigError(
            f"the run {run} was evaluated on {values['eval_data'][1:-1]}", next_step="give a file with rows"
        )
    return ClassifyConfig.from_values(values)


def require_known(metrics: Sequence[Metric]) -> None:
    """Raise `ConfigError` for a name that is no metric's."""
    for name in metrics:
        if isinstance(name, str) and name not in METRICS:
            near = closest(name, METRICS)
            raise ConfigError(
                f"metric: '{name}' is not known",
                next_step=f"did you mean '{near}'?" if near else f"there are {', '.join(METRICS)}",
            )


def measured(
    classifier: TextClassifier, texts: list[str], targets: NDArray[np.int64], first: Sequence[Metric]
) -> Measured:
    """Measure a classifier on texts whose targets are places of labels [N], or 0 and 1 for each [N, L]."""
    from unbroken.tasks.classify.evaluation import measures

    probabilities = classifier.predict_proba(texts, show_progress=None)
    found = decided(probabilities, classifier.multi_label)
    values = measures(probabilities, targets)
    ordered: dict[str, float] = {}
    for one in first:
        if isinstance(one, str):
            ordered[one] = values[one]
        elif classifier.multi_label:
            ordered[one.__name__] = float(one(targets, found.astype(np.int64)))
        else:
            names = [[classifier.labels[place] for place in places] for places in (targets, found)]
            ordered[one.__name__] = float(one(*names))
    count = len(classifier.labels)
    classes = class_scores(one_hot(found, count), one_hot(targets, count), classifier.labels)
    return Measured(ordered | values, tuple(classes))
