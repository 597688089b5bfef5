"""What a classification run came to: how good its model is, beside what costs next to nothing, and where it errs.

Only reads: the run, its data and its base model. The same inputs give the same report.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbroken.base.errors import CannotContinueError, ConfigError, DataError
from unbroken.base.words import number_of
from unbroken.store import layout
from unbroken.store.run import read_run
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.data import LabelledTexts
from unbroken.tasks.contract import first_changed_row
from unbroken.tasks.origin import parse_run_at, resolve_model
from unbroken.tasks.request import Request, resolve_config

if TYPE_CHECKING:  # numpy's users and torch's: nobody waits for them who named the wrong folder
    from unbroken.tasks.classify.learning_curve import CurvePoint
    from unbroken.tasks.classify.scores import Bin, ClassScore, Confusion, Score

INPUTS = ("model", "train_data")  # what may have moved since the run
THE_RUN = "run"  # among the names of baselines
LISTED_SUSPECTS = 100


@dataclass(frozen=True)
class Mislabelled:
    """A training text that the others would label otherwise; see `mislabelled.Suspect`. `row` counts from 1."""

    row: int
    where: str
    text: str
    label: str
    suggested: str
    probability: float
    suggested_probability: float
    stands_out: bool


@dataclass(frozen=True)
class Report:
    """All that is known. What could not be told is empty, and `left_out` says why, a sentence each."""

    run: str
    model: str
    train_data: str
    examples: int
    labels: tuple[str, ...]
    several: bool
    eval_data: str | None = None
    rows: int = 0
    measures: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)  # the run's first, then the baselines'
    classes: Sequence[ClassScore] = ()
    matrix: Sequence[Sequence[int]] | None = None
    confusions: Sequence[Confusion] = ()
    bins: Sequence[Bin] = ()
    curve: Sequence[CurvePoint] = ()
    mislabelled: Sequence[Mislabelled] | None = None  # the likeliest of them
    disagreeing: int = 0  # training texts that the others would label otherwise, listed or not
    standing_out: int = 0  # those of them whose suggested label is as sure as it usually is
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()

    def flat(self) -> dict[str, Any]:
        """Return everything under one key each: numbers under dotted names, what has an order as lists."""
        found: dict[str, Any] = {
            "run": self.run,
            "train_data": self.train_data,
            "examples": self.examples,
            "labels": list(self.labels),
            "eval_data": self.eval_data,
            "rows": self.rows,
        }
        for name, score in self.scores.items():
            place = "" if name == THE_RUN else f"baselines.{name}."
            found |= {f"{place}{key}": value for key, value in _with_intervals(asdict(score)).items()}
        found |= self.measures
        for one in self.classes:
            values = _with_intervals(asdict(one))
            place = f"classes.{values.pop('name')}."
            found |= {f"{place}{key}": value for key, value in values.items()}
        for point in self.curve:
            values = asdict(point)
            place = f"shots.{values.pop('shots')}."
            found |= {f"{place}{key}": value for key, value in values.items()}
        return found | {
            "confusion_matrix": self.matrix,
            "confusions": [asdict(one) for one in self.confusions],
            "disagreeing": self.disagreeing,
            "standing_out": self.standing_out,
            "confidence": [_with_intervals(asdict(one)) for one in self.bins],
            "mislabelled": None if self.mislabelled is None else [asdict(one) for one in self.mislabelled],
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }


def report(
    run: str | os.PathLike[str],
    data: Any = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    show_progress: bool | None = None,
) -> Report:
    """Return what a finished classification run came to, measured on `data`, a file or rows (default: its eval_data).

    `inputs` says where `model` and `train_data` are now, if not where they were. `show_progress`: a bar on stderr;
    None: where it is a terminal and takes a while. Nothing is written.

    Raises `ConfigError` for what is no run of this task or has no model yet, `DataError` for rows that cannot be
    measured on, `CannotContinueError` if the training data are not those the run recorded.
    """
    root, document = find_run(run)
    asked = dict(inputs or {})
    for key in asked:
        if key not in INPUTS:
            raise ConfigError(
                f"{key} cannot be set here: a run is reported on as it was",
                next_step=f"only where inputs are now can be said: {', '.join(INPUTS)}",
            )
    values = {**document["config"], "output_dir": str(root), **asked} | ({} if data is None else {"eval_data": data})
    config = resolve_config(Request(values, dict.fromkeys(values, str(root))), document)
    assert isinstance(config, ClassifyConfig), "the task was looked at"
    training = LabelledTexts(config.train_data, config)
    _ = training.texts, training.chosen
    require_recorded(root, document, training)
    require_labelled(training)
    held_out = None if config.eval_data is None else LabelledTexts(config.eval_data, config, training.labels)
    notes = [] if held_out is None else about_rows(training, held_out, document["contract"].get("eval_data"))
    from unbroken.tasks.classify.reporting import Reporting

    model = root / layout.MODEL_FOLDER
    reporting = Reporting(root, document, config, training, held_out, show_progress, notes)
    return reporting.report(Path(resolve_model(str(model)).model))


def find_run(run: str | os.PathLike[str]) -> tuple[Path, Mapping[str, Any]]:
    """Return the folder and the document of a finished classification run. Raises `ConfigError` for anything else."""
    root, step = parse_run_at(os.fspath(run))
    document = read_run(root) or {}
    task = document.get("config", {}).get("task")
    if task != "classify":
        way_out = f"unbroken {'evaluate' if task == 'embed' else 'show'} {root}"
        raise ConfigError(f"report is for classification runs so far, and {root} is of task {task}", next_step=way_out)
    if step is not None:
        raise ConfigError(f"{run}: report is of finished models, not of one step", next_step=f"give {root}")
    if not (root / layout.MODEL_FOLDER).is_dir():
        raise ConfigError(
            f"the run {root} has no finished model yet", next_step=f"let it finish: unbroken train {root}"
        )
    return root, document


def require_labelled(training: LabelledTexts) -> None:
    """Raise `DataError` if an example has no label but the teacher's answer."""
    lacks = training.unlabelled[training.chosen]
    if lacks.any():
        raise DataError(
            f"{training.table.locate(int(training.chosen[lacks][0]))} has no label: the teacher answered for it",
            why="baselines, the curve and the search for wrong labels are about labels",
            next_step="`unbroken evaluate` measures the classifier on labelled rows",
        )


def require_recorded(root: Path, document: Mapping[str, Any], training: LabelledTexts) -> None:
    """Raise `CannotContinueError` unless the training data are those of the run."""
    recorded = document["contract"]["data"]["digest"]
    if recorded != training.digest:
        row = first_changed_row(root, training.row_digests.astype("<u8").tobytes())
        raise CannotContinueError(
            f"{training.table.name} does not hold the rows {root} was trained on: {row}",
            why="baselines would be trained on other examples than the run",
            next_step="put the data back, or say where they are: --set train_data=FILE",
        )


def about_rows(training: LabelledTexts, held_out: LabelledTexts, used: Mapping[str, Any] | None) -> list[str]:
    """Return what to know about the rows measured on; `used` identifies those that had a part in making the model.

    Raises `DataError` for a bad row, or none at all.
    """
    if not held_out.table.num_rows:
        raise DataError(f"{held_out.table.name} has no row to measure on", next_step="give a file with some")
    absent = held_out.require_like(training)
    seen = {training.texts[row] for row in training.chosen}
    shared = sum(text in seen for text in held_out.texts)
    leaked = f"{number_of(shared, 'text')} of {held_out.table.name} were trained on, which flatters every figure"
    chose = f"{held_out.table.name} chose the step or the temperature of this model, which flatters its figures"
    involved = used is not None and used["digest"] == held_out.digest
    return [*([absent] if absent else []), *([leaked] if shared else []), *([chose] if involved else [])]


def _with_intervals(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `x_interval: (low, high)` as `x_low` and `x_high`; what is None is left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key.endswith("_interval") and value is not None:
            name = key.removesuffix("_interval")
            found |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        elif value is not None:
            found[key] = value
    return found
