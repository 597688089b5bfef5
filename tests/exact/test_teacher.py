"""A student of a teacher, stopped after every step: what it learns is a function of the teacher and the texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.exact.runs import assert_same_run, final_state, step_records, train
from tests.exact.test_classify import labelled, several
from tests.exact.test_classify import values as labelled_values
from tests.tiny import make_model_folder
from unbroken.base.errors import CannotContinueError, ConfigError, DataError
from unbroken.models.classifying import read_classifier
from unbroken.models.encoder import Encoder
from unbroken.tasks.classify.measure import measure
from unbroken.tasks.classify.report import report
from unbroken.tasks.verify import verify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "student", seed=3)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier of one label a text, one of several, and an encoder without a classifier."""
    folder = tmp_path_factory.mktemp("teachers")
    encoder = make_model_folder(folder / "encoder")
    train(values(encoder, max_steps=30, class_weight="balanced"), folder / "one")
    train(values(encoder, max_steps=4, train_data=several()), folder / "several")
    return {"one": folder / "one", "several": folder / "several" / "model", "encoder": encoder}


def values(model: Path, **changes: Any) -> dict[str, Any]:
    """Four steps of the encoder and one of the head."""
    return labelled_values(model) | {"max_steps": 4} | changes


def without_labels(rows: list[dict[str, Any]], every: int = 1) -> list[dict[str, Any]]:
    return [row if i % every else {"text": row["text"], "label": None} for i, row in enumerate(rows)]


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "labelled texts": ("encoder", {}),
    "in chunks": ("one", {"micro_batch_size": 3}),
    "no labels": ("one", {"train_data": [{"text": row["text"]} for row in labelled()]}),
    "some labels": ("one", {"train_data": without_labels(labelled(), 3)}),
    "several labels": ("several", {"train_data": without_labels(several(), 2)}),
    "pairs": ("one", {"pairs": "sampled", "train_data": without_labels(labelled())}),
    "iterations": ("one", {"pairs": "sampled", "num_iterations": 1, "max_steps": None}),
    "end to end": (
        "one",
        {
            "head": "differentiable",
            "end_to_end": True,
            "batch_size": [8, 10],
            "num_epochs": [1, 2],
            "max_steps": 3,
            "train_data": without_labels(labelled(), 2),
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_stopped_after_every_step(variant: str, model: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    teacher, changes = VARIANTS[variant]
    asked = values(model, teacher=str(teachers[teacher]), **changes)
    steps = train(asked, tmp_path / "whole").step
    assert steps >= 5
    for last in range(1, steps):
        stopped = tmp_path / f"stopped-after-{last}"
        assert train(asked, stopped, stop_after=last).step == last
        assert train(asked, stopped).finished
        assert_same_run(stopped, tmp_path / "whole")


def test_what_the_teacher_said_is_said_again_where_it_was_lost(
    model: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    asked = values(model, teacher=str(teachers["one"]), train_data=without_labels(labelled(), 2))
    train(asked, tmp_path / "whole")
    for number, lose in enumerate((Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-40] + b"?" * 40))):
        stopped = tmp_path / f"stopped-{number}"
        train(asked, stopped, stop_after=2)
        (kept,) = (stopped / "cache").glob("teacher-*.npy")
        lose(kept)
        assert train(asked, stopped).finished
        assert_same_run(stopped, tmp_path / "whole")


def test_its_answers_are_labels_like_any_other(model: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    """A run whose rows have no labels, and one whose rows have the teacher's answers, make the same classifier."""
    folder = teachers["one"] / "model"
    encoder = Encoder.from_pretrained(folder)
    settings, head = read_classifier(folder, encoder.dimension)
    texts = [row["text"] for row in labelled()]
    answers = head.predict(torch.from_numpy(encoder.encode(texts))).tolist()
    assert len(set(answers)) > 1
    named = [{"text": text, "label": settings.labels[answer]} for text, answer in zip(texts, answers, strict=True)]
    bare = [{"text": text} for text in texts]
    for name, rows in (("bare", bare), ("named", named)):
        train(values(model, teacher=str(folder), train_data=rows, labels=list(settings.labels)), tmp_path / name)
    assert_same_run(tmp_path / "bare", tmp_path / "named")


def test_the_student_comes_to_see_as_the_teacher_does(model: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    def cosines(folder: Path) -> torch.Tensor:
        units = F.normalize(torch.from_numpy(Encoder.from_pretrained(folder).encode(texts)), dim=-1)
        return units @ units.T

    texts = [row["text"] for row in labelled()]
    train(
        values(model, teacher=str(teachers["encoder"]), max_steps=60, batch_size=30, dropout=0.0), tmp_path / "student"
    )
    wanted = cosines(teachers["encoder"])
    before, after = ((cosines(folder) - wanted).square().mean() for folder in (model, tmp_path / "student" / "model"))
    assert after < 0.25 * before


def test_another_teacher_makes_another_student(model: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    """A control; and under a run that began with one, another is refused by name."""
    asked = values(model, teacher=str(teachers["one"]))
    train(asked, tmp_path / "one", stop_after=3)
    with pytest.raises(CannotContinueError, match=r"teacher: content [0-9a-f]{8} .this run. -> content"):
        train(asked | {"teacher": str(teachers["encoder"])}, tmp_path / "one")
    train(asked, tmp_path / "one")
    train(asked | {"teacher": str(teachers["encoder"])}, tmp_path / "other")
    assert step_records(tmp_path / "one") != step_records(tmp_path / "other")
    assert final_state(tmp_path / "one") != final_state(tmp_path / "other")


def test_a_teacher_may_move(model: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    asked = values(model, teacher=str(teachers["one"]), train_data=str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled()), encoding="utf-8")
    train(asked, tmp_path / "run", stop_after=3)
    shutil.copytree(teachers["one"] / "model", tmp_path / "moved")
    assert train(asked | {"teacher": str(tmp_path / "moved")}, tmp_path / "run").finished
    found = verify(tmp_path / "run", everything=True, inputs={"teacher": str(tmp_path / "moved")})
    assert found.failure is None
    assert np.isfinite([record[2] for record in step_records(tmp_path / "run")]).all()


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "no classifier": ("encoder", {"train_data": [{"text": "a"}, {"text": "b"}]}, ConfigError, "is no classifier"),
    "another loss": ("one", {"loss": "supervised_contrastive"}, ConfigError, "leave out loss"),
    "drawn": (
        "one",
        {"samples_per_label": 2, "train_data": without_labels(labelled(), 2)},
        DataError,
        "row 1 has no label; samples_per_label draws by labels",
    ),
    "other labels": (
        "one",
        {"labels": ["a", "b"], "train_data": without_labels(labelled())},
        ConfigError,
        "are not the teacher's (class 0, class 1, class 2)",
    ),
    "a label it does not know": (
        "one",
        {"train_data": [*without_labels(labelled()), {"text": "x", "label": "class 9"}]},
        DataError,
        "holds 'class 9', which is none of the 3 classes",
    ),
    "strategy": ("one", {"pairs": "sampled", "sampling_strategy": "unique"}, ConfigError, "leave it out"),
    "evaluated without labels": (
        "one",
        {"eval_data": without_labels(labelled(), 2)},
        DataError,
        "column 'label' holds null",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused_before_anything_is_written(case: str, model: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    teacher, changes, kind, sentence = REFUSED[case]
    with pytest.raises(kind) as failure:
        train(values(model, teacher=str(teachers[teacher]), **changes), tmp_path / "run")
    assert sentence in str(failure.value)
    assert not (tmp_path / "run").exists()


def test_what_is_about_labels_says_that_there_are_none(model: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": row["text"]}) + "\n" for row in labelled()), encoding="utf-8"
    )
    run = tmp_path / "run"
    train(values(model, teacher=str(teachers["one"]), train_data=str(tmp_path / "rows.jsonl")), run)
    with pytest.raises(DataError, match="line 1 has no label: the teacher answered for it"):
        report(run, labelled(20, seed=1))
    with pytest.raises(DataError, match="column 'label' holds null"):
        measure(run, without_labels(labelled(20, seed=1), 2))
    assert "accuracy" in measure(run, labelled(20, seed=1)).metrics


def test_an_unfinished_teacher_has_no_answers(model: Path, tmp_path: Path) -> None:
    """Its head is all zeros still; what its encoder has learned may be taught."""
    train(values(model), tmp_path / "teacher", stop_after=2)
    asked = values(model, teacher=str(tmp_path / "teacher"))
    with pytest.raises(ConfigError, match="is not finished, and texts in train_data have no label"):
        train(asked | {"train_data": without_labels(labelled())}, tmp_path / "run")
    assert train(asked, tmp_path / "run").finished


def test_a_teacher_that_is_not_there(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teacher: there is no folder"):
        train(values(model, teacher=str(tmp_path / "nowhere")), tmp_path / "run")
    with pytest.raises(ConfigError, match="add `teacher: FOLDER`"):
        train(values(model, loss="distillation"), tmp_path / "run")
