"""What a SetFit script's numbers come to: the steps of both phases and their learning rates, as SetFit makes them.

Taken once from SetFit 1.2.0 (transformers 5.23) on these rows and the model of `tests/tiny.py`, by counting the steps
of its trainer's and its head's optimizers and noting their rates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_model_folder, make_rows
from unbroken.models.classifying import ClassifierSettings
from unbroken.setfit import (
    BatchHardTripletLoss,
    CosineSimilarityLoss,
    DistillationTrainer,
    SetFitModel,
    Trainer,
    TrainingArguments,
)
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.course import courses_of
from unbroken.tasks.classify.data import LabelledTexts

SINGLE = [{"text": row["positive"], "label": min(i % 4, 2)} for i, row in enumerate(make_rows(30))]
SEVERAL = [
    {"text": row["positive"], "label": [(i + 1) >> place & 1 for place in range(3)]}
    for i, row in enumerate(make_rows(30))
]
ROW_4 = {
    "batch_size": (16, 2),
    "num_iterations": 2,
    "num_epochs": (1, 6),
    "body_learning_rate": (2e-5, 1e-5),
    "head_learning_rate": 1e-2,
    "end_to_end": True,
    "loss": CosineSimilarityLoss,
}
# arguments; steps of the first phase; its rates at the first four steps and at the last
SETFITS: dict[str, tuple[dict[str, Any], int, list[float], float]] = {
    "defaults": ({}, 36, [0.0, 5e-06, 1e-05, 1.5e-05], 6.25e-07),
    "one value for both": (
        {"batch_size": 8, "num_epochs": 2, "body_learning_rate": 1e-3},
        144,
        [0.0, 6.666666666666667e-05, 1.3333333333333334e-04, 2e-4],
        7.751937984496124e-06,
    ),
    "undersampling": (
        {"sampling_strategy": "undersampling", "num_epochs": (3, 1)},
        69,
        [0.0, 2.8571428571428573e-06, 5.7142857142857145e-06, 8.571428571428571e-06],
        3.2258064516129035e-07,
    ),
    "unique": (
        {"sampling_strategy": "unique", "batch_size": (10, 2)},
        47,
        [0.0, 4e-06, 8e-06, 1.2e-05],
        4.7619047619047623e-07,
    ),
    "num_iterations": ({"num_iterations": 5}, 19, [0.0, 1e-05, 2e-05, 1.8823529411764708e-05], 1.1764705882352942e-06),
    "max_steps": (
        {"max_steps": 7},
        7,
        [0.0, 2e-05, 1.6666666666666667e-05, 1.3333333333333333e-05],
        3.333333333333e-06,
    ),
    "row 4": (ROW_4, 8, [0.0, 2e-05, 1.7142857142857142e-05, 1.4285714285714287e-05], 2.857142857142857e-06),
    "no warm-up": (
        {"warmup_proportion": 0.0, "num_iterations": 2},
        8,
        [2e-05, 1.75e-05, 1.5e-05, 1.25e-05],
        2.5e-06,
    ),
    "batches of texts": (
        {"loss": BatchHardTripletLoss, "num_epochs": (2, 1), "batch_size": 10},
        6,
        [0.0, 2e-05, 1.6e-05, 1.2e-05],
        4e-06,
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def courses(rows: list[dict[str, Any]], model: SetFitModel, **arguments: Any) -> Any:
    return courses_by(Trainer(model=model, args=TrainingArguments(**arguments), train_dataset=rows))


def courses_by(trainer: Trainer) -> Any:
    values = trainer.values()
    config = ClassifyConfig.from_values(values)
    data = LabelledTexts(config.train_data, config)
    return courses_of(config, data.targets[data.chosen])


@pytest.mark.parametrize("case", SETFITS, ids=str)
def test_steps_and_rates_of_the_first_phase(case: str, tiny: Path) -> None:
    arguments, steps, first_rates, last_rate = SETFITS[case]
    made = courses(SINGLE, SetFitModel.from_pretrained(tiny, use_differentiable_head=case == "row 4"), **arguments)
    assert made.body_steps == steps
    assert [made.body_rate(step) for step in range(4)] == pytest.approx(first_rates)
    assert made.body_rate(steps - 1) == pytest.approx(last_rate)


def test_steps_and_rates_of_the_second_phase(tiny: Path) -> None:
    """SetFit: 90 steps, the last at rates of (5e-6, 5e-3) of the body and the head."""
    arguments = dict(ROW_4)
    made = courses(SINGLE, SetFitModel.from_pretrained(tiny, use_differentiable_head=True), **arguments)
    assert made.head_steps == 90
    assert [made.head_rate(step) for step in (0, 74, 75, 89)] == pytest.approx([1e-2, 1e-2, 5e-3, 5e-3])


def test_steps_with_several_labels(tiny: Path) -> None:
    model = SetFitModel.from_pretrained(tiny, multi_target_strategy="one-vs-rest")
    assert courses(SEVERAL, model, num_epochs=1).body_steps == 36


def test_steps_of_a_student(tiny: Path, tmp_path: Path) -> None:
    """SetFit: 465 pairs of 30 texts, or 60 with two iterations. (What they are to be is 1 for every pair there.)"""
    teacher = SetFitModel.from_pretrained(tiny)
    settings = ClassifierSettings("logistic_regression", (0, 1, 2), teacher.model_body.dimension)
    teacher.take(settings, settings.head())
    teacher.save_pretrained(tmp_path / "teacher")
    teacher = SetFitModel.from_pretrained(tmp_path / "teacher")
    for arguments, pairs in ({}, 465), ({"num_iterations": 2}, 60):
        args = TrainingArguments(**arguments)
        made = courses_by(DistillationTrainer(teacher, SetFitModel.from_pretrained(tiny), args, SINGLE))
        assert made.body_steps == -(-pairs // 16)


def test_our_own_way_is_a_word_away(tiny: Path) -> None:
    """A control: with all pairs of each batch compared, the counts are others."""
    made = courses(SINGLE, SetFitModel.from_pretrained(tiny), pairs="all")
    config = ClassifyConfig.from_values(
        {"task": "classify", "model": str(tiny), "output_dir": "checkpoints", "train_data": SINGLE, "seed": 42}
    )
    data = LabelledTexts(config.train_data, config)
    assert made.body_steps == courses_of(config, data.targets).body_steps != 36
