"""LoRA adapters: weights from the seed alone, folders as PEFT writes them, mistakes refused in one line."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from unbroken.base.errors import ConfigError
from unbroken.models.causal import CausalLM
from unbroken.models.causal_folder import locate
from unbroken.models.lora import ROOT, Adapter, LoraSettings
from unbroken.run.state import held_tensors

SETTINGS = LoraSettings(r=4, alpha=8, dropout=0.1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = transformers.Qwen3Config(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def attach(base: Path, settings: LoraSettings = SETTINGS, seed: int = 1, **how: Any) -> Adapter:
    return Adapter.attach(CausalLM.from_pretrained(base, **how), settings, seed, str(base))


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in adapter.modules[ROOT].state_dict().items()}


def write(adapter: Adapter, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in adapter.documents().items():
        (folder / name).write_bytes(data)
    save_file(tensors(adapter), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def shake(adapter: Adapter) -> Adapter:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.modules[ROOT].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return adapter


def test_weights_depend_on_the_seed_alone(base: Path) -> None:
    torch.manual_seed(11)
    one = tensors(attach(base))
    torch.manual_seed(12)
    before = torch.get_rng_state()
    two, other = tensors(attach(base)), tensors(attach(base, seed=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_modules_hold_what_is_trained_and_nothing_else(base: Path) -> None:
    adapter = attach(base)
    held = dict(held_tensors(adapter.modules))
    trained = {id(p) for p in adapter.lm.model.parameters() if p.requires_grad}
    assert {id(tensor) for tensor in held.values()} == trained
    assert len(held) == 2 * 7 * 2
    assert all(".lora_" in name for name in held)


def test_dropout_follows_the_model(base: Path) -> None:
    """A layer made anew is in training mode: evaluating a model just loaded would drop values."""
    adapter = shake(attach(base, replace(SETTINGS, dropout=0.5)))
    lm, ids = adapter.lm, torch.arange(3, 20)
    with torch.no_grad():
        assert torch.equal(lm.logits(ids, lengths_of(ids)), lm.logits(ids, lengths_of(ids)))
        lm.train()
        assert not torch.equal(lm.logits(ids, lengths_of(ids)), lm.logits(ids, lengths_of(ids)))


def test_the_configuration_has_the_same_bytes_each_time(base: Path) -> None:
    """PEFT keeps target modules as a set, whose order changes from process to process."""
    documents = attach(base, replace(SETTINGS, target_modules=["v_proj", "q_proj", "up_proj"])).documents()
    again = attach(base, replace(SETTINGS, target_modules=["up_proj", "v_proj", "q_proj"])).documents()
    assert documents == again
    values = json.loads(documents["adapter_config.json"])
    assert values["target_modules"] == ["q_proj", "up_proj", "v_proj"]
    assert (values["r"], values["lora_alpha"], values["lora_dropout"], values["peft_type"]) == (4, 8, 0.1, "LORA")
    assert values["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_written_folder_comes_back(base: Path, tmp_path: Path, dora: bool) -> None:
    adapter = shake(attach(base, replace(SETTINGS, use_dora=dora)))
    folder = write(adapter, tmp_path / "adapter")
    place = locate(folder)
    assert (place.folder, place.adapter) == (base, folder)
    back = Adapter.from_pretrained(CausalLM.from_pretrained(base), folder)
    assert all(torch.equal(tensor, tensors(back)[name]) for name, tensor in tensors(adapter).items())


def test_pefts_own_folder_loads(base: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path)
    ours = Adapter.from_pretrained(CausalLM.from_pretrained(base), tmp_path)
    ids = torch.arange(3, 20)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        actual = ours.lm.logits(ids, lengths_of(ids))
    assert torch.allclose(actual, expected, atol=1e-5, rtol=0)


def lengths_of(ids: Tensor) -> Any:
    import numpy as np

    return np.array([len(ids)])


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, use_dora=True), replace(SETTINGS, modules_to_save=["norm"], use_rslora=True)],
    ids=["lora", "dora", "with-norm"],
)
def test_merged_is_pefts_and_leaves_the_model_as_it_was(base: Path, tmp_path: Path, settings: LoraSettings) -> None:
    adapter = shake(attach(base, settings))
    lm = adapter.lm
    ids = torch.arange(3, 20)
    with torch.no_grad():
        before = lm.logits(ids, lengths_of(ids))
        merged = {lm.layout(name): tensor.clone() for name, tensor in adapter.merged()}
        assert torch.equal(lm.logits(ids, lengths_of(ids)), before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        theirs = peft.PeftModel.from_pretrained(model, str(write(adapter, tmp_path / "a"))).merge_and_unload()
    wanted = theirs.state_dict()
    assert {key for _, key in merged} == set(load_file(base / "model.safetensors"))
    for (_, key), tensor in merged.items():
        assert torch.allclose(tensor, wanted[key], atol=1e-6, rtol=0), key
    for name, data in lm.documents().items():
        (tmp_path / name).write_bytes(data)
    save_file({key: tensor for (_, key), tensor in merged.items()}, tmp_path / "model.safetensors")
    with torch.no_grad():
        plain = CausalLM.from_pretrained(tmp_path).logits(ids, lengths_of(ids))
    assert torch.allclose(plain, before, atol=1e-4, rtol=0)


def test_the_adapter_is_float32_on_a_bfloat16_model(base: Path) -> None:
    adapter = attach(base, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in tensors(adapter).values()} == {torch.float32}
    ids = torch.arange(3, 20)
    loss = adapter.lm.loss(ids, lengths_of(ids), torch.ones(17, dtype=torch.bool))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter.modules[ROOT].parameters())


def test_names_the_model_does_not_have_are_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"no module 'query'.*q_proj"):
        attach(base, replace(SETTINGS, target_modules=["q_proj", "query"]))
    with pytest.raises(ConfigError, match="modules_to_save: the model has no module 'head'"):
        attach(base, replace(SETTINGS, modules_to_save=["head"]))


def damaged(folder: Path, how: str) -> None:
    file = folder / "adapter_model.safetensors"
    held = load_file(file)
    first = sorted(held)[0]
    if how == "missing file":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif how == "lacks":
        del held[first]
        save_file(held, file)
    elif how == "holds":
        save_file(held | {"base_model.model.stranger": held[first].clone()}, file)
    elif how == "shape":
        save_file(held | {first: torch.zeros(1, 1)}, file)
    elif how == "kind":
        (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing file", "adapter_model.safetensors is missing"),
        ("truncated", "is damaged"),
        ("lacks", "lacks"),
        ("holds", "holds 'base_model.model.stranger'"),
        ("shape", "has shape"),
        ("kind", "peft_type 'IA3' is not supported"),
    ],
)
def test_a_damaged_folder_is_refused(base: Path, tmp_path: Path, how: str, said: str) -> None:
    folder = write(attach(base), tmp_path / "adapter")
    damaged(folder, how)
    with pytest.raises(ConfigError, match=said):
        Adapter.from_pretrained(CausalLM.from_pretrained(base), folder)


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("model.norm.weight"), "lack 'model.norm.weight'"),
        (lambda w: w.update(stranger=torch.zeros(1)), "hold 'stranger'"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), "has shape"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(97, 32)}), "but the weights differ"),
    ],
    ids=["missing", "extra", "shape", "untied"],
)
def test_weights_that_are_not_the_configurations(copy: Path, change: Any, said: str) -> None:
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ConfigError, match=said):
        CausalLM.from_pretrained(copy)


def test_code_of_a_folder_runs_only_if_trusted(copy: Path) -> None:
    """With trust the code runs; that this one fails is said in a line."""
    values = json.loads((copy / "config.json").read_text())
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (copy / "config.json").write_text(json.dumps(values | {"model_type": "own", "auto_map": names}))
    (copy / "own.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()\nraise ValueError('no model here')\n")
    with pytest.raises(ConfigError, match="trust_remote_code: true"):
        CausalLM.from_pretrained(copy)
    assert not (copy / "ran").exists()
    with pytest.raises(ConfigError, match="transformers cannot load this model: no model here"):
        CausalLM.from_pretrained(copy, trust_remote_code=True)
    assert (copy / "ran").exists()


def test_the_first_qwen_is_refused_with_the_reason(copy: Path) -> None:
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"model_type": "qwen"}))
    with pytest.raises(ConfigError, match=r"first Qwen series.*transformers 4"):
        CausalLM.from_pretrained(copy)


def test_what_is_written_after_full_tuning_loads(copy: Path, tmp_path: Path) -> None:
    lm = CausalLM.from_pretrained(copy, dtype=torch.bfloat16)
    held = {f"model.{name}": tensor for name, tensor in lm.model.named_parameters()}  # tied ones once
    assert json.loads(lm.documents()["config.json"])["dtype"] == "bfloat16"
    assert {lm.layout(name)[1] for name in held} == set(load_file(copy / "model.safetensors"))
