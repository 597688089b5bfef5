"""Every key of adapt's configuration, one by one: an operational one changes no bit, any other one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.exact.test_contract_fields import HELD_OUT, Case, everything
from tests.exact.test_contract_fields import OPERATIONAL as EVERY_TASK
from tests.tiny_causal import make_causal_folder, make_instructions, make_labelled
from unbroken.base.config import Config, contract_of, shown
from unbroken.base.errors import CannotContinueError, ConfigError, UnbrokenError
from unbroken.tasks.adapt.config import AdaptConfig, LoraConfig
from unbroken.tasks.adapt.extraction.config import ExtractionConfig

STEPS = 8
SPANS = "labelled.jsonl"
LORA = {"r": 4, "alpha": 8, "dropout": 0.1}
EXTRACTION = {"kind": "ner", "types_per_prompt": 1, "negatives": 0.5, "phrasings": 3}
EXTRACTED = {"train_data": SPANS, "extraction": EXTRACTION}
FULL = {"tuning": "full"}
CHOSEN = {"eval_data": HELD_OUT, "load_best_model_at_end": True}

IDENTITY = {
    "template": Case("alpaca"),
    "system_prompt": Case("Answer in one line."),
    "loss_on": Case("all"),
    "tuning": Case("full"),
    "precision": Case("bfloat16"),
    "gradient_checkpointing": Case(True),
    "neftune_noise_alpha": Case(5.0),
    "packing": Case(True, given={"max_length": 96}),
    "trust_remote_code": Case(True),
    "batch_size": Case(3),
    "micro_batch_size": Case(2),
    "num_train_epochs": Case(1.0),
    "max_steps": Case(9),
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
    "max_length": Case(128),
    "threads": Case(2),
    "device": Case("cuda", before="cpu"),
    "load_best_model_at_end": Case(True, given={"eval_data": HELD_OUT}),
    "metric_for_best_model": Case("perplexity", given=CHOSEN, before="loss"),
    "greater_is_better": Case(True, given=CHOSEN),
}
# Mappings, key by key: of each the fields are compared with the cases.
NESTED: dict[str, tuple[type[Config], dict[str, Any], dict[str, Case]]] = {
    "lora": (
        LoraConfig,
        {"lora": LORA},
        {
            "r": Case(8, before=4),
            "alpha": Case(16.0, before=8.0),
            "dropout": Case(0.0, before=0.1),
            "target_modules": Case(["q_proj", "v_proj"], before="all-linear"),
            "use_rslora": Case(True, before=False),
            "use_dora": Case(True, before=False),
            "bias": Case("lora_only", before="none"),
            "modules_to_save": Case(["lm_head"], before=[]),
        },
    ),
    "extraction": (
        ExtractionConfig,
        EXTRACTED,
        {
            "kind": Case("kg", before="ner"),
            "text": Case("copy", before="text"),
            "entities": Case("spans", before="entities"),
            "relations": Case("edges", before="relations"),
            "events": Case("happenings", before="events"),
            "schema": Case(["place", "thing"]),
            "names": Case({"thing": "a thing"}, said_as="extraction.names.thing", after="a thing"),
            "types_per_prompt": Case(2, before=1),
            "negatives": Case(1.0, before=0.5),
            "absent": Case("listed", before="left_out"),
            "phrasings": Case(2, before=3),
            "language": Case("zh", before="en"),
            "format": Case("spans", before="auto"),
            "prompt_style": Case("text", before="json"),
        },
    ),
}
CONTENT = {"model", "train_data", "columns"}
OPERATIONAL: dict[str, list[Case]] = {
    **EVERY_TASK,
    "eval_rows": [Case(2, given={"eval_data": HELD_OUT})],
    "max_new_tokens": [Case(5, given={"eval_data": HELD_OUT})],
}
OTHER = {"task", "quantization"}  # refused as such


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "adapt",
        "model": str(model),
        "train_data": make_instructions(18),
        "batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lora": LORA,
        "seed": 7,
        "threads": 1,
    } | changes


@pytest.fixture(autouse=True, scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("desk"))
        labelled = [{**row, "copy": row["text"], "spans": row["entities"]} for row in make_labelled(9)]
        for name, rows in ((HELD_OUT, make_instructions(22)[18:]), (SPANS, labelled)):
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
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
    for key in AdaptConfig.model_fields:
        declared[contract_of(AdaptConfig, key)].add(key)
    assert declared["identity"] == IDENTITY.keys() | NESTED.keys() | OTHER
    assert declared["content"] == CONTENT
    assert declared["operational"] == OPERATIONAL.keys()
    for group, (cls, _, cases) in NESTED.items():
        assert cls.model_fields.keys() == cases.keys(), group


@pytest.mark.parametrize("key", IDENTITY)
def test_an_identity_key_is_refused_with_both_values(key: str, model: Path, midway: Path, tmp_path: Path) -> None:
    case = IDENTITY[key]
    run = tmp_path / "run"
    if case.given:
        train(values(model, **case.given), run, stop_after=2)
    else:
        shutil.copytree(midway, run, symlinks=True)
    before = everything(run)
    config = AdaptConfig.from_values(values(model, **case.given) | {"output_dir": "o"})
    recorded = case.before if case.before is not None else getattr(config, key)
    with pytest.raises(CannotContinueError) as refusal:
        train(values(model, **case.given, **case.along) | {key: case.change}, run, origins={key: "--set"})
    assert f"{key}: {shown(recorded)} (this run) -> {shown(case.change)} (--set)" in str(refusal.value)
    assert refusal.value.exit_code == 4
    assert everything(run) == before, "something on disk was touched"


@pytest.mark.parametrize(("group", "key"), [(group, key) for group in NESTED for key in NESTED[group][2]])
def test_a_key_of_a_group_is_refused_with_both_values(
    group: str, key: str, model: Path, midway: Path, tmp_path: Path
) -> None:
    _, given, cases = NESTED[group]
    case, run = cases[key], tmp_path / "run"
    if given.keys() == {"lora"}:
        shutil.copytree(midway, run, symlinks=True)
    else:
        train(values(model, **given), run, stop_after=2)
    before = everything(run)
    asked = values(model, **given) | {group: given[group] | {key: case.change} | case.along}
    with pytest.raises(CannotContinueError) as refusal:
        train(asked, run, origins={group: "--set"})
    asked_for = case.change if case.after is None else case.after
    said = f"{case.said_as or f'{group}.{key}'}: {shown(case.before)} (this run) -> {shown(asked_for)} (--set)"
    assert said in str(refusal.value)
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
        train(asked[0], run, stop_after=5)
        if key == "output_dir":  # the run has another name, or lies elsewhere
            run = run.rename(tmp_path / f"{case.change}-{name}")
        assert train(asked[1], run).finished
        assert_same_run(run, whole)


def test_what_cannot_be_had_here_is_not_left_out(model: Path, tmp_path: Path) -> None:
    for asked, said in (({"quantization": "4bit"}, "needs a CUDA device"), ({"task": "rerank"}, "is not known")):
        with pytest.raises(ConfigError, match=said):
            train(values(model, device="auto", **asked), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_rows_are_blamed_only_if_they_have_changed(model: Path, tmp_path: Path) -> None:
    asked = values(model, **EXTRACTED)
    train(asked, tmp_path / "run", stop_after=2)
    for extraction, rows, blamed in (
        ({**EXTRACTION, "types_per_prompt": 2}, SPANS, False),
        (EXTRACTION, make_labelled(10), True),
        ({**EXTRACTION, "types_per_prompt": 2}, make_labelled(10), True),
    ):
        with pytest.raises(CannotContinueError) as refusal:
            train({**asked, "extraction": extraction, "train_data": rows}, tmp_path / "run")
        assert ("the training data are not those" in str(refusal.value)) is blamed


def test_a_refusal_costs_no_checkpoint(model: Path, midway: Path, whole: Path, tmp_path: Path) -> None:
    """The control: after all these refusals the run goes on as if nobody had asked."""
    run = tmp_path / "run"
    shutil.copytree(midway, run, symlinks=True)
    changes = [{key: case.change} for key, case in IDENTITY.items() if not case.given]
    changes += [{"lora": {key: case.change}} for key, case in NESTED["lora"][2].items()]
    for change in changes:
        with pytest.raises(UnbrokenError):
            train(values(model, **change), run)
    assert train(values(model), run).finished
    assert_same_run(run, whole)
