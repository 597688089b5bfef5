"""SetFit's trainer: both phases are one run in `args.output_dir`, started, continued, or found finished.

Source: SetFit 1.2 `trainer.py`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from unbroken.base.errors import ConfigError
from unbroken.bridges.setfit_arguments import OF_PAIRS, TrainingArguments, word
from unbroken.bridges.setfit_data import TEXT, Rows, rows_of
from unbroken.bridges.setfit_metrics import measure, metric_name
from unbroken.bridges.setfit_model import SetFitModel
from unbroken.run.deadline import Deadline
from unbroken.run.report import Ended, Reporter, plain, silent
from unbroken.run.stop import StopRequest
from unbroken.tasks.classify.config import TAUGHT, ClassifyConfig
from unbroken.tasks.classify.teacher import SETTINGS_FILE
from unbroken.tasks.request import Request
from unbroken.tasks.train import carry_out

ONE_KIND_OF_PAIRS = {"sampling_strategy": "oversampling"}  # the default, which means nothing with a teacher
ONE_RUN = "both phases are one run: train() makes or continues it"


class Trainer:
    """Trains `model` on `train_dataset` as `args` say; after `train()` the model is the finished one.

    Datasets are a `datasets.Dataset`, a pandas `DataFrame` or a list of rows, with the columns "text" and "label" or
    those that `column_mapping` maps to them. `metric` is a name (see `evaluate`) or a function of answers and truth.

    Raises `ConfigError` for what this trainer does not have: callbacks, searches, another trainer's arguments.
    """

    def __init__(
        self,
        model: SetFitModel | None = None,
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        model_init: Callable[[], SetFitModel] | None = None,
        metric: str | Callable[..., Any] = "accuracy",
        metric_kwargs: Mapping[str, Any] | None = None,
        callbacks: Any = None,
        column_mapping: Mapping[str, str] | None = None,
    ) -> None:
        if args is not None and not isinstance(args, TrainingArguments):
            raise ConfigError(
                f"args is {type(args).__module__}.{type(args).__name__}",
                next_step="import TrainingArguments from unbroken.setfit",
            )
        if (model is None) == (model_init is None):
            raise ConfigError("a trainer takes a model, or model_init, which makes one", next_step="give one of them")
        model = model_init() if model_init is not None else model
        if not isinstance(model, SetFitModel):
            kind = type(model)
            raise ConfigError(
                f"model is {kind.__module__}.{kind.__name__}", next_step="import SetFitModel from unbroken.setfit"
            )
        if callbacks:
            self.add_callback(callbacks)
        metric_name(metric)
        self.model, self.args = model, args or TrainingArguments()
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.metric, self.metric_kwargs, self.column_mapping = metric, metric_kwargs, column_mapping
        self._base = model.base  # the model becomes the finished one; training again begins where this began

    def train(
        self,
        args: TrainingArguments | None = None,
        trial: Any = None,
        *,
        resume_from_checkpoint: bool | str | None = None,
        restart: bool = False,
        accept_drift: bool = False,
        stop_at: str | float | datetime | None = None,
        report: Reporter | None = None,
        **given: Any,
    ) -> Ended:
        """Start the run in `args.output_dir`, go on with it, or say that it is finished; return how it ended.

        The options are those of `unbroken.train`; none is needed to resume. After a stop by a signal or `stop_at`
        the process ends with `SystemExit` (75, or 130 after Ctrl-C), with everything committed: run it again.

        Raises what `unbroken.train` does.
        """
        if trial is not None:
            self.hyperparameter_search()
        if given:
            raise ConfigError(
                f"train() has no argument '{next(iter(given))}'", next_step="give it to TrainingArguments"
            )
        args = args or self.args
        self._require_folders()
        stop = StopRequest(Deadline.of(stop_at))
        request = Request.of(
            self.values(args),
            resume_from_checkpoint=resume_from_checkpoint,
            restart=restart,
            accept_drift=accept_drift,
        )
        ended = carry_out(request, report or (plain if args.show_progress_bar else silent), stop)
        if not ended.finished:
            sys.exit(stop.exit_code)
        self.model.reload(Path(ended.model), by_number=self._by_number)
        return ended

    def values(self, args: TrainingArguments | None = None) -> dict[str, Any]:
        """Return the configuration that `train` gives to `unbroken.train`, rows included."""
        args = args or self.args
        if self.train_dataset is None:
            raise ConfigError("there is nothing to train on", next_step="Trainer(train_dataset=...)")
        model, names = self.model, self._names
        values = args.values() | {
            "task": "classify",
            "model": self._base,
            "head": "differentiable" if model.has_differentiable_head else "logistic_regression",
            "normalize_embeddings": model.normalize_embeddings,
            "class_weight": named_weights(model.class_weight, names),
        }
        if model.device_asked_for is not None:
            values["device"] = model.device_asked_for
        values |= self._learned(values, args)
        return values | self._evaluation(args, values, names)

    def evaluate(self, dataset: Any = None, metric_key_prefix: str = "test") -> dict[str, Any]:
        """Return the metric of the model's answers on a dataset, `eval_dataset` by default: `{"accuracy": 0.9}`.

        A name is computed by scikit-learn, under the name that the `evaluate` library gives it. A function is called
        as `metric(y_pred, y_test, **metric_kwargs)`, with labels that are texts as numbers, as SetFit calls it.
        """
        source = self.eval_dataset if dataset is None else dataset
        if source is None:
            raise ConfigError("there is nothing to evaluate on", next_step="give a dataset, or Trainer(eval_dataset=)")
        rows = rows_of(source, self.column_mapping, "dataset" if dataset is not None else "eval_dataset")
        answers: Any = self.model.predict(rows.texts, use_labels=False)
        truth = rows.labels
        if truth and isinstance(truth[0], str):
            assert self.model.settings is not None
            found = [str(self.model.settings.labels[place]) for place in answers.tolist()]
            places = {name: place for place, name in enumerate(sorted({*truth, *found}))}
            answers = type(answers)([places[name] for name in found])
            truth = [places[name] for name in truth]
        return measure(self.metric, answers, truth, self.metric_kwargs)

    def predict(self, dataset: Any) -> Any:
        """Return the model's answers to a list of texts, or to the texts of a dataset."""
        texts = dataset if isinstance(dataset, list) and all(isinstance(text, str) for text in dataset) else None
        if texts is None:
            texts = rows_of(dataset, self.column_mapping, "dataset", labelled=False).texts
        return self.model.predict(texts)

    def freeze(self, component: str | None = None) -> None:
        """Change nothing, and warn; see `SetFitModel.freeze`."""
        self.model.freeze(component)

    def unfreeze(self, component: str | None = None, keep_body_frozen: bool | None = None) -> None:
        """Change nothing, and warn; see `SetFitModel.freeze`."""
        self.model.freeze(component)

    def add_callback(self, callback: Any) -> None:
        """Raise `ConfigError`: what is called at every step could change what is trained."""
        raise ConfigError(
            "callbacks are not called here: a run that can be repeated has nothing in it that cannot",
            next_step="watch it with train(report=FUNCTION), which is told of every step, evaluation and commit",
        )

    def train_embeddings(self, *args: Any, **kwargs: Any) -> None:
        """Raise `ConfigError`: the phases are not run by hand."""
        raise ConfigError(f"train_embeddings: {ONE_RUN}", next_step="call train()")

    def train_classifier(self, *args: Any, **kwargs: Any) -> None:
        """Raise `ConfigError`: the phases are not run by hand."""
        raise ConfigError(f"train_classifier: {ONE_RUN}", next_step="call train()")

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> None:
        """Raise `ConfigError`: there is no search in one run."""
        raise ConfigError(
            "hyperparameter_search is not here", next_step="train with each setting in an output_dir of its own"
        )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Raise `ConfigError`: nothing here sends anything."""
        self.model.push_to_hub()

    def _require_folders(self) -> None:
        """Raise `ConfigError` unless the models are those in their folders, which the run reads."""
        self.model.require_unchanged()

    @property
    def _rows(self) -> Rows:
        return rows_of(self.train_dataset, self.column_mapping, "train_dataset")

    @property
    def _names(self) -> Sequence[str] | None:
        """The names of labels that are numbers, if there are any."""
        return self.model.labels if self.model.labels is not None else self._rows.names

    @property
    def _by_number(self) -> bool:
        """Whether the trained model answers with numbers where the script gave no names."""
        return self._rows.numbers

    def _learned(self, values: Mapping[str, Any], args: TrainingArguments) -> dict[str, Any]:
        """Return the data to learn from, and what follows from them."""
        rows, names = self._rows, self._names
        found: dict[str, Any] = {
            "train_data": rows.named(names),
            "labels": self._labels(rows, names),
            "multi_target_strategy": self.model.multi_target_strategy if rows.lists else None,
        }
        if values["pairs"] == "all" and args.pairs == "sampled" and "max_steps" not in values:  # batches of texts
            each = -(-len(rows.texts) // args.embedding_batch_size)
            found["max_steps"] = math.ceil(each * args.embedding_num_epochs)
        return found

    def _labels(self, rows: Rows, names: Any) -> list[Any] | None:
        """Return the classes in order where the script settles them: by names, or by how many there are."""
        width = self.model.out_features
        if names is not None:
            if width not in (None, len(names)):
                raise ConfigError(
                    f"out_features is {width}, and there are {len(names)} labels ({', '.join(map(str, names[:5]))})",
                    next_step="give out_features as many as there are, or leave it out",
                )
            return list(names)
        if width is None or not (rows.numbers or rows.lists):
            return None
        found = [len(label) if isinstance(label, list) else label + 1 for label in rows.labels if label is not None]
        if max(found) > width or (rows.lists and width != max(found)):
            raise ConfigError(
                f"out_features is {width}, and the labels of train_dataset need {max(found)}",
                next_step="give out_features as many as there are, or leave it out",
            )
        return list(range(width))

    def _evaluation(self, args: TrainingArguments, values: Mapping[str, Any], names: Any) -> dict[str, Any]:
        """Return what evaluates during training, if anything is to."""
        strategy = word(args.eval_strategy)
        if strategy not in ("no", "steps", "epoch"):
            raise ConfigError(f"eval_strategy: {strategy!r} is not known", next_step="give no, steps or epoch")
        if args.load_best_model_at_end and not self.model.has_differentiable_head:
            raise ConfigError(
                "load_best_model_at_end chooses among steps of the second phase, and a logistic regression has one",
                next_step="leave it out, or write SetFitModel.from_pretrained(..., use_differentiable_head=True)",
            )
        if strategy == "no" and not values.get("calibrate") and not args.load_best_model_at_end:
            return {}
        if self.eval_dataset is None:
            raise ConfigError("there is no eval_dataset to evaluate on during training", next_step="give one")
        found = {"eval_data": rows_of(self.eval_dataset, self.column_mapping, "eval_dataset").named(names)}
        if strategy == "epoch":
            return found | {"eval_steps": steps_per_epoch({**values, **found})}
        return found | ({"eval_steps": args.eval_steps or args.logging_steps} if strategy == "steps" else {})


class DistillationTrainer(Trainer):
    """Trains a student to see texts as a teacher does, then its head on the teacher's answers.

    Needs only texts: labels in `train_dataset` are not read. The teacher is a trained `SetFitModel`, from a folder or
    fresh from its own training; its digest is part of what the run is.
    """

    def __init__(
        self,
        teacher_model: SetFitModel,
        student_model: SetFitModel | None = None,
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        model_init: Callable[[], SetFitModel] | None = None,
        metric: str | Callable[..., Any] = "accuracy",
        column_mapping: Mapping[str, str] | None = None,
        *,
        metric_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            student_model, args, train_dataset, eval_dataset, model_init, metric, metric_kwargs, None, column_mapping
        )
        if not isinstance(teacher_model, SetFitModel) or teacher_model.settings is None:
            raise ConfigError("the teacher is no trained SetFitModel", next_step="train it, or load it from a folder")
        if not (teacher_model.folder / SETTINGS_FILE).is_file():
            raise ConfigError(
                f"the teacher in {teacher_model.folder} has its head in a pickle",
                next_step="save_pretrained(FOLDER), and load the teacher from there",
            )
        self.teacher_model, self.student_model = teacher_model, self.model
        if self.model.labels is None:  # it answers as its teacher does
            self.model.labels = teacher_model.labels

    def _require_folders(self) -> None:
        super()._require_folders()
        self.teacher_model.require_unchanged()

    @property
    def _rows(self) -> Rows:
        return rows_of(self.train_dataset, self.column_mapping, "train_dataset", labelled=False)

    @property
    def _names(self) -> Sequence[str] | None:
        settings = self.teacher_model.settings
        assert settings is not None
        return [str(label) for label in settings.labels] if isinstance(settings.labels[0], str) else None

    @property
    def _by_number(self) -> bool:
        return True

    def _learned(self, values: Mapping[str, Any], args: TrainingArguments) -> dict[str, Any]:
        if values.get("loss", OF_PAIRS) != OF_PAIRS:
            raise ConfigError(
                f"loss: a student learns its teacher's similarities, not '{values['loss']}'", next_step="leave it out"
            )
        assert self.teacher_model.settings is not None
        width, known = self.model.out_features, len(self.teacher_model.settings.labels)
        if width not in (None, known):
            raise ConfigError(f"out_features is {width}, and the teacher has {known} labels", next_step="leave it out")
        texts = [{TEXT: text} for text in self._rows.texts]
        return {"train_data": texts, "teacher": self.teacher_model.base, "loss": TAUGHT, **ONE_KIND_OF_PAIRS}


def steps_per_epoch(values: Mapping[str, Any]) -> int:
    """Return how many steps an epoch of the first phase has."""
    from unbroken.tasks.classify.course import courses_of
    from unbroken.tasks.classify.data import LabelledTexts

    config = ClassifyConfig.from_values(values)
    data = LabelledTexts(config.train_data, config)
    return courses_of(config, data.targets[data.chosen]).body.steps_per_epoch


def named_weights(weights: Any, names: Any) -> Any:
    """Return class weights by the names of the classes, where numbers have names."""
    if not isinstance(weights, Mapping):
        return weights
    known = dict(enumerate(names)) if names is not None else {}
    return {known.get(key, key): float(weight) for key, weight in weights.items()}
