"""SetFit's training arguments: the same names, tuples and counts, as a configuration of `classify` has them.

Source: SetFit 1.2 `training_args.py`, and what its `trainer.py` does with each.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError
from unbroken.tasks.classify.config import LESS_IS_BETTER

# What SetFit means by what a script leaves out. `pairs="all"` has our own defaults instead.
COUNTED_AS_SETFIT = {"batch_size": (16, 2), "num_epochs": (1, 16), "body_learning_rate": (2e-5, 1e-5)}
LOSSES = {
    "CosineSimilarityLoss": "cosine_similarity",
    "SupConLoss": "supervised_contrastive",
    "BatchAllTripletLoss": "batch_all_triplet",
    "BatchHardTripletLoss": "batch_hard_triplet",
    "BatchSemiHardTripletLoss": "batch_semi_hard_triplet",
    "BatchHardSoftMarginTripletLoss": "batch_hard_soft_margin_triplet",
}
DISTANCES = {"cosine_distance": "cosine", "eucledian_distance": "euclidean", "euclidean_distance": "euclidean"}
OF_PAIRS = "cosine_similarity"
OF_TEXTS = {"dropout": None, "temperature": 0.07}  # SetFit's, where `pairs: all` stands for its batches of texts
PASSED_ON = ("head_learning_rate", "end_to_end", "max_length", "margin", "seed")
# Our own keys: what the configuration calls them, left to it unless given.
OWN = (
    "min_steps",
    "dropout",
    "weight_decay",
    "max_grad_norm",
    "lr_scheduler_type",
    "temperature",
    "micro_batch_size",
    "active_vocabulary",
    "calibrate",
    "threads",
    "mirror",
    "save_seconds",
)
EMBEDDING_LOSS = ("embedding_loss", "eval_embedding_loss")  # SetFit's measure of the first phase


class SetFitWarning(UserWarning):
    """Something a SetFit script says that has no effect here."""


@dataclass(kw_only=True)
class TrainingArguments:
    """What a training is told, by SetFit's names; `Trainer.train` looks at it again, so it may be changed till then.

    Values that may be a tuple are for the two phases; one value serves both. Numbers count what SetFit's do: pairs
    with `CosineSimilarityLoss`, texts with the others. `pairs="all"` compares every text of a batch with every other
    instead and takes this library's own defaults for what is left out. Where a default is None, see
    `docs/from-setfit.md`. The names of the last block are keys of `ClassifyConfig`.

    Raises `ConfigError` for an unknown name.
    """

    output_dir: str = field(default="checkpoints", kw_only=False)
    batch_size: Any = None
    num_epochs: Any = None
    max_steps: int = -1
    sampling_strategy: str = "oversampling"
    num_iterations: int | None = None
    body_learning_rate: Any = None
    head_learning_rate: float = 1e-2
    loss: Any = None
    distance_metric: Any = "cosine"
    margin: float = 0.25
    end_to_end: bool = False
    use_amp: bool = False
    warmup_proportion: float = 0.1
    l2_weight: float | None = 1e-2
    max_length: int | None = None
    samples_per_label: int = 2
    show_progress_bar: bool = True
    seed: int = 42

    report_to: Any = "all"
    run_name: str | None = None
    logging_dir: str | None = None
    logging_strategy: str = "steps"
    logging_first_step: bool = True
    logging_steps: int = 50
    eval_strategy: str = "no"
    evaluation_strategy: str | None = None
    eval_steps: int | None = None
    eval_delay: float = 0
    eval_max_steps: int = -1
    save_strategy: str | None = None
    save_steps: int | None = None
    save_total_limit: int | None = None
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None

    pairs: Literal["sampled", "all"] = "sampled"
    min_steps: int | None = None
    dropout: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    lr_scheduler_type: str | None = None
    temperature: float | None = None
    micro_batch_size: int | None = None
    active_vocabulary: bool | None = None
    calibrate: bool | None = None
    threads: int | str | None = None
    mirror: str | None = None
    save_seconds: float | None = None

    def __new__(cls, output_dir: str = "checkpoints", **given: Any) -> Self:
        """Refuse a name there is not, with the nearest one there is."""
        refuse_unknown("TrainingArguments", given, names())
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.pairs == "sampled":
            for name, default in COUNTED_AS_SETFIT.items():
                if getattr(self, name) is None:
                    setattr(self, name, default)
        for name in COUNTED_AS_SETFIT:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, tuple(value) if isinstance(value, list | tuple) else (value, value))
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.eval_steps is not None and word(self.eval_strategy) == "no":
            self.eval_strategy = "steps"

    @property
    def embedding_batch_size(self) -> int:
        """Pairs, or texts, of a step of the first phase."""
        return int(self._of_phase("batch_size", 0))

    @property
    def classifier_batch_size(self) -> int:
        """Texts of a step of the second phase, with a differentiable head."""
        return int(self._of_phase("batch_size", 1))

    @property
    def embedding_num_epochs(self) -> float:
        """Passes over the pairs, or texts, in the first phase."""
        return float(self._of_phase("num_epochs", 0))

    @property
    def classifier_num_epochs(self) -> float:
        """Passes over the texts in the second phase, with a differentiable head."""
        return float(self._of_phase("num_epochs", 1))

    @property
    def body_embedding_learning_rate(self) -> float:
        """The encoder's peak learning rate in the first phase."""
        return float(self._of_phase("body_learning_rate", 0))

    @property
    def body_classifier_learning_rate(self) -> float:
        """The encoder's learning rate in the second phase, end to end."""
        return float(self._of_phase("body_learning_rate", 1))

    def to_dict(self) -> dict[str, Any]:
        """Return every argument by its name."""
        return {name: getattr(self, name) for name in names()}

    @classmethod
    def from_dict(cls, arguments: Mapping[str, Any], ignore_extra: bool = False) -> Self:
        """Make the arguments of a mapping; `ignore_extra` leaves out names there are not."""
        return cls(**{name: value for name, value in arguments.items() if not ignore_extra or name in names()})

    def copy(self) -> Self:
        """Return the same arguments as another object."""
        return copy.copy(self)

    def update(self, arguments: Mapping[str, Any], ignore_extra: bool = False) -> Self:
        """Return these arguments with others laid over them; the object itself stays."""
        return self.from_dict({**self.to_dict(), **arguments}, ignore_extra)

    def values(self) -> dict[str, Any]:
        """Return the keys of a `classify` configuration that mean the same; what is left out is left to it.

        Raises `ConfigError` for a value without a meaning here, and warns (`SetFitWarning`) of one without an effect.
        """
        warn_of_no_effect(self)
        loss = loss_name(self.loss, self.pairs)
        values: dict[str, Any] = {name: getattr(self, name) for name in PASSED_ON}
        values |= {name: getattr(self, name) for name in (*COUNTED_AS_SETFIT, *OWN) if getattr(self, name) is not None}
        values["distance"] = distance_name(self.distance_metric)
        values["warmup_ratio"] = float(self.warmup_proportion)
        values["output_dir"] = str(self.output_dir)
        if loss is not None:
            values["loss"] = loss
        if self.l2_weight is not None:
            values["l2_weight"] = float(self.l2_weight)
        if self.max_steps > 0:
            values["max_steps"] = self.max_steps
        values["pairs"] = "sampled" if self.pairs == "sampled" and loss == OF_PAIRS else "all"
        if self.pairs == "sampled" and values["pairs"] == "all":
            values = OF_TEXTS | values
        if values["pairs"] == "sampled":
            values |= {"sampling_strategy": self.sampling_strategy, "num_iterations": self.num_iterations}
        return values | saving(self) | choosing(self)

    def _of_phase(self, name: str, phase: int) -> Any:
        value = getattr(self, name)
        if value is None:
            raise ConfigError(
                f"{name} was left open, and with pairs='all' the configuration decides",
                next_step=f"give {name} to read it back",
            )
        return value[phase] if isinstance(value, tuple) else value  # set anew since


def names() -> list[str]:
    """Return the names of all arguments."""
    return [field.name for field in fields(TrainingArguments)]


def refuse_unknown(place: str, given: Mapping[str, Any], known: list[str]) -> None:
    """Raise `ConfigError` for the first name that is not known, with the nearest one."""
    for name in given:
        if name not in known:
            near = closest(name, known)
            raise ConfigError(
                f"{place}: there is no argument '{name}'",
                next_step=f"did you mean '{near}'?" if near else f"there are {', '.join(known)}",
            )


def warn(text: str) -> None:
    """Say what of a script has no effect."""
    warnings.warn(text, SetFitWarning, stacklevel=3)


def warn_of_no_effect(args: TrainingArguments) -> None:
    """Warn once of each argument that was given another value than SetFit's and does nothing here."""
    trackers = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to or [])
    if any(tracker not in ("all", "none") for tracker in trackers):
        warn(f"report_to={args.report_to!r}: nothing is sent to trackers; every step is in {args.output_dir}'s journal")
    if args.use_amp:
        warn("use_amp does nothing: training is in float32")
    if args.samples_per_label != 2:
        warn("samples_per_label does nothing, as in SetFit 1.2; sample_dataset draws so many texts of each label")
    if args.eval_delay or args.eval_max_steps > 0:
        warn("eval_delay and eval_max_steps do nothing: evaluations are of all rows, from the start on")
    if args.metric_for_best_model in EMBEDDING_LOSS:
        warn("metric_for_best_model: the first phase's loss is not measured; the best model is the most accurate one")


def loss_name(loss: Any, pairs: str) -> str | None:
    """Return our name of a loss given as a class of sentence-transformers or SetFit, or as any name of it.

    None where the configuration's own default is meant. The class is never called.
    """
    if loss is None:
        return OF_PAIRS if pairs == "sampled" else None
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if name in LOSSES.values():
        return str(name)
    if name not in LOSSES:
        near = closest(name, LOSSES)
        raise ConfigError(
            f"loss: {name} is not one of those this trainer has",
            next_step=(f"did you mean {near}? There are " if near else "give one of ") + ", ".join(LOSSES),
        )
    return LOSSES[name]


def distance_name(distance: Any) -> str:
    """Return our name of a distance given as sentence-transformers' function or by name."""
    name = distance if isinstance(distance, str) else getattr(distance, "__name__", type(distance).__name__)
    if name in DISTANCES.values():
        return str(name)
    if name not in DISTANCES:
        raise ConfigError(
            f"distance_metric: {name} is not known", next_step="give cosine_distance or eucledian_distance"
        )
    return DISTANCES[name]


def word(strategy: Any) -> str:
    """Return an interval strategy as text; transformers has an enumeration for it."""
    return str(getattr(strategy, "value", strategy))


def saving(args: TrainingArguments) -> dict[str, Any]:
    """Return when to commit. What a script does not say is decided by cost; a run never keeps fewer than two."""
    values: dict[str, Any] = {"save_total_limit": max(2, args.save_total_limit or 2)}
    strategy = None if args.save_strategy is None else word(args.save_strategy)
    if strategy not in (None, "no", "epoch", "steps"):
        raise ConfigError(f"save_strategy: {strategy!r} is not known", next_step="give no, steps or epoch")
    if strategy == "epoch":
        values["save_strategy"] = "epoch"
    elif strategy != "no" and args.save_steps is not None:
        values["save_steps"] = args.save_steps
    return values


def choosing(args: TrainingArguments) -> dict[str, Any]:
    """Return by what the best model is chosen, if one is."""
    if not args.load_best_model_at_end:
        return {}
    values: dict[str, Any] = {"load_best_model_at_end": True}
    if args.metric_for_best_model not in (None, *EMBEDDING_LOSS):
        metric = values["metric_for_best_model"] = str(args.metric_for_best_model).removeprefix("eval_")
        more = args.greater_is_better
        values["greater_is_better"] = metric not in LESS_IS_BETTER if more is None else more
    return values
