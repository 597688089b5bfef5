"""Every key of the configuration, one by one: an operational one changes no bit, any other one is refused.

The cases are compared with the fields of the model: a new key without a case here fails.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.tiny import make_model_folder, make_rows
from unbroken.base.config import contract_of, shown
from unbroken.base.errors import CannotContinueError, ConfigError, UnbrokenError
from unbroken.tasks.embed.config import EmbedConfig

STEPS = 12
EXAMPLES = 58
HELD_OUT = "held-out.jsonl"  # in the folder of the module's tests


@dataclass(frozen=True)
class Case:
    """A change to one key of a run whose configuration also held `given`; what is changed with it makes it valid."""

    change: Any
    given: dict[str, Any] = field(default_factory=dict)
    along: dict[str, Any] = field(default_factory=dict)
    said_as: str = ""  # what the refusal calls it, where that is not the key
    before: Any = None  # the recorded value as the refusal shows it, where it is not that of the configuration
    after: Any = None  # and the one asked for


IDENTITY = {
    "batch_size": Case(5),
    "micro_batch_size": Case(2),
    "num_train_epochs": Case(1.0),
    "max_steps": Case(13),
    "drop_last": Case(True),
    "shuffle": Case(False),
    "learning_rate": Case(2e-3),
    "lr_scheduler_type": Case("cosine"),
    "warmup_ratio": Case(0.2),
    "warmup_steps": Case(3),
    "weight_decay": Case(0.1),
    "adam_beta1": Case(0.8),
    "adam_beta2": Case(0.9),
    "adam_epsilon": Case(1e-6),
    "max_grad_norm": Case(0.5),
    "seed": Case(8),
    "max_length": Case(16),
    "threads": Case(2),
    "device": Case("cuda", before="cpu"),
    "load_best_model_at_end": Case(True, given={"eval_data": HELD_OUT}),
    "metric_for_best_model": Case("mrr@10", before="ndcg@10"),
    "greater_is_better": Case(False),
    "loss": Case("triplet"),
    "scale": Case(30.0, before=20.0),
    "temperature": Case(0.1, said_as="scale", before=20.0),
    "similarity": Case("dot"),
    "symmetric": Case(True),
    "margin": Case(1.0),
    "distance": Case("cosine"),
    "prompts": Case({"anchor": "q: "}, said_as="prompts.anchor", before=None),
}
# The path may change, the content may not: `test_data_changes` has those of the data.
CONTENT = {"model", "train_data", "columns"}
OPERATIONAL: dict[str, list[Case]] = {
    "output_dir": [Case("moved")],
    "eval_data": [Case(HELD_OUT)],
    "eval_steps": [Case(2, given={"eval_data": HELD_OUT})],
    "save_strategy": [
        Case("epoch"),
        Case("steps", along={"save_steps": 2}),
        Case("time", along={"save_seconds": 0.01}),
    ],
    "save_steps": [Case(1), Case(5)],
    "save_seconds": [Case(0.01)],
    "save_total_limit": [Case(7)],
    "mirror": [Case("mirror")],
}
# `task` has one value here, and another one is another configuration altogether: refused as such.
OTHER = {"task"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "embed",
        "model": str(model),
        "train_data": make_rows(EXAMPLES),
        "batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "seed": 7,
        "threads": 1,
    } | changes


@pytest.fixture(autouse=True, scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("desk"))
        Path(HELD_OUT).write_text("".join(json.dumps(row) + "\n" for row in make_rows(6, seed=3)), encoding="utf-8")
        yield


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    train(values(model), root)
    return root


@pytest.fixture(scope="module")
def midway(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `values` stopped after five steps."""
    root = tmp_path_factory.mktemp("midway") / "run"
    train(values(model), root, stop_after=5)
    return root


def everything(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder of a run: size, time of last change, content."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_size,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [root, *root.rglob("*")]
    }


def test_every_key_is_declared_and_has_a_case() -> None:
    declared: dict[str, set[str]] = {"identity": set(), "content": set(), "operational": set()}
    for key in EmbedConfig.model_fields:
        declared[contract_of(EmbedConfig, key)].add(key)
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
    config = EmbedConfig.from_values(values(model, **case.given) | {"output_dir": "o"})
    recorded = case.before if case.before is not None or case.said_as else getattr(config, key)
    asked = 1 / case.change if key == "temperature" else case.change["anchor"] if key == "prompts" else case.change
    with pytest.raises(CannotContinueError) as refusal:
        train(values(model, **case.given, **case.along, **{key: case.change}), run, origins={key: "--set"})
    origin = "--set" if not case.said_as or "." in case.said_as else "default"
    said = f"{case.said_as or key}: {shown(recorded)} (this run) -> {shown(asked)}"
    assert said in str(refusal.value)
    assert key == "temperature" or f"{said} ({origin})" in str(refusal.value)
    assert refusal.value.exit_code == 4
    assert everything(run) == before, "something on disk was touched"


@pytest.mark.parametrize(
    ("key", "number"), [(key, number) for key, cases in OPERATIONAL.items() for number in range(len(cases))]
)
def test_an_operational_key_changes_no_bit(key: str, number: int, model: Path, whole: Path, tmp_path: Path) -> None:
    """Given for the first half of the run, and for the second."""
    case = OPERATIONAL[key][number]
    plain = values(model, **case.given)
    changed = {**plain, **case.along, key: case.change}
    for name, asked in (("first", (changed, plain)), ("last", (plain, changed))):
        run = tmp_path / name
        if key == "mirror":
            changed["mirror"] = str(tmp_path / f"{case.change}-{name}")
        train(asked[0], run, stop_after=7)
        if key == "output_dir":  # the run has another name, or lies elsewhere
            run = run.rename(tmp_path / f"{case.change}-{name}")
        assert train(asked[1], run).finished
        assert_same_run(run, whole)


def test_the_content_of_the_model_is_part_of_the_run_and_its_path_is_not(
    model: Path, midway: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(midway, run, symlinks=True)
    before = everything(run)
    other = make_model_folder(tmp_path / "other", seed=1)
    with pytest.raises(
        CannotContinueError, match=r"model: content [0-9a-f]{8} \(this run\) -> content [0-9a-f]{8} \(-"
    ):
        train(values(other), run, origins={"model": "--set"})
    assert everything(run) == before
    shutil.copytree(model, tmp_path / "same")
    os.utime(tmp_path / "same" / "model.safetensors", (0, 0))
    assert train(values(tmp_path / "same"), run).finished
    assert_same_run(run, whole)


def test_another_task_is_refused(model: Path, midway: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(midway, run, symlinks=True)
    before = everything(run)
    with pytest.raises(ConfigError, match="task: 'rerank' is not known"):
        train(values(model, task="rerank"), run)
    assert everything(run) == before


def test_evaluating_is_part_of_the_run_where_it_chooses_the_model(model: Path, tmp_path: Path) -> None:
    """Then `eval_steps` and the content of `eval_data` are identity too."""
    asked = values(model, eval_data=make_rows(6, seed=3), load_best_model_at_end=True, eval_steps=3)
    train(asked, tmp_path / "run", stop_after=4)
    before = everything(tmp_path / "run")
    for change, said in (
        ({"eval_steps": 2}, "eval_steps: 3 (this run) -> 2"),
        ({"eval_data": make_rows(6, seed=4)}, "eval_data: content "),
    ):
        with pytest.raises(CannotContinueError) as refusal:
            train({**asked, **change}, tmp_path / "run")
        assert said in str(refusal.value)
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
    kinds = [json.loads(line)["kind"] for line in (run / "journal.jsonl").read_bytes().splitlines()]
    assert kinds.count("segment") == 2
