"""The adapt task stopped after every single step: what is left must equal the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.exact.runs import assert_same_run, final_state, moments, step_records, train
from tests.exact.test_controls import forget_the_journal, tamper
from tests.tiny_causal import make_causal_folder, make_instructions, make_labelled
from unbroken.base.errors import CannotContinueError

STEPS = 10
ADAPTER = "model/adapter_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    """Two epochs of five steps over 18 rows: the last batch of each is short. Dropout is on, and every step clips."""
    return {
        "task": "adapt",
        "model": str(model),
        "train_data": make_instructions(18),
        "batch_size": 4,
        "num_train_epochs": 2.0,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.1,
        "max_grad_norm": 0.1,
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        "seed": 7,
        "threads": 1,
    } | changes


EXTRACTION = {"kind": "ner", "types_per_prompt": 1, "negatives": 0.5, "phrasings": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "adapters": {},
    "accumulation": {"micro_batch_size": 2},
    "uneven chunks": {"micro_batch_size": 3},
    "packing": {"packing": True, "max_length": 128, "batch_size": 3, "micro_batch_size": 2, "max_steps": STEPS},
    "every weight": {"tuning": "full", "learning_rate": 1e-3, "weight_decay": 0.1, "micro_batch_size": 2},
    "noise on embeddings": {"neftune_noise_alpha": 5.0, "micro_batch_size": 2},
    "rank-stabilised, two layers": {"lora": {"r": 2, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}},
    "magnitudes too, biases, a whole head": {"lora": {"r": 2, "use_dora": True, "modules_to_save": ["lm_head"]}},
    "activations made again": {"gradient_checkpointing": True},
    "bfloat16": {"precision": "bfloat16"},
    "every weight, products in bfloat16": {"tuning": "full", "precision": "bfloat16"},
    "all tokens, a named template": {"loss_on": "all", "template": "alpaca"},
    "extraction": {"train_data": make_labelled(9), "extraction": EXTRACTION, "max_steps": STEPS},
}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_stopped_after_every_step(variant: str, model: Path, tmp_path: Path) -> None:
    asked = values(model, **VARIANTS[variant])
    assert train(asked, tmp_path / "whole").step == STEPS
    assert all(moment.abs().max() > 0 for name, moment in moments(tmp_path / "whole").items() if "exp_avg" in name)
    for last in range(1, STEPS):
        stopped = tmp_path / f"stopped-after-{last}"
        assert train(asked, stopped, stop_after=last).step == last
        assert train(asked, stopped).finished
        assert_same_run(stopped, tmp_path / "whole")


def test_activations_made_again_are_the_same_bits(model: Path, tmp_path: Path) -> None:
    train(values(model, max_steps=4), tmp_path / "kept")
    train(values(model, max_steps=4, gradient_checkpointing=True), tmp_path / "made-again")
    assert step_records(tmp_path / "kept") == step_records(tmp_path / "made-again")


def test_the_base_model_is_in_no_checkpoint_and_unchanged(model: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    train(values(model), tmp_path / "run")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    largest = max(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors"))
    assert largest < len(before["model.safetensors"]) / 2
    (last,) = [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name == f"{STEPS:08d}"]
    assert not (last / "extra.safetensors").exists()
    assert json.loads((last / "model" / "adapter_config.json").read_bytes())["lora_alpha"] == 8


def flip_a_bit_of_the_adapter(tensors: dict[str, Tensor]) -> None:
    name = next(name for name in sorted(tensors) if name.startswith("adapter.") and "lora_A" in name)
    tensors[name].view(torch.int32).view(-1)[0] ^= 1


def zero_a_moment(tensors: dict[str, Tensor]) -> None:
    name = next(name for name in sorted(tensors) if name.endswith("lora_B.weight/exp_avg"))
    assert tensors[name].abs().max() > 0
    tensors[name].zero_()


@pytest.mark.parametrize("change", [flip_a_bit_of_the_adapter, zero_a_moment])
def test_a_changed_checkpoint_gives_another_model(change: Any, model: Path, tmp_path: Path) -> None:
    """The controls: with a bit of an adapter flipped, or a moment lost, the proof must fail."""
    train(values(model), tmp_path / "whole")
    train(values(model), tmp_path / "changed", stop_after=4)
    tamper(tmp_path / "changed", change)
    forget_the_journal(tmp_path / "changed")
    assert train(values(model), tmp_path / "changed").finished
    assert final_state(tmp_path / "changed")[ADAPTER] != final_state(tmp_path / "whole")[ADAPTER]
    assert step_records(tmp_path / "changed") != step_records(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lora": {"alpha": 16}}, r"lora\.alpha: 8\.0 \(this run\) -> 16\.0"),
        ({"lora": {"r": 8}}, r"lora\.r: 4 \(this run\) -> 8"),
        ({"lora": {"dropout": 0.0}}, r"lora\.dropout: 0\.1 \(this run\) -> 0\.0"),
        ({"lora": {"target_modules": ["q_proj"]}}, r"lora\.target_modules: 'all-linear' \(this run\) -> \['q_proj'\]"),
        ({"template": "alpaca"}, r"template: 'model' \(this run\) -> 'alpaca'"),
        ({"loss_on": "all"}, r"loss_on: 'answers' \(this run\) -> 'all'"),
    ],
)
def test_another_adapter_is_refused_before_anything_is_read(
    change: dict[str, Any], told: str, model: Path, tmp_path: Path
) -> None:
    train(values(model), tmp_path / "run", stop_after=4)
    with pytest.raises(CannotContinueError, match=told):
        train(values(model) | change, tmp_path / "run")


def test_another_base_model_is_refused(model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "run", stop_after=4)
    other = make_causal_folder(tmp_path / "other", seed=1)
    with pytest.raises(CannotContinueError, match="model: content"):
        train(values(other), tmp_path / "run")
    moved = model.rename(tmp_path / "moved")
    try:
        assert train(values(moved), tmp_path / "run").finished  # the same model at another place
    finally:
        moved.rename(model)
