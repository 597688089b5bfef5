"""SetFit's model folders: a sentence-transformers folder, `config_setfit.json`, and the head in a pickle.

Sources: SetFit 1.2 `modeling.py`; how scikit-learn's estimators come from scores to probabilities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unbroken.base.errors import ConfigError
from unbroken.bridges.pickled import Made, read_pickled, read_storage
from unbroken.models.classifying import ClassifierSettings, Kind, Label, LinearHead
from unbroken.models.folder import parse_object, read_if_there, resolve

HEAD_FILE = "model_head.pkl"
CONFIG_FILE = "config_setfit.json"
REGRESSION = "LogisticRegression"
UNREADABLE = (
    "readable are LogisticRegression, OneVsRestClassifier and MultiOutputClassifier of it, and SetFitHead; "
    "train the head again on the same examples"
)
CERTAIN = 20.0  # the logit of a label that every training text had: its probability is 1 to eight digits


class PickleWarning(UserWarning):
    """A model came out of a pickle: a file that is better not kept."""


@dataclass(frozen=True)
class SetFitModel:
    """What a SetFit folder holds: where its encoder lies, and its classifier as Unbroken has them."""

    encoder: Path
    settings: ClassifierSettings
    head: LinearHead


@dataclass(frozen=True)
class Rows:
    """A head's numbers with what says how to read them; `classes` are SetFit's own, not yet names."""

    kind: Kind
    classes: list[Any]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    multi_label: bool = False
    one_vs_rest: bool = False
    temperature: float = 1.0


def is_setfit(folder: Path) -> bool:
    """Whether a folder has the files that only SetFit writes."""
    return (folder / HEAD_FILE).is_file() or (folder / CONFIG_FILE).is_file()


def read_setfit(path: str | Path, allow_pickle: bool = False) -> SetFitModel:
    """Read a folder of `SetFitModel.save_pretrained`; a name on the hub is fetched.

    The head's pickle is read only with `allow_pickle`, as data, without running what it says, and with a
    `PickleWarning`. Predictions are SetFit's own, probabilities to 1e-5. Raises `ConfigError` without the flag, and
    for what is missing, damaged, or another estimator than those SetFit makes by itself.
    """
    folder = resolve(path, HEAD_FILE)
    place = folder / HEAD_FILE
    if not place.is_file():
        raise ConfigError(
            f"{folder} holds no SetFit classifier: {HEAD_FILE} is missing",
            why="SetFit's checkpoints hold the body only",
            next_step="name the folder SetFit's save_pretrained wrote",
        )
    if not allow_pickle:
        raise ConfigError(
            f"{place} is a pickle: SetFit keeps its head in one",
            why="whoever writes a pickle decides what programs that load it do",
            next_step="if you trust where it comes from, say allow_pickle=True, and save the model without one",
        )
    warnings.warn(
        f"{place} is a pickle: Unbroken takes the numbers from it without running it, but SetFit and joblib run it, "
        "whatever it says; save the model and use what was saved, which holds no pickle",
        PickleWarning,
        stacklevel=2,
    )
    try:
        rows = rows_of(read_pickled(place))
        settings = settings_of(rows, folder)
        return SetFitModel(folder, settings, head_of(rows, settings))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError) as failure:
        raise ConfigError(f"{place} cannot be taken over: {failure}", next_step=UNREADABLE) from None


def settings_of(rows: Rows, folder: Path) -> ClassifierSettings:
    """Put SetFit's settings and names to the rows."""
    document = read_if_there(folder, [CONFIG_FILE]).get(CONFIG_FILE, b"{}")  # SetFit before 1.0 wrote none
    config = parse_object(document, folder / CONFIG_FILE)
    names = config.get("labels")
    if names is not None and not isinstance(names, list):
        raise ConfigError(f"{folder / CONFIG_FILE}: 'labels' is not a list")
    if names and rows.multi_label and len(names) != len(rows.classes):
        raise ConfigError(f"{folder / CONFIG_FILE} names {len(names)} labels, the head has {len(rows.classes)}")
    labels = tuple(label_of(value, names) for value in rows.classes)
    normalize = bool(config.get("normalize_embeddings", False))
    try:
        return ClassifierSettings(
            rows.kind, labels, rows.weight.shape[1], rows.multi_label, rows.one_vs_rest, normalize
        )
    except ConfigError as failure:
        raise ConfigError(f"{folder}: {failure}") from None


def label_of(value: Any, names: list[Any] | None) -> Label:
    """Return what SetFit answers for a class: text as it is, else the name at that place, else the number."""
    if isinstance(value, str):
        return str(value)
    if value != int(value):
        raise ValueError(f"class {value} is neither text nor a whole number")
    if not names:
        return int(value)
    if not 0 <= value < len(names):
        raise ValueError(f"class {int(value)} has no name among the {len(names)} of {CONFIG_FILE}")
    name = names[int(value)]
    return name if isinstance(name, int) else str(name)


def head_of(rows: Rows, settings: ClassifierSettings) -> LinearHead:
    """Return the head with the rows' numbers."""
    if rows.weight.shape != (len(rows.classes), rows.weight.shape[1]) or rows.bias.shape != (len(rows.classes),):
        raise ValueError(f"weights {rows.weight.shape} and biases {rows.bias.shape} for {len(rows.classes)} labels")
    if not (np.isfinite(rows.weight).all() and np.isfinite(rows.bias).all() and 0 < rows.temperature < np.inf):
        raise ValueError("not every number in it is finite, and the temperature above 0")
    head = settings.head()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(rows.weight))
        head.bias.copy_(torch.from_numpy(rows.bias))
        head.temperature.fill_(rows.temperature)
    return head


def rows_of(head: Any) -> Rows:
    """Return the rows of what the pickle holds. Raises `ValueError` naming what is not understood."""
    name = head.name if isinstance(head, Made) else type(head).__name__
    converter = CONVERTERS.get(short(head))
    if converter is None:
        raise ValueError(f"the head is a {name}")
    return converter(head)


def short(value: Any) -> str:
    """Return the bare name of a class of scikit-learn or SetFit; "" for anything else."""
    package, _, _ = value.name.partition(".") if isinstance(value, Made) else ("", "", "")
    return str(value.name).rpartition(".")[2] if package in ("sklearn", "setfit") else ""


def regression(head: Made) -> Rows:
    """Read a LogisticRegression. Old ones may have been fitted one label against the rest."""
    classes = array(head, "classes_").tolist()
    weight, bias = array(head, "coef_").astype(np.float64), array(head, "intercept_").astype(np.float64)
    if len(classes) == 2:  # a softmax of -z and z is a sigmoid of 2 z
        scale = 1.0 if head.get("multi_class") == "multinomial" else 0.5
        weight, bias = np.concatenate([-weight, weight]) * scale, np.concatenate([-bias, bias]) * scale
        return Rows("logistic_regression", classes, weight, bias)
    alone = head.get("multi_class") == "ovr" or head.get("solver") == "liblinear"
    return Rows("logistic_regression", classes, weight, bias, one_vs_rest=alone)


def one_vs_rest(head: Made) -> Rows:
    """Read a OneVsRestClassifier, of one label a text or of several."""
    binarizer, estimators = head.get("label_binarizer_"), head.get("estimators_")
    classes = array(binarizer, "classes_").tolist()
    several = binarizer.get("y_type_") == "multilabel-indicator"
    if len(estimators) == 1 and not several:  # two classes: of the one estimator, the second is what it finds
        row, bias = column(estimators[0])
        return Rows("logistic_regression", classes, np.stack([-row, row]) / 2, np.array([-bias, bias]) / 2)
    return columns(estimators, classes, several)


def multi_output(head: Made) -> Rows:
    """Read a MultiOutputClassifier whose every output is a label that applies or does not."""
    estimators = head.get("estimators_")
    return columns(estimators, list(range(len(estimators))), True)


def columns(estimators: list[Any], classes: list[Any], several: bool) -> Rows:
    """Put one estimator a label together."""
    width = max(len(array(estimator, "coef_")[0]) for estimator in estimators if estimator.get("coef_") is not None)
    found = [column(estimator, width) for estimator in estimators]
    weight = np.stack([weight for weight, _ in found])
    bias = np.array([bias for _, bias in found])
    return Rows("logistic_regression", classes, weight, bias, multi_label=several, one_vs_rest=not several)


def column(estimator: Any, width: int = 0) -> tuple[NDArray[np.float64], float]:
    """Read the row of one label against the rest; where all training texts agreed there was nothing to fit."""
    if short(estimator) == "_ConstantPredictor":
        return np.zeros(width), CERTAIN if array(estimator, "y_")[0] > 0 else -CERTAIN
    if short(estimator) != REGRESSION:
        raise ValueError(f"the head has a {getattr(estimator, 'name', 'nothing')} for a label")
    if array(estimator, "classes_").tolist() != [0, 1]:
        raise ValueError("a label in it has other outcomes than 0 and 1")
    return array(estimator, "coef_").astype(np.float64)[0], float(array(estimator, "intercept_")[0])


def differentiable(head: Made) -> Rows:
    """Read a SetFitHead: a torch layer, whose logits are divided by a temperature and a little more."""
    parameters = head.get("_modules")["linear"].get("_parameters")
    weight = tensor(parameters["weight"])
    bias = np.zeros(len(weight)) if parameters["bias"] is None else tensor(parameters["bias"])
    temperature = float(head.get("temperature")) + float(head.get("eps"))
    several = bool(head.get("multitarget"))
    return Rows("differentiable", list(range(len(weight))), weight, bias, several, temperature=temperature)


def array(owner: Any, attribute: str) -> NDArray[Any]:
    """Return an attribute that must be an array."""
    value = owner.get(attribute)
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{attribute} is missing: was the head fitted?")
    return value


def tensor(made: Any) -> NDArray[np.float64]:
    """Return a tensor from how torch says it is put together again."""
    if made.name == "torch._utils._rebuild_parameter":
        made = made.args[0]
    if made.name != "torch._utils._rebuild_tensor_v2":
        raise ValueError(f"a tensor in it is made by {made.name}")
    storage, offset, shape, stride = made.args[:4]
    numbers = read_storage(storage.args[0]).astype(np.float64).reshape(shape)
    if offset or tuple(step // numbers.itemsize for step in numbers.strides) != tuple(stride):
        raise ValueError("a tensor in it is a part of another")
    return numbers


CONVERTERS: Mapping[str, Callable[[Made], Rows]] = {
    REGRESSION: regression,
    "OneVsRestClassifier": one_vs_rest,
    "MultiOutputClassifier": multi_output,
    "SetFitHead": differentiable,
}
