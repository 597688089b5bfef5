"""What a few-shot classification run can be told. The names are SetFit's wherever the idea is the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from unbroken.base.config import closest, content, identity, operational, shown
from unbroken.plan import pairs, strata
from unbroken.tasks.common import ELSEWHERE, RunConfig, Schedule

LossName = Literal[
    "cosine_similarity",
    "supervised_contrastive",
    "batch_all_triplet",
    "batch_hard_triplet",
    "batch_semi_hard_triplet",
    "batch_hard_soft_margin_triplet",
    "distillation",
]
METRICS = ("accuracy", "f1_macro", "f1_micro", "log_loss", "calibration_error")
LESS_IS_BETTER = ("log_loss", "calibration_error")
TAUGHT = "distillation"  # the loss where there is a teacher
BOTH = ("batch_size", "num_epochs", "body_learning_rate")  # one value for both phases, or one for each

# What is meant by what was left out, where the batches are of texts and where they are of pairs (as in SetFit).
DEFAULTS: dict[str, dict[str, Any]] = {
    "all": {
        "loss": "supervised_contrastive",
        "batch_size": (64, 2),
        "num_epochs": (2, 16),
        "min_steps": 24,
        "body_learning_rate": (1e-4, 1e-5),
        "dropout": 0.0,
    },
    "sampled": {
        "loss": "cosine_similarity",
        "batch_size": (16, 2),
        "num_epochs": (1, 16),
        "min_steps": 1,
        "body_learning_rate": (2e-5, 1e-5),
        "dropout": None,
    },
}
OURS = DEFAULTS["all"]


class ClassifyConfig(RunConfig):
    """Train a classifier from a few labelled texts per class: a contrastive phase, then a head.

    `pairs: all` compares every text of a batch with every other; `batch_size` then counts texts and `num_epochs` passes
    over the texts. `pairs: sampled` draws SetFit's pairs; both then count pairs. What takes two values takes one for
    each phase, or one for both.
    """

    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        **ELSEWHERE,
        "epochs": "num_epochs",
        "learning_rate": "body_learning_rate",
        "lr": "body_learning_rate",
        "num_train_epochs": "num_epochs",
        "use_differentiable_head": "head",
        "warmup_proportion": "warmup_ratio",
        "metric_kwargs": "metric",
        "sampling": "sampling_strategy",
        "num_shots": "samples_per_label",
    }

    task: Literal["classify"] = identity("classify", description="the kind of learning")
    columns: dict[str, str] = content({}, description="role -> column: text, label")
    labels: list[str | int] | None = identity(
        None, description="class names in order; for labels that are numbers or 0/1 vectors; default: those that occur"
    )
    teacher: str | None = content(
        None, description="model folder, run or hub id: learn its similarities, and its labels where texts have none"
    )
    samples_per_label: int | None = identity(
        None, gt=0, description="draw so many examples of each class; default: use all"
    )

    pairs: Literal["all", "sampled"] = identity(
        "all", description="compare all texts of a batch, or draw pairs as SetFit does (also by giving its two keys)"
    )
    sampling_strategy: Literal["oversampling", "undersampling", "unique"] = identity(
        "oversampling", description="which pairs an epoch of `pairs: sampled` has"
    )
    num_iterations: int | None = identity(
        None, gt=0, description="`pairs: sampled`: so many times a positive and a negative pair for each text"
    )
    loss: LossName = identity(OURS["loss"], description="what the first phase learns from a batch")
    margin: float = identity(0.25, ge=0, description="of the triplet losses")
    distance: Literal["cosine", "euclidean"] = identity("cosine", description="of the triplet losses")
    temperature: float = identity(0.1, gt=0, description="of supervised_contrastive")

    batch_size: int | tuple[int, int] = identity(
        OURS["batch_size"], description="texts (or pairs) of a step; and examples, in phase 2"
    )
    num_epochs: float | tuple[float, float] = identity(
        OURS["num_epochs"], description="passes over the texts (or pairs); and in phase 2"
    )
    min_steps: int = identity(
        OURS["min_steps"], gt=0, description="steps of the first phase at least, unless num_epochs is given"
    )
    max_steps: int | None = identity(None, gt=0, description="steps of the first phase; wins over both")
    body_learning_rate: float | tuple[float, float] = identity(
        OURS["body_learning_rate"], description="peak learning rate of the encoder; and in phase 2, end to end"
    )
    lr_scheduler_type: Schedule = identity("linear", description="course of the first phase's rate after warm-up")
    warmup_ratio: float = identity(0.1, ge=0, le=1, description="share of the first phase's steps spent warming up")
    dropout: float | None = identity(
        OURS["dropout"], ge=0, lt=1, description="of the encoder in training; null: as the model says"
    )
    micro_batch_size: int | None = identity(None, gt=0, description="texts in memory at once; default: all of a batch")
    active_vocabulary: bool = identity(
        True, description="train only the embedding rows of tokens that occur; needs weight_decay: 0"
    )

    head: Literal["logistic_regression", "differentiable"] = identity(
        "logistic_regression", description="fitted in closed form in one step, or trained by gradients"
    )
    head_learning_rate: float = identity(1e-2, gt=0, description="of a differentiable head")
    l2_weight: float = identity(1e-2, ge=0, description="weight decay in the second phase, differentiable head")
    end_to_end: bool = identity(False, description="train the encoder in the second phase too")
    multi_target_strategy: Literal["one-vs-rest", "multi-output"] | None = identity(
        None, description="for lists of labels: a yes or no for each; both names mean the same here"
    )
    class_weight: Literal["balanced"] | dict[str | int, float] | None = identity(
        None, description="weight of each class in the head's loss; balanced: by how rare it is"
    )
    normalize_embeddings: bool = identity(False, description="give the head embeddings of length one")
    calibrate: bool = identity(False, description="fit the temperature of the probabilities on eval_data")
    metric: str | list[str] = operational("accuracy", description="what is shown first")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        """Put in what was left open, by the kind of pairs; lists of two are pairs of values."""
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in values.items() if value is not None or key not in BOTH}
        if "pairs" not in given and (given.get("num_iterations") is not None or "sampling_strategy" in given):
            given["pairs"] = "sampled"
        defaults = DEFAULTS.get(given.get("pairs", "all"), OURS)
        if given.get("teacher") is not None:
            defaults = defaults | {"loss": TAUGHT}
        if "num_epochs" in given:
            defaults = defaults | {"min_steps": 1}
        filled = {**defaults, **given}
        return filled | {key: tuple(filled[key]) for key in BOTH if isinstance(filled[key], list)}

    @field_validator("class_weight", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Call classes that are numbers by their digits, as JSON does, in which runs are recorded and compared."""
        if not isinstance(value, Mapping):
            return value
        for name, weight in value.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(f"the weight of {shown(name)} is {shown(weight)}: give finite numbers above 0")
        return {str(name) if type(name) is int else name: weight for name, weight in value.items()}

    @model_validator(mode="after")
    def _consistent_phases(self) -> Self:
        for key in BOTH:
            if min(self.both(key)) <= 0:
                raise ValueError(f"{key}: {list(self.both(key))}; give numbers above 0")
        if self.end_to_end and self.head != "differentiable":
            raise ValueError("end_to_end needs a head that has gradients; add `head: differentiable`, or leave it out")
        if self.pairs == "all" and self.num_iterations is not None:
            raise ValueError("num_iterations counts pairs; add `pairs: sampled`, or use num_epochs or max_steps")
        if self.teacher is not None and self.loss != TAUGHT:
            raise ValueError(
                f"teacher: with one, its similarities are what is learned, not '{self.loss}'; leave out loss"
            )
        if self.teacher is None and self.loss == TAUGHT:
            raise ValueError("loss: distillation learns from a teacher; add `teacher: FOLDER`")
        if self.teacher is not None and self.sampling_strategy != "oversampling":
            raise ValueError("sampling_strategy balances two kinds of pairs; with a teacher there is one: leave it out")
        if self.pairs == "sampled" and self.loss not in ("cosine_similarity", TAUGHT):
            raise ValueError(f"pairs: sampled has pairs, and loss '{self.loss}' needs batches; leave out `pairs`")
        if self.weight_decay and self.active_vocabulary:
            raise ValueError(
                "weight_decay moves every row of the embedding table, and active_vocabulary trains only those of "
                "tokens that occur; add `active_vocabulary: false`, or leave out weight_decay"
            )
        if self.load_best_model_at_end and self.head != "differentiable":
            raise ValueError(
                "load_best_model_at_end chooses among steps of the second phase, and a logistic regression has one; "
                "add `head: differentiable`, or leave it out"
            )
        if self.calibrate and self.head != "logistic_regression":
            raise ValueError("calibrate goes with `head: logistic_regression`; leave one of the two out")
        if self.calibrate and self.eval_data is None:
            raise ValueError("calibrate fits the probabilities to eval_data; add `eval_data: FILE`, or leave it out")
        for role in self.columns:
            if role not in ("text", "label"):
                raise ValueError(f"columns: a classifier reads text and label, not '{role}'")
        if self.metric_for_best_model is not None:
            require_measured("metric_for_best_model", self.metric_for_best_model)
        for name in [self.metric] if isinstance(self.metric, str) else self.metric:
            require_measured("metric", name)
        return self

    def both(self, key: str) -> tuple[Any, Any]:
        """Return the values of a key for the two phases."""
        value = getattr(self, key)
        return value if isinstance(value, tuple) else (value, value)

    def resolved_identity(self) -> dict[str, Any]:
        """Return what the identity keys mean, as JSON has it; what has no part in this run is left out."""
        values = super().resolved_identity() | {key: list(self.both(key)) for key in BOTH}
        values["metric_for_best_model"] = self.best_metric
        if self.max_steps is not None:  # then neither has a part in it
            values["num_epochs"][0] = values["min_steps"] = None
        return values

    @property
    def order(self) -> str:
        """The names of the orders of examples, which a change of one changes."""
        return f"{pairs.ORDER if self.pairs == 'sampled' else strata.ORDER} {super().order}"

    @property
    def best_metric(self) -> str:
        """What `load_best_model_at_end` chooses by unless told otherwise."""
        return self.metric_for_best_model or METRICS[0]


def require_measured(key: str, name: str) -> None:
    """Raise `ValueError` unless a metric of that name is measured."""
    if name not in METRICS:
        near = closest(name, METRICS)
        advice = f"did you mean '{near}'?" if near else f"give one of {', '.join(METRICS)}"
        raise ValueError(f"{key}: '{name}' is not measured; {advice}")
