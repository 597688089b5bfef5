"""The classifier on top of an encoder: a linear layer, and the two files that make a model folder a classifier's.

    classifier.json          how the layer is to be read: kind, labels, one label a text or any number of them
    classifier.safetensors   weight [L, D], bias [L] and temperature [], float32

Logistic regression and the differentiable head are the same layer; what differs is how it was trained.
Shape suffixes: N texts, L labels, D dimensions of an embedding.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbroken.base.errors import ConfigError
from unbroken.base.reading import open_regular, read_document
from unbroken.base.seeds import chunk_seed, derive
from unbroken.models.folder import parse_object
from unbroken.models.weights import read_file

Kind = Literal["logistic_regression", "differentiable"]
Label = str | int

FORMAT = 1
SETTINGS_FILE = "classifier.json"
WEIGHTS_FILE = "classifier.safetensors"
TENSORS = ("weight", "bias", "temperature")
FLOAT_BYTES = 4
MAX_HEADER_BYTES = 4096  # of a file with these three tensors; it has some 250
FIRST_BIAS = 1e-2  # as SetFit's head begins
RECOPY = "copy the model folder again, whole, or name another model"


@dataclass(frozen=True)
class ClassifierSettings:
    """What a classifier is apart from its numbers; `labels` are in the order of the rows of `weight`.

    `multi_label`: a text has any number of labels, else exactly one. `one_vs_rest`: for one label a text, each
    label was fitted against all others, and their probabilities are scaled to sum to 1. `normalize_embeddings`:
    the layer sees embeddings of length 1. Raises `ConfigError` for labels no classifier can have.
    """

    kind: Kind
    labels: tuple[Label, ...]
    dimension: int
    multi_label: bool = False
    one_vs_rest: bool = False
    normalize_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"a classifier of kind {self.kind!r} is not known")
        if any(type(label) not in (str, int) for label in self.labels):
            raise ConfigError("the labels of a classifier are texts or whole numbers")
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError("a classifier has each label once")
        if len(self.labels) < (1 if self.multi_label else 2):
            raise ConfigError(f"{len(self.labels)} labels are too few for a classifier")
        if self.dimension < 1:
            raise ConfigError(f"embeddings of {self.dimension} numbers cannot be classified")
        if self.multi_label and self.one_vs_rest:
            raise ConfigError("one_vs_rest is about texts of one label; with multi_label it has no meaning")

    def head(self) -> LinearHead:
        """Return a head of this shape, all zeros."""
        return LinearHead(
            len(self.labels),
            self.dimension,
            self.multi_label,
            one_vs_rest=self.one_vs_rest,
            normalize_embeddings=self.normalize_embeddings,
        )


class LinearHead(nn.Module):
    """Embeddings [N, D] in, one number a label out: `weight` [L, D], `bias` [L], zeros until fitted or initialised.

    `temperature` divides the logits where they become probabilities (Guo et al. 2017, arXiv 1706.04599); 1 changes
    nothing, and no temperature changes what is predicted. It is fitted, if at all, to texts that were not trained on.
    """

    def __init__(
        self,
        num_labels: int,
        dimension: int,
        multi_label: bool = False,
        *,
        one_vs_rest: bool = False,
        normalize_embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.multi_label = multi_label
        self.one_vs_rest = one_vs_rest
        self.normalize_embeddings = normalize_embeddings
        self.weight = nn.Parameter(torch.zeros(num_labels, dimension))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        self.temperature = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def initialize(self, seed: int) -> LinearHead:
        """Draw the weights as SetFit's differentiable head does, from the run's seed alone; return the head."""
        generator = torch.Generator().manual_seed(chunk_seed(derive(seed, "head"), 0))
        start = torch.empty(self.weight.shape)
        nn.init.xavier_uniform_(start, generator=generator)
        self.weight.copy_(start)
        self.bias.fill_(FIRST_BIAS)
        return self

    def logits(self, embeddings_ND: Tensor) -> Tensor:
        """Return the logits [N, L] before the temperature: what a loss is taken of."""
        if self.normalize_embeddings:
            embeddings_ND = F.normalize(embeddings_ND, dim=-1)
        return F.linear(embeddings_ND, self.weight, self.bias)

    def probabilities(self, embeddings_ND: Tensor) -> Tensor:
        """Return the probability [N, L] of each label; rows sum to 1 unless a text may have several labels."""
        logits_NL = self.logits(embeddings_ND) / self.temperature
        return log_probabilities(logits_NL, self.multi_label, self.one_vs_rest).exp()

    def predict(self, embeddings_ND: Tensor) -> Tensor:
        """Return each text's likeliest label as an index [N]; of several labels, whether each applies: bool [N, L].

        A label applies if its probability exceeds one half.
        """
        logits_NL = self.logits(embeddings_ND)
        return logits_NL > 0 if self.multi_label else logits_NL.argmax(dim=-1)


def log_probabilities(logits_NL: Tensor, multi_label: bool, one_vs_rest: bool = False) -> Tensor:
    """Return the logarithms of the probabilities that logits stand for.

    One label a text: softmax; with `one_vs_rest` sigmoids divided by their sum, which is the softmax of the
    logarithms of the sigmoids. Any number of labels: a sigmoid each.
    """
    if multi_label:
        return F.logsigmoid(logits_NL)
    return F.log_softmax(F.logsigmoid(logits_NL) if one_vs_rest else logits_NL, dim=-1)


def classifier_documents(settings: ClassifierSettings) -> dict[str, bytes]:
    """Return the classifier's file that is not weights, by its path in the model folder."""
    values = {"format": FORMAT, **asdict(settings)}
    return {SETTINGS_FILE: json.dumps(values, indent=2, ensure_ascii=False).encode()}


def classifier_layout(name: str) -> tuple[str, str]:
    """Return where an entry of `LinearHead.state_dict()` belongs: (file in the model folder, key in it)."""
    assert name in TENSORS, name
    return WEIGHTS_FILE, name


def read_classifier(folder: Path, dimension: int | None = None) -> tuple[ClassifierSettings, LinearHead]:
    """Read the classifier of a model folder; `dimension` is the width of its encoder's embeddings, where known.

    Raises `ConfigError` if there is none, if it is damaged or not finite, of another format or for another encoder.
    """
    place = folder / SETTINGS_FILE
    if not place.exists():
        raise ConfigError(
            f"{folder} holds no classifier: {SETTINGS_FILE} is missing",
            next_step="name the model folder of a classifier, as `task: classify` makes them",
        )
    settings = read_settings(place)
    if dimension not in (None, settings.dimension):
        raise ConfigError(
            f"{place}: the classifier takes embeddings of {settings.dimension} numbers, "
            f"but the encoder beside it makes {dimension}",
            next_step=RECOPY,
        )
    tensors = read_tensors(folder / WEIGHTS_FILE, settings)
    head = settings.head()
    head.load_state_dict(tensors)
    return settings, head


def read_settings(place: Path) -> ClassifierSettings:
    """Read `classifier.json`. Raises `ConfigError` for a file that is damaged, or of another format."""
    try:
        data = read_document(place)
    except OSError as failure:
        raise ConfigError(f"{place} cannot be read: {failure.strerror or failure}", next_step=RECOPY) from None
    values = parse_object(data, place)
    if values.get("format") != FORMAT:
        raise ConfigError(
            f"{place}: format {values.get('format')!r}; this Unbroken reads format {FORMAT}",
            next_step="use the release that wrote it, or a newer one",
        )
    del values["format"]
    types = {"labels": list, "dimension": int, "kind": str}
    wanted = {field.name: types.get(field.name, bool) for field in fields(ClassifierSettings)}
    wrong = [name for name in wanted if type(values.get(name)) is not wanted[name]] + sorted(values.keys() - wanted)
    if wrong:
        raise ConfigError(f"{place}: {wrong[0]!r} is missing, unknown or of the wrong type", next_step=RECOPY)
    try:
        return ClassifierSettings(**values | {"labels": tuple(values["labels"])})
    except ConfigError as failure:
        raise ConfigError(f"{place}: {failure}", next_step=RECOPY) from None


def read_tensors(place: Path, settings: ClassifierSettings) -> dict[str, Tensor]:
    """Read `classifier.safetensors`. Raises `ConfigError` unless it holds what the settings describe, all finite."""
    num_labels, dimension = len(settings.labels), settings.dimension
    shapes = {"weight": (num_labels, dimension), "bias": (num_labels,), "temperature": ()}
    data_bytes = (num_labels * (dimension + 1) + 1) * FLOAT_BYTES
    try:
        with open_regular(place) as file:  # the library would wait on a pipe
            size = os.fstat(file.fileno()).st_size
    except OSError as failure:
        raise ConfigError(f"{place} cannot be read: {failure.strerror or failure}", next_step=RECOPY) from None
    if not data_bytes < size <= data_bytes + MAX_HEADER_BYTES:
        raise ConfigError(
            f"{place} has {size:,} bytes, but {num_labels} labels and embeddings of {dimension} numbers take "
            f"{data_bytes:,}",
            next_step=RECOPY,
        )
    tensors = read_file(place)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != {name: (shape, torch.float32) for name, shape in shapes.items()}:
        raise ConfigError(f"{place} does not hold the tensors {SETTINGS_FILE} describes", next_step=RECOPY)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()) or tensors["temperature"] <= 0:
        raise ConfigError(f"{place}: not every number in it is finite, and the temperature above 0", next_step=RECOPY)
    return tensors
