"""SetFit's arguments and data, one clear line about what has no meaning here, and a warning of what does nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from pandas import DataFrame
from sklearn.linear_model import LogisticRegression
from tests.tiny import WORDS, make_model_folder

from unbroken.base.errors import ConfigError, DataError
from unbroken.bridges.setfit import PickleWarning
from unbroken.bridges.setfit_data import rows_of
from unbroken.bridges.setfit_metrics import METRICS, measure
from unbroken.models.classifying import ClassifierSettings
from unbroken.plan.shots import draw_shots
from unbroken.setfit import (
    DistillationTrainer,
    SetFitModel,
    SetFitWarning,
    Trainer,
    TrainingArguments,
    get_templated_dataset,
    sample_dataset,
)
from unbroken.tasks.classify.config import ClassifyConfig

ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(8)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def resolved(model: SetFitModel, train: Any = ROWS, held_out: Any = None, **given: Any) -> ClassifyConfig:
    trainer = Trainer(model, TrainingArguments(**given), train, held_out)
    return ClassifyConfig.from_values(trainer.values())


def test_one_value_serves_both_phases_and_properties_tell() -> None:
    args = TrainingArguments(batch_size=8, num_epochs=[2, 3], body_learning_rate=1e-4)
    assert (args.embedding_batch_size, args.classifier_batch_size) == (8, 8)
    assert (args.embedding_num_epochs, args.classifier_num_epochs) == (2, 3)
    assert (args.body_embedding_learning_rate, args.body_classifier_learning_rate) == (1e-4, 1e-4)
    assert TrainingArguments().batch_size == (16, 2)
    args.batch_size = 4
    assert args.embedding_batch_size == 4


def test_arguments_are_mappings_copies_and_updates() -> None:
    args = TrainingArguments("runs/x", seed=3)
    assert TrainingArguments.from_dict(args.to_dict()) == args == args.copy()
    assert args.update({"seed": 4}).seed == 4
    assert args.update({"seed": 4, "nothing": 1}, ignore_extra=True).output_dir == "runs/x"
    with pytest.raises(ConfigError, match="there is no argument 'nothing'"):
        args.update({"nothing": 1})


def test_each_argument_means_a_key(tiny: Path) -> None:
    given = {
        "head_learning_rate": 2e-2,
        "l2_weight": 0.0,
        "max_length": 16,
        "seed": 5,
        "warmup_proportion": 0.2,
        "sampling_strategy": "unique",
        "save_steps": 7,
        "save_total_limit": 1,
        "threads": 1,
        "micro_batch_size": 4,
    }
    config = resolved(SetFitModel.from_pretrained(tiny, normalize_embeddings=True), **given)
    found = {name: getattr(config, "warmup_ratio" if name == "warmup_proportion" else name) for name in given}
    assert found == given | {"save_total_limit": 2}
    assert config.pairs == "sampled"
    assert config.normalize_embeddings
    assert config.head == "logistic_regression"


def test_losses_of_texts_leave_the_pairs_settings_out(tiny: Path) -> None:
    config = resolved(SetFitModel.from_pretrained(tiny), loss="SupConLoss", num_iterations=20, batch_size=4)
    assert (config.loss, config.pairs, config.num_iterations) == ("supervised_contrastive", "all", None)
    assert config.max_steps == 2


def test_distance_by_function_or_name(tiny: Path) -> None:
    def eucledian_distance() -> None: ...

    model = SetFitModel.from_pretrained(tiny)
    for distance in (eucledian_distance, "eucledian_distance", "euclidean"):
        assert resolved(model, loss="BatchHardTripletLoss", distance_metric=distance).distance == "euclidean"


def test_out_features_count_the_classes(tiny: Path) -> None:
    wide = SetFitModel.from_pretrained(tiny, use_differentiable_head=True, head_params={"out_features": 4})
    assert resolved(wide).labels == [0, 1, 2, 3]
    narrow = SetFitModel.from_pretrained(tiny, use_differentiable_head=True, head_params={"out_features": 1})
    with pytest.raises(ConfigError, match="out_features is 1, and the labels of train_dataset need 2"):
        resolved(narrow)
    named = SetFitModel.from_pretrained(
        tiny, use_differentiable_head=True, head_params={"out_features": 3}, labels=["a", "b"]
    )
    with pytest.raises(ConfigError, match="out_features is 3, and there are 2 labels"):
        resolved(named)


def test_class_weights_by_number_follow_the_names(tiny: Path) -> None:
    model = SetFitModel.from_pretrained(tiny, head_params={"class_weight": {0: 2}}, labels=["a", "b"])
    assert resolved(model).class_weight == {"a": 2.0}
    assert [row["label"] for row in resolved(model).train_data[:2]] == ["a", "b"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"num_epoch": 1}, "no argument 'num_epoch'; did you mean 'num_epochs'"),
    "of transformers": ({"per_device_train_batch_size": 8}, "no argument 'per_device_train_batch_size'"),
    "a loss of other data": ({"loss": "MultipleNegativesRankingLoss"}, "loss: MultipleNegativesRankingLoss is not one"),
    "a distance of one's own": ({"distance_metric": max}, "distance_metric: max is not known"),
    "no strategy": ({"eval_strategy": "often"}, "eval_strategy: 'often' is not known"),
    "nothing to evaluate on": ({"eval_strategy": "epoch"}, "there is no eval_dataset"),
    "no save strategy": ({"save_strategy": "best"}, "save_strategy: 'best' is not known"),
    "end to end, no gradients": ({"end_to_end": True}, "end_to_end needs a head that has gradients"),
    "no epochs": ({"num_epochs": 0}, "num_epochs: [0.0, 0.0]; give numbers above 0"),
    "sampling": ({"sampling_strategy": "overampling"}, "did you mean 'oversampling'"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused_in_one_line(case: str, tiny: Path) -> None:
    given, sentence = REFUSED[case]
    with pytest.raises(ConfigError) as failure:
        resolved(SetFitModel.from_pretrained(tiny), **given)
    assert sentence in str(failure.value)
    assert "\n" not in str(failure.value)


NO_EFFECT: dict[str, dict[str, Any]] = {
    "report_to": {"report_to": "wandb"},
    "use_amp": {"use_amp": True},
    "samples_per_label": {"samples_per_label": 8},
    "eval_delay": {"eval_delay": 3},
    "metric_for_best_model": {"metric_for_best_model": "embedding_loss"},
}


@pytest.mark.parametrize("name", NO_EFFECT)
def test_what_does_nothing_is_said(name: str, tiny: Path) -> None:
    with pytest.warns(SetFitWarning, match=name):
        resolved(SetFitModel.from_pretrained(tiny), **NO_EFFECT[name])


def test_what_setfit_leaves_alone_is_not_talked_about(tiny: Path) -> None:
    """No warning (the test run turns them into errors), and the same configuration."""
    quiet = {"report_to": "none", "run_name": "x", "logging_steps": 1, "logging_dir": "y", "show_progress_bar": False}
    model = SetFitModel.from_pretrained(tiny)
    assert resolved(model, **quiet) == resolved(model)


HEADS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"head_params": {"Q": 1}}, "head_params: there is no argument 'Q'"),
    "another regression": ({"head_params": {"C": 10}}, "head_params: C=10 is not to be had; it is 1.0"),
    "temperature": (
        {"use_differentiable_head": True, "head_params": {"temperature": 2.0}},
        "TrainingArguments(calibrate=True)",
    ),
    "chain": ({"multi_target_strategy": "classifier-chain"}, "give one of one-vs-rest, multi-output"),
    "of the hub": ({"revision": "main"}, "revision has no effect here"),
    "misspelt": ({"label": ["a"]}, "there is no argument 'label'"),
}


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_a_model_that_is_not_to_be_had(case: str, tiny: Path) -> None:
    given, sentence = HEADS[case]
    with pytest.raises(ConfigError) as failure:
        SetFitModel.from_pretrained(tiny, **given)
    assert sentence in str(failure.value)


def test_how_the_optimum_is_found_does_not_matter(tiny: Path) -> None:
    with pytest.warns(SetFitWarning, match="solver, max_iter does nothing"):
        SetFitModel.from_pretrained(tiny, head_params={"solver": "liblinear", "max_iter": 300})


def test_things_of_other_libraries_are_named(tiny: Path) -> None:
    model = SetFitModel.from_pretrained(tiny)
    for given, sentence in [
        ({"model": model, "args": object()}, "import TrainingArguments from unbroken.setfit"),
        ({"model": object()}, "import SetFitModel from unbroken.setfit"),
        ({}, "takes a model, or model_init"),
        ({"model": model, "callbacks": [print]}, "callbacks are not called here"),
        ({"model": model, "metric": "acuracy"}, "did you mean 'accuracy'"),
    ]:
        with pytest.raises(ConfigError) as failure:
            Trainer(**given)
        assert sentence in str(failure.value)
    for made in (lambda: SetFitModel(torch.nn.Linear(1, 1)), lambda: SetFitModel(model_body=1, model_head=2)):
        with pytest.raises(ConfigError, match=r"write SetFitModel\.from_pretrained"):
            made()
    trainer = Trainer(model_init=lambda: model, train_dataset=ROWS)
    for call in (trainer.train_embeddings, trainer.train_classifier, trainer.hyperparameter_search, model.push_to_hub):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(ConfigError, match="no argument 'num_epochs'; give it to TrainingArguments"):
        trainer.train(num_epochs=3)
    with pytest.raises(ImportError, match="use Trainer"):
        from unbroken.setfit import SetFitTrainer  # noqa: F401


def test_a_teacher_has_a_classifier_of_its_own(tiny: Path, tmp_path: Path) -> None:
    student = SetFitModel.from_pretrained(tiny, use_differentiable_head=True, head_params={"out_features": 5})
    with pytest.raises(ConfigError, match="the teacher is no trained SetFitModel"):
        DistillationTrainer(SetFitModel.from_pretrained(tiny), student, train_dataset=ROWS)
    teacher = SetFitModel.from_pretrained(tiny)
    settings = ClassifierSettings("logistic_regression", ("a", "b"), teacher.model_body.dimension)
    teacher.take(settings, settings.head())
    with pytest.raises(ConfigError, match="save_pretrained"):
        DistillationTrainer(teacher, student, train_dataset=ROWS)
    teacher.save_pretrained(tmp_path / "teacher")
    teacher = SetFitModel.from_pretrained(tmp_path / "teacher")
    trainer = DistillationTrainer(teacher, student, train_dataset=ROWS)
    assert student.labels == ["a", "b"]
    with pytest.raises(ConfigError, match="out_features is 5, and the teacher has 2 labels"):
        trainer.values()
    args = TrainingArguments(loss="BatchHardTripletLoss")
    with pytest.raises(ConfigError, match="a student learns its teacher's similarities"):
        DistillationTrainer(teacher, SetFitModel.from_pretrained(tiny), args, ROWS).values()
    values = DistillationTrainer(teacher, SetFitModel.from_pretrained(tiny), None, DataFrame(ROWS)).values()
    assert values["train_data"] == [{"text": row["text"]} for row in ROWS]
    assert ClassifyConfig.from_values(values).teacher == str(tmp_path / "teacher")


def test_freezing_is_automatic(tiny: Path) -> None:
    trainer = Trainer(SetFitModel.from_pretrained(tiny), train_dataset=ROWS)
    for call in (trainer.freeze, lambda: trainer.unfreeze(keep_body_frozen=False), trainer.model.unfreeze):
        with pytest.warns(SetFitWarning, match="end_to_end=True"):
            call()


def test_weights_changed_in_memory_are_found_out(tiny: Path, tmp_path: Path) -> None:
    model = SetFitModel.from_pretrained(tiny)
    model.model_body.requires_grad_(False)  # no change of a weight
    model.require_unchanged()
    with torch.no_grad():
        next(model.model_body.parameters())[0] += 1
    with pytest.raises(ConfigError, match="no longer those of"):
        Trainer(model, TrainingArguments(str(tmp_path / "run")), ROWS).train()
    model.save_pretrained(tmp_path / "changed")
    SetFitModel.from_pretrained(tmp_path / "changed").require_unchanged()


def test_no_classifier_yet(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="has no classifier yet; train it"):
        SetFitModel.from_pretrained(tiny).predict("x")


def test_a_model_setfit_saved(tiny: Path, tmp_path: Path) -> None:
    """Its head is read on request, and the model saved again without a pickle answers the same."""
    folder = tmp_path / "theirs"
    shutil.copytree(tiny, folder)
    texts = [f"{word} {other}" for word in WORDS[:6] for other in WORDS[6:9]]
    embeddings = SetFitModel.from_pretrained(tiny).encode(texts)
    head = LogisticRegression().fit(embeddings, [i % 3 for i in range(len(texts))])
    joblib.dump(head, folder / "model_head.pkl")
    (folder / "config_setfit.json").write_text('{"normalize_embeddings": false, "labels": ["a", "b", "c"]}')
    with pytest.raises(ConfigError, match="allow_pickle=True"):
        SetFitModel.from_pretrained(folder)
    with pytest.warns(PickleWarning):
        model = SetFitModel.from_pretrained(folder, allow_pickle=True)
    assert model.predict(texts) == [["a", "b", "c"][place] for place in head.predict(embeddings)]
    assert model.predict_proba(texts, as_numpy=True) == pytest.approx(head.predict_proba(embeddings), abs=1e-5)
    model.save_pretrained(tmp_path / "ours")
    assert not list((tmp_path / "ours").rglob("*.pkl"))
    assert SetFitModel.from_pretrained(tmp_path / "ours").predict(texts) == model.predict(texts)


def test_data_of_every_kind_are_the_same_rows() -> None:
    kinds = [ROWS, Dataset.from_list(ROWS), DataFrame(ROWS), [{**row, "label": np.int64(row["label"])} for row in ROWS]]
    assert [rows_of(kind, None, "data").named(None) for kind in kinds] == [ROWS] * len(kinds)
    formatted = Dataset.from_list(ROWS).with_format("torch")
    assert rows_of(formatted, None, "data").named(None) == ROWS


def test_names_of_a_class_label() -> None:
    data = Dataset.from_list(ROWS).cast_column("label", ClassLabel(names=["no", "yes"]))
    found = rows_of(data, None, "data")
    assert found.names == ("no", "yes")
    assert found.named(found.names)[:2] == [{"text": "text 0", "label": "no"}, {"text": "text 1", "label": "yes"}]
    with pytest.raises(DataError, match="row 2, column 'label' holds 1, and there are names for 0 to 0"):
        found.named(["only"])


def test_columns_that_are_missing() -> None:
    data = [{"sentence": "x", "label": 0}]
    with pytest.raises(DataError, match="data has no column 'text'; it has sentence, label; say which it is"):
        rows_of(data, None, "data")
    with pytest.raises(ConfigError, match="'txt' is neither text nor label"):
        rows_of(data, {"sentence": "txt"}, "data")
    assert rows_of(data, {"sentence": "text"}, "data").texts == ["x"]
    with pytest.raises(DataError, match="give one split"):
        rows_of(DatasetDict(train=Dataset.from_list(ROWS)), None, "data")


def test_a_few_of_each_label_as_the_same_kind() -> None:
    wanted = draw_shots([str(row["label"]) for row in ROWS], 2, 42).tolist()
    for kind in (ROWS, Dataset.from_list(ROWS), DataFrame(ROWS)):
        drawn = sample_dataset(kind, num_samples=2)
        assert type(drawn) is type(kind)
        assert rows_of(drawn, None, "data").texts == [f"text {row}" for row in wanted]
    assert len(sample_dataset(ROWS, num_samples=100)) == len(ROWS)
    assert sample_dataset(ROWS, num_samples=2, seed=1) != sample_dataset(ROWS, num_samples=2)


def test_templates() -> None:
    made = get_templated_dataset(candidate_labels=["a", "b"], sample_size=1)
    assert made == [{"text": "This sentence is a", "label": 0}, {"text": "This sentence is b", "label": 1}]
    added = get_templated_dataset(Dataset.from_list(ROWS), candidate_labels=["a", "b"], sample_size=3)
    assert len(added) == len(ROWS) + 6
    assert get_templated_dataset(candidate_labels=["a", "b"], multi_label=True)[-1]["label"] == [0, 1]
    with pytest.raises(ConfigError, match="give candidate_labels"):
        get_templated_dataset(reference_dataset="emotion")


def test_metrics_by_name() -> None:
    answers, truth = torch.tensor([0, 1, 1, 0]), [0, 1, 0, 0]
    found = {name: measure(name, answers, truth, None)[name] for name in METRICS}
    assert found["accuracy"] == 0.75
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["matthews_correlation"] == pytest.approx(0.5773502692)
    with pytest.raises(ConfigError, match="average"):
        measure("f1", torch.tensor([0, 1, 2]), [0, 1, 2], None)


def test_importing_is_quick_and_brings_neither_torch_nor_setfit() -> None:
    heavy = "torch transformers datasets pandas sklearn sentence_transformers setfit"
    code = f"import sys, unbroken.setfit; print([name for name in {heavy.split()!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
