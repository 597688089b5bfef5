"""Every key of a classifier's configuration, one by one: an operational one changes no bit, any other is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.exact.test_classify import labelled
from tests.exact.test_contract_fields import HELD_OUT, Case, everything
from tests.exact.test_contract_fields import OPERATIONAL as EVERY_TASK
from tests.tiny import make_model_folder
from unbroken.base.config import contract_of, shown
from unbroken.base.errors import CannotContinueError, UnbrokenError
from unbroken.tasks.classify.config import ClassifyConfig

STEPS = 8  # of the encoder, and then one of the head
TRAINED = {"head": "differentiable", "batch_size": [8, 10], "num_epochs": [1, 3]}
TRIPLETS = {"loss": "batch_hard_triplet"}
CHOSEN = TRAINED | {"eval_data": HELD_OUT, "load_best_model_at_end": True}
NAMES = ["class 0", "class 1", "class 2"]

IDENTITY = {
    "labels": Case(NAMES[::-1], given={"labels": NAMES}),
    "samples_per_label": Case(4),
    "pairs": Case("sampled", given={"loss": "cosine_similarity"}),
    "sampling_strategy": Case("unique", given={"pairs": "sampled"}),
    "num_iterations": Case(3, given={"pairs": "sampled", "num_iterations": 2}),
    "loss": Case("batch_all_triplet"),
    "margin": Case(0.5, given=TRIPLETS),
    "distance": Case("euclidean", given=TRIPLETS),
    "temperature": Case(0.2),
    "batch_size": Case([8, 4], before=[8, 8]),
    "num_epochs": Case([1, 4], given=TRAINED, before=[None, 3.0], after=[None, 4.0]),
    "min_steps": Case(12, given={"max_steps": None, "min_steps": 10}),
    "max_steps": Case(9),
    "body_learning_rate": Case([1e-3, 1e-4], before=[1e-3, 1e-3]),
    "lr_scheduler_type": Case("cosine"),
    "warmup_ratio": Case(0.2),
    "dropout": Case(0.2),
    "micro_batch_size": Case(3),
    "active_vocabulary": Case(False),
    "head": Case("differentiable"),
    "head_learning_rate": Case(1e-3, given=TRAINED),
    "l2_weight": Case(0.1, given=TRAINED),
    "end_to_end": Case(True, given=TRAINED),
    "multi_target_strategy": Case("one-vs-rest"),
    "class_weight": Case("balanced"),
    "normalize_embeddings": Case(True),
    "calibrate": Case(True, given={"eval_data": HELD_OUT}),
    "weight_decay": Case(0.1, given={"active_vocabulary": False}),
    "adam_beta1": Case(0.8),
    "adam_beta2": Case(0.9),
    "adam_epsilon": Case(1e-6),
    "max_grad_norm": Case(0.5),
    "seed": Case(8),
    "max_length": Case(16),
    "threads": Case(2),
    "device": Case("cuda", before="cpu"),
    "load_best_model_at_end": Case(True, given=TRAINED | {"eval_data": HELD_OUT}),
    "metric_for_best_model": Case("f1_macro", given=CHOSEN, before="accuracy"),
    "greater_is_better": Case(False, given=CHOSEN),
}
CONTENT = {"model", "train_data", "columns", "teacher"}  # the paths may change, what is read may not
OPERATIONAL: dict[str, list[Case]] = {**EVERY_TASK, "metric": [Case("f1_macro"), Case(["accuracy", "log_loss"])]}
OTHER = {"task"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "classify",
        "model": str(model),
        "train_data": labelled(),
        "batch_size": 8,
        "max_steps": STEPS,
        "body_learning_rate": 1e-3,
        "seed": 7,
        "threads": 1,
    } | changes


@pytest.fixture(autouse=True, scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("desk"))
        Path(HELD_OUT).write_text("".join(json.dumps(row) + "\n" for row in labelled(8, seed=3)), encoding="utf-8")
        yield


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    train(values(model), root)
    return root


@pytest.fixture(scope="module")
def midway(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `values` stopped after three steps."""
    root = tmp_path_factory.mktemp("midway") / "run"
    train(values(model), root, stop_after=3)
    return root


def test_every_key_is_declared_and_has_a_case() -> None:
    declared: dict[str, set[str]] = {"identity": set(), "content": set(), "operational": set()}
    for key in ClassifyConfig.model_fields:
        declared[contract_of(ClassifyConfig, key)].add(key)
    assert declared["identity"] == IDENTITY.keys() | OTHER
    assert declared["content"] == CONTENT
    assert declared["operational"] == OPERATIONAL.keys()


@pytest.mark.parametrize("key", IDENTITY)
def test_an_identity_key_is_refused_with_both_values(key: str, model: Path, midway: Path, tmp_path: Path) -> None:
    case = IDENTITY[key]
    run = tmp_path / "run"
    if case.given:
        train(values(model, **case.given), run, stop_after=2)
    else:
        shutil.copytree(midway, run, symlinks=True)
    before = everything(run)
    config = ClassifyConfig.from_values(values(model, **case.given) | {"output_dir": "o"})
    recorded = case.before if case.before is not None else getattr(config, key)
    with pytest.raises(CannotContinueError) as refusal:
        train(values(model, **case.given, **case.along) | {key: case.change}, run, origins={key: "--set"})
    asked = case.after if case.after is not None else case.change
    assert f"{key}: {shown(recorded)} (this run) -> {shown(asked)} (--set)" in str(refusal.value)
    assert refusal.value.exit_code == 4
    assert everything(run) == before, "something on disk was touched"


@pytest.mark.parametrize(
    ("key", "number"), [(key, number) for key, cases in OPERATIONAL.items() for number in range(len(cases))]
)
def test_an_operational_key_changes_no_bit(key: str, number: int, model: Path, whole: Path, tmp_path: Path) -> None:
    """Given until the head is due, and for the head alone."""
    case = OPERATIONAL[key][number]
    plain = values(model, **case.given)
    changed = {**plain, **case.along, key: case.change}
    for name, asked in (("first", (changed, plain)), ("last", (plain, changed))):
        run = tmp_path / name
        if key == "mirror":
            changed["mirror"] = str(tmp_path / f"{case.change}-{name}")
        train(asked[0], run, stop_after=STEPS)
        if key == "output_dir":  # the run has another name, or lies elsewhere
            run = run.rename(tmp_path / f"{case.change}-{name}")
        assert train(asked[1], run).finished
        assert_same_run(run, whole)


@pytest.mark.parametrize("given", [{"calibrate": True}, CHOSEN], ids=["calibrated", "chosen by it"])
def test_data_to_evaluate_on_are_part_of_the_run_that_they_make(
    given: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    asked = values(model, **{**given, "eval_data": labelled(8, seed=3)})
    train(asked, tmp_path / "run", stop_after=4)
    before = everything(tmp_path / "run")
    with pytest.raises(CannotContinueError, match="eval_data: content "):
        train({**asked, "eval_data": labelled(8, seed=4)}, tmp_path / "run")
    assert everything(tmp_path / "run") == before


def test_a_refusal_costs_no_checkpoint(model: Path, midway: Path, whole: Path, tmp_path: Path) -> None:
    """The control: after all these refusals the run goes on as if nobody had asked."""
    run = tmp_path / "run"
    shutil.copytree(midway, run, symlinks=True)
    for key, case in IDENTITY.items():
        if not case.given:
            with pytest.raises(UnbrokenError):
                train(values(model, **{key: case.change}), run)
    assert train(values(model), run).finished
    assert_same_run(run, whole)
