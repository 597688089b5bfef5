"""Few-shot classification stopped after every step of both phases: the same encoder and head, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exact.runs import assert_same_run, final_state, step_records, train
from tests.tiny import make_model_folder, make_rows
from unbroken.models.classifying import read_classifier
from unbroken.models.encoder import Encoder
from unbroken.models.logistic import fit_logistic
from unbroken.run.state import State


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def labelled(count: int = 30, classes: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of several classes, some larger than others."""
    rows = make_rows(count, seed)
    names = [f"class {min(i % (classes + 1), classes - 1)}" for i in range(count)]
    return [{"text": row["positive"], "label": name} for row, name in zip(rows, names, strict=True)]


def several(count: int = 30) -> list[dict[str, Any]]:
    names = ["red", "green", "blue"]
    return [
        {"text": row["positive"], "label": [name for place, name in enumerate(names) if (i + 1) >> place & 1]}
        for i, row in enumerate(make_rows(count))
    ]


def values(model: Path, **changes: Any) -> dict[str, Any]:
    """Eight steps of the encoder and one of the head."""
    return {
        "task": "classify",
        "model": str(model),
        "train_data": labelled(),
        "batch_size": 8,
        "max_steps": 8,
        "body_learning_rate": 1e-3,
        "seed": 7,
        "threads": 1,
    } | changes


DIFFERENTIABLE = {"head": "differentiable", "batch_size": [8, 10], "num_epochs": [1, 3], "max_steps": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "all pairs": {},
    "chunks": {"micro_batch_size": 3},
    "the whole vocabulary": {"active_vocabulary": False},
    "evaluated": {"eval_data": labelled(20, seed=1), "eval_steps": 3},
    "calibrated": {"eval_data": labelled(20, seed=1), "calibrate": True},
    "drawn examples": {"samples_per_label": 5, "normalize_embeddings": True, "class_weight": "balanced"},
    "sampled pairs": {"pairs": "sampled"},
    "iterations": {"num_iterations": 2, "max_steps": 6},
    "triplets": {"loss": "batch_hard_soft_margin_triplet"},
    "every pair by its cosine": {"loss": "cosine_similarity"},
    "dropout": {"dropout": 0.1},
    "several labels": {"train_data": several()},
    "several labels, sampled": {"train_data": several(), "pairs": "sampled"},
    "differentiable": DIFFERENTIABLE,
    "best of them": {
        **DIFFERENTIABLE,
        "eval_data": labelled(20, seed=1),
        "eval_steps": 2,
        "load_best_model_at_end": True,
    },
    "end to end": {**DIFFERENTIABLE, "end_to_end": True},
    "end to end in chunks": {**DIFFERENTIABLE, "end_to_end": True, "micro_batch_size": 4},
}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_stopped_after_every_step(variant: str, model: Path, tmp_path: Path) -> None:
    asked = values(model, **VARIANTS[variant])
    steps = train(asked, tmp_path / "whole").step
    assert steps >= 7
    for last in range(1, steps):
        stopped = tmp_path / f"stopped-after-{last}"
        assert train(asked, stopped, stop_after=last).step == last
        assert train(asked, stopped).finished
        assert_same_run(stopped, tmp_path / "whole")


def test_stopped_after_each_step_of_one_run(model: Path, tmp_path: Path) -> None:
    """A segment for every step, the boundary of the phases among them."""
    asked = values(model, **DIFFERENTIABLE, end_to_end=True)
    steps = train(asked, tmp_path / "whole").step
    for last in range(1, steps + 1):
        train(asked, tmp_path / "in-pieces", stop_after=last)
    assert train(asked, tmp_path / "in-pieces").finished
    assert_same_run(tmp_path / "in-pieces", tmp_path / "whole")


def test_the_model_is_the_recorded_one(model: Path, tmp_path: Path) -> None:
    """The head is one over the encoder beside it: fitted anew, with texts in other batches, it comes out alike."""
    rows = labelled()
    train(values(model), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    encoder = Encoder.from_pretrained(folder)
    settings, head = read_classifier(folder, encoder.dimension)
    assert settings.labels == ("class 0", "class 1", "class 2")
    targets = np.array([settings.labels.index(row["label"]) for row in rows])
    again = fit_logistic(encoder.encode([row["text"] for row in rows]), targets, num_labels=3)
    assert np.allclose(head.weight.detach(), again.weight, atol=1e-5)
    assert np.allclose(head.bias.detach(), again.bias, atol=1e-5)
    assert head.weight.abs().max() > 0


def test_weights_of_classes_that_are_numbers(model: Path, tmp_path: Path) -> None:
    """Digits sort otherwise than numbers: 11 before 3. The record must read the same, and be what is asked again."""
    rows = [row | {"label": {"class 0": 3, "class 1": 7, "class 2": 11}[row["label"]]} for row in labelled()]
    asked = values(model, train_data=rows, class_weight={3: 2.0, 7: 1.0, 11: 0.5})
    train(asked, tmp_path / "run", stop_after=4)
    assert train(asked, tmp_path / "run").finished
    train(asked | {"class_weight": {11: 0.5, 7: 1.0, 3: 2.0}}, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    train(asked | {"class_weight": None}, tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", tmp_path / "other")


def test_the_best_model_has_its_head(model: Path, tmp_path: Path) -> None:
    """Evaluations of the first phase say what a head fitted then would do: none of its steps is the model."""
    rows = labelled(12, seed=1)
    asked = values(model, **DIFFERENTIABLE, eval_data=rows, eval_steps=1, load_best_model_at_end=True)
    asked["head_learning_rate"] = 1e-6  # the head stays as bad as it began: every step before the boundary looks better
    train(asked, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()]
    scores = {record["n"]: record["metrics"]["accuracy"] for record in records if record["kind"] == "evaluation"}
    best = records[-1]["best"]
    boundary = DIFFERENTIABLE["max_steps"]
    assert max(scores[step] for step in range(1, boundary)) > scores[best]
    assert best > boundary
    assert best == max(range(boundary + 1, max(scores) + 1), key=lambda step: (scores[step], -step))


def test_the_seed_matters(model: Path, tmp_path: Path) -> None:
    """A control: without it two runs could be equal because nothing depends on anything."""
    train(values(model), tmp_path / "one")
    train(values(model, seed=8), tmp_path / "other")
    assert step_records(tmp_path / "one") != step_records(tmp_path / "other")
    assert final_state(tmp_path / "one") != final_state(tmp_path / "other")


def test_an_optimizer_that_forgets_is_found_out(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: without Adam's moments the second phase goes on otherwise."""
    asked = values(model, **DIFFERENTIABLE)
    steps = train(asked, tmp_path / "whole").step
    real = State._restore_optimizer
    monkeypatch.setattr(State, "_restore_optimizer", lambda self, restored, slots: real(self, restored, {}))
    train(asked, tmp_path / "stopped", stop_after=steps - 2)
    train(asked, tmp_path / "stopped")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "stopped", tmp_path / "whole")
