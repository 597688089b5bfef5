"""Scripts written for SetFit, with their imports changed: they run, and stopped and run again end in the same bits."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from pandas import DataFrame

from tests.exact.runs import assert_same_run, step_records
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import ConfigError
from unbroken.bridges import setfit_trainer
from unbroken.models.classifying import read_settings
from unbroken.run.report import Event, Stepped
from unbroken.setfit import DistillationTrainer, SetFitModel, Trainer, TrainingArguments, sample_dataset

# What SetFit's users write, its imports changed and nothing else.
IMPORTS = """
from unbroken.setfit import CosineSimilarityLoss, SetFitModel, Trainer, TrainingArguments
"""
BLOCK = """
model = SetFitModel.from_pretrained("sentence-transformers/paraphrase-mpnet-base-v2", use_differentiable_head=True, head_params={"out_features": 2})
args = TrainingArguments(batch_size=(16, 2), num_iterations=20, num_epochs=(1, 16), body_learning_rate=(2e-5, 1e-5),
                         head_learning_rate=1e-2, end_to_end=True, loss=CosineSimilarityLoss)
trainer = Trainer(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, metric="accuracy")
trainer.train()
"""  # noqa: E501
BODY_STEPS, HEAD_STEPS = 20, 64  # of eight rows: 2 * 20 * 8 pairs by 16; 4 batches, 16 times


def rows(count: int, classes: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    return [{"text": row["positive"], "label": i % classes} for i, row in enumerate(make_rows(count, seed))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with a model that goes by the name of one on the hub."""
    folder = tmp_path_factory.mktemp("work")
    make_model_folder(folder / "sentence-transformers" / "paraphrase-mpnet-base-v2")
    return folder


@pytest.fixture
def tiny(made: Path) -> Path:
    return made / "sentence-transformers" / "paraphrase-mpnet-base-v2"


def run_block(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> Trainer:
    """Run the script in `folder`, asking it to end by SIGTERM after a step."""

    def report(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == stop_after:
            signal.raise_signal(signal.SIGTERM)

    folder.mkdir(exist_ok=True)
    if not (folder / "sentence-transformers").exists():
        (folder / "sentence-transformers").symlink_to(made / "sentence-transformers")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(setfit_trainer, "plain", report)
    namespace: dict[str, Any] = {
        "train_dataset": Dataset.from_list(rows(8)),
        "eval_dataset": Dataset.from_list(rows(12, seed=1)),
    }
    exec(IMPORTS + BLOCK, namespace)
    trainer: Trainer = namespace["trainer"]
    return trainer


def test_the_script_of_setfits_users(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = run_block(tmp_path / "whole", made, monkeypatch)
    whole = tmp_path / "whole" / "checkpoints"
    assert len(step_records(whole)) == BODY_STEPS + HEAD_STEPS
    found = trainer.evaluate()
    answers = trainer.model.predict([row["text"] for row in rows(12, seed=1)])
    truth = torch.tensor([row["label"] for row in rows(12, seed=1)])
    assert found == {"accuracy": pytest.approx(float((answers == truth).float().mean()))}
    for last in (1, BODY_STEPS, BODY_STEPS + 1, BODY_STEPS + HEAD_STEPS - 1):
        folder = tmp_path / f"stopped-after-{last}"
        with pytest.raises(SystemExit) as left:
            run_block(folder, made, monkeypatch, stop_after=last)
        assert left.value.code == 75
        assert len(step_records(folder / "checkpoints")) == last
        again = run_block(folder, made, monkeypatch)
        assert_same_run(folder / "checkpoints", whole)
        assert torch.equal(again.model.predict_proba(["river stone"]), trainer.model.predict_proba(["river stone"]))
    assert step_records(whole) == step_records(tmp_path / "stopped-after-1" / "checkpoints")
    run_block(tmp_path / "whole", made, monkeypatch)  # finished: it says so, and the model is there again
    assert len(step_records(whole)) == BODY_STEPS + HEAD_STEPS


def test_another_learning_rate_is_another_run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: the comparison above can fail."""
    run_block(tmp_path / "one", made, monkeypatch)
    monkeypatch.setitem(globals(), "BLOCK", BLOCK.replace("head_learning_rate=1e-2", "head_learning_rate=2e-2"))
    run_block(tmp_path / "other", made, monkeypatch)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one" / "checkpoints", tmp_path / "other" / "checkpoints")


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """Six steps, unless the loss has batches of texts."""
    given = {"batch_size": 8, "max_steps": 6, "body_learning_rate": 1e-3, "show_progress_bar": False, "threads": 1}
    return TrainingArguments(str(folder / "run"), **given | changes)


def test_labels_that_are_texts(tiny: Path, tmp_path: Path) -> None:
    data = DataFrame([{"sentence": row["text"], "label": ["no", "yes"][row["label"]]} for row in rows(12)])
    model = SetFitModel.from_pretrained(tiny)
    trainer = Trainer(model, arguments(tmp_path), data, data, column_mapping={"sentence": "text"}, metric="f1")
    trainer.train()
    assert model.labels == ["no", "yes"]
    assert set(model.predict(list(data["sentence"]))) <= {"no", "yes"}
    assert model.predict("river") in ("no", "yes")
    assert 0 <= trainer.evaluate()["f1"] <= 1
    assert trainer.predict(data) == model(list(data["sentence"]))


def test_names_for_numbers(tiny: Path, tmp_path: Path) -> None:
    """Given names are answered with; those of a ClassLabel column go into the saved model."""
    data = Dataset.from_list(rows(12)).cast_column("label", ClassLabel(names=["no", "yes"]))
    model = SetFitModel.from_pretrained(tiny)
    Trainer(model, arguments(tmp_path), sample_dataset(data, num_samples=4)).train()
    assert model.labels is None
    numbers = model.predict(list(data["text"]))
    assert isinstance(numbers, torch.Tensor)
    assert set(numbers.tolist()) <= {0, 1}
    model.save_pretrained(tmp_path / "saved")
    assert read_settings(tmp_path / "saved" / "classifier.json").labels == ("no", "yes")
    again = SetFitModel.from_pretrained(tmp_path / "saved")
    assert again.predict(list(data["text"])) == [["no", "yes"][number] for number in numbers.tolist()]
    assert torch.equal(again.predict(list(data["text"]), use_labels=False), numbers)
    assert torch.equal(again.predict_proba("river"), model.predict_proba("river"))

    named = SetFitModel.from_pretrained(tiny, labels=["bad", "good"])
    Trainer(named, arguments(tmp_path / "named"), rows(12)).train()
    assert named.predict("river") in ("bad", "good")
    assert named.id2label == {0: "bad", 1: "good"}


def test_names_given_after_training_are_saved(tiny: Path, tmp_path: Path) -> None:
    model = SetFitModel.from_pretrained(tiny)
    Trainer(model, arguments(tmp_path), rows(12)).train()
    model.labels = ["bad", "good"]
    assert model.predict("river") in ("bad", "good")
    model.save_pretrained(tmp_path / "saved")
    assert SetFitModel.from_pretrained(tmp_path / "saved").predict("river") == model.predict("river")


@pytest.mark.parametrize("differentiable", [False, True])
def test_several_labels(tiny: Path, tmp_path: Path, differentiable: bool) -> None:
    data = [{"text": row["text"], "label": [i & 1, i >> 1 & 1, 1 - (i & 1)]} for i, row in enumerate(rows(12), 1)]
    model = SetFitModel.from_pretrained(
        tiny, multi_target_strategy="multi-output", use_differentiable_head=differentiable
    )
    trainer = Trainer(
        model, arguments(tmp_path), data, data, metric="f1", metric_kwargs={"average": "micro"}, column_mapping=None
    )
    trainer.train()
    found = model.predict([row["text"] for row in data], as_numpy=True)
    assert isinstance(found, np.ndarray)
    assert found.shape == (12, 3)
    assert set(found.ravel()) <= {0, 1}
    assert model.predict_proba("river").shape == (3,)
    assert set(trainer.evaluate()) == {"f1"}


def test_every_loss_by_the_class_of_its_library(tiny: Path, tmp_path: Path) -> None:
    """The classes are sentence-transformers' own; none is ever called."""
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    names = ["BatchAllTripletLoss", "BatchHardTripletLoss", "BatchSemiHardTripletLoss"]
    for name in [*names, "BatchHardSoftMarginTripletLoss", "CosineSimilarityLoss"]:
        args = arguments(tmp_path / name, loss=getattr(losses, name), max_steps=2)
        assert Trainer(SetFitModel.from_pretrained(tiny), args, rows(12)).train().step == 3


def test_a_function_measures(tiny: Path, tmp_path: Path) -> None:
    """As SetFit calls it: answers, truth, keyword arguments; texts as numbers."""
    seen = []

    def metric(y_pred: Any, y_test: Any, scale: float) -> float:
        seen.append((y_pred, y_test))
        return scale

    data = [{"text": row["text"], "label": "ab"[row["label"]]} for row in rows(12)]
    trainer = Trainer(
        SetFitModel.from_pretrained(tiny), arguments(tmp_path), data, data, metric=metric, metric_kwargs={"scale": 3.0}
    )
    trainer.train()
    assert trainer.evaluate() == {"metric": 3.0}
    assert isinstance(seen[0][0], torch.Tensor)
    assert seen[0][1] == [row["label"] for row in rows(12)]


def test_resume_from_checkpoint_is_understood(tiny: Path, tmp_path: Path) -> None:
    args = arguments(tmp_path)

    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        Trainer(SetFitModel.from_pretrained(tiny), args, rows(12)).train(report=stop)
    with pytest.raises(ConfigError, match="has no classifier yet"):  # its head is all zeros still
        SetFitModel.from_pretrained(tmp_path / "run").predict("river")
    trainer = Trainer(SetFitModel.from_pretrained(tiny), args, rows(12))
    assert trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoints" / "00000003")).step == 7
    assert trainer.train(resume_from_checkpoint=True).finished  # once more, with the trained model: it is finished


def test_evaluated_while_it_trains(tiny: Path, tmp_path: Path) -> None:
    given = {"max_steps": -1, "num_epochs": (2, 1), "batch_size": (8, 4), "eval_strategy": "epoch"}
    args = arguments(tmp_path, **given, load_best_model_at_end=True)
    seen = []
    model = SetFitModel.from_pretrained(tiny, use_differentiable_head=True)
    Trainer(model, args, rows(8), rows(8, seed=1)).train(report=seen.append)
    epoch = 5  # steps: 20 pairs of either kind (those of a text with itself among the positive ones), by 8
    assert [event.step for event in seen if type(event).__name__ == "Evaluated"] == [0, epoch, 2 * epoch, 2 * epoch + 2]
    with pytest.raises(ConfigError, match="use_differentiable_head=True"):
        Trainer(SetFitModel.from_pretrained(tiny), args, rows(8), rows(8)).train()


def test_a_student_of_a_teacher(tiny: Path, tmp_path: Path) -> None:
    """From texts alone; stopped at the boundary of the phases, it goes on."""

    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 6:
            signal.raise_signal(signal.SIGTERM)

    teacher = SetFitModel.from_pretrained(tiny, labels=["bad", "good"])
    Trainer(teacher, arguments(tmp_path / "teacher"), rows(12)).train()
    texts = [{"text": row["text"]} for row in rows(30, seed=2)]

    def student(folder: str) -> DistillationTrainer:
        made = SetFitModel.from_pretrained(make_model(tmp_path, seed=9))
        return DistillationTrainer(teacher, made, arguments(tmp_path / folder), texts, rows(12))

    whole = student("whole")
    whole.train()
    with pytest.raises(SystemExit):
        student("stopped").train(report=stop)
    student("stopped").train()
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "stopped" / "run")
    assert whole.student_model.labels == ["bad", "good"]
    assert whole.student_model.predict("river") in ("bad", "good")
    assert set(whole.evaluate()) == {"accuracy"}


def make_model(folder: Path, seed: int) -> Path:
    place = folder / f"model-{seed}"
    return place if place.exists() else make_model_folder(place, seed=seed)
