"""Causal language models: packed loss and every gradient against PEFT and transformers on the padded batch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from unbroken.models.causal import CausalLM
from unbroken.models.linear import product
from unbroken.models.lora import ROOT, Adapter, LoraSettings
from unbroken.step.causal import head_cross_entropy

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": lambda **extra: transformers.LlamaConfig(**SMALL, **extra),
    "qwen2": lambda **extra: transformers.Qwen2Config(**SMALL, **extra),
    "qwen3": lambda **extra: transformers.Qwen3Config(**SMALL, head_dim=8, **extra),
    "mistral": lambda **extra: transformers.MistralConfig(**SMALL, head_dim=8, sliding_window=20, **extra),
    "gpt_neox": lambda **extra: transformers.GPTNeoXConfig(
        **{key: value for key, value in SMALL.items() if key != "num_key_value_heads"}, **extra
    ),
}
PACKED = [name for name in FAMILIES if name != "gpt_neox"]
LENGTHS = [7, 1, 12, 7, 3, 60, 12, 2, 33, 1, 7]
LORA = LoraSettings(r=4, alpha=8, target_modules="all-linear")
VARIANTS = {
    "lora": LORA,
    "rslora": replace(LORA, use_rslora=True),
    "dora": replace(LORA, use_dora=True),
    "auto": replace(LORA, target_modules="auto"),
    "listed": replace(LORA, target_modules=["q_proj", "v_proj"], bias="all"),
    "with-head": replace(LORA, modules_to_save=["lm_head"]),
}
DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save_random(folder: Path, family: str, **extra: Any) -> Path:
    """Write a model whose every parameter, biases and normalisation included, is random."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](**extra))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    return folder


class Batch:
    """Random texts; of each but the shortest the first part is a prompt, without loss."""

    def __init__(self, lengths: list[int] = LENGTHS, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.lengths = np.array(lengths, dtype=np.int64)
        self.rows = [rng.integers(3, 97, size=length) for length in lengths]
        self.masks = [np.arange(length) >= max(1, length // 3) for length in lengths]
        self.ids = torch.from_numpy(np.concatenate(self.rows).astype(np.int32))
        self.targets = torch.from_numpy(np.concatenate(self.masks))

    def padded(self) -> dict[str, Tensor]:
        width = max(map(len, self.rows))
        ids = torch.zeros(len(self.rows), width, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        mask = torch.zeros_like(ids)
        for i, (row, wanted) in enumerate(zip(self.rows, self.masks, strict=True)):
            ids[i, : len(row)] = torch.from_numpy(row)
            labels[i, : len(row)] = torch.from_numpy(np.where(wanted, row, -100))
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    def loss(self, lm: CausalLM) -> Tensor:
        return lm.loss(self.ids, self.lengths, self.targets)


def reference(folder: Path, dtype: torch.dtype) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(dtype)


def padded_loss(model: Any, batch: Batch) -> Tensor:
    """The mean over target tokens of the padded batch, in the model's own precision (transformers' loss is float32)."""
    inputs = batch.padded()
    labels = inputs.pop("labels")
    logits = model(**inputs).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".default", "").replace(".weight", "")


def same_gradients(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> None:
    """Small gradients are judged by a hundredth of the largest."""
    mine = {plain(name): p.grad for name, p in ours.items() if p.grad is not None}
    wanted = {plain(name): p.grad for name, p in theirs.items() if p.grad is not None}
    assert mine.keys() == wanted.keys()
    assert wanted
    floor = max(float(gradient.abs().max()) for gradient in wanted.values()) / 100
    for name, gradient in wanted.items():
        scale = max(float(gradient.abs().max()), floor)
        assert float((mine[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_full_tuning_is_the_padded_one(
    family: str, tied: bool, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    folder, batch = save_random(tmp_path, family, tie_word_embeddings=tied), Batch()
    theirs = reference(folder, dtype)
    lm = CausalLM.from_pretrained(folder).to(dtype)
    assert lm.packed == (family in PACKED)
    ours, wanted = batch.loss(lm), padded_loss(theirs, batch)
    assert abs(float(ours.detach() - wanted.detach())) <= tolerance * float(wanted.detach())
    ours.backward()
    wanted.backward()
    same_gradients(dict(lm.model.named_parameters()), dict(theirs.named_parameters()), tolerance)


@pytest.mark.parametrize("family", PACKED)
def test_the_loss_is_the_one_transformers_computes_itself(family: str, tmp_path: Path) -> None:
    folder, batch = save_random(tmp_path, family), Batch()
    wanted = reference(folder, torch.float32)(**batch.padded()).loss.detach()
    ours = batch.loss(CausalLM.from_pretrained(folder)).detach()
    assert abs(float(ours - wanted)) <= 1e-5 * float(wanted)


def peers_adapter(folder: Path, adapter: Adapter, written: Path, dtype: torch.dtype) -> Any:
    """Write the adapter as a run would, and load it as its users will."""
    write(adapter, written)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(reference(folder, dtype), str(written), is_trainable=True)
    return loaded.to(dtype)


def write(adapter: Adapter, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in adapter.documents().items():
        (folder / name).write_bytes(data)
    tensors = {adapter.layout(name)[1]: t.detach().clone() for name, t in adapter.modules[ROOT].state_dict().items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def randomise(adapter: Adapter) -> None:
    """B starts at zero, where A has no gradient."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.modules[ROOT].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_lora_is_pefts_on_the_padded_batch(
    family: str, variant: str, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    """Through the file: what is written loads in PEFT, and has the same logits, loss and gradients there."""
    folder, batch = save_random(tmp_path / "base", family), Batch()
    lm = CausalLM.from_pretrained(folder)
    adapter = Adapter.attach(lm, VARIANTS[variant], seed=1, base_name=str(folder))
    randomise(adapter)
    theirs = peers_adapter(folder, adapter, tmp_path / "adapter", dtype)
    lm.to(dtype)
    theirs.eval()
    ours, wanted = batch.loss(lm), padded_loss(theirs, batch)
    assert abs(float(ours.detach() - wanted.detach())) <= tolerance * float(wanted.detach())
    ours.backward()
    wanted.backward()
    same_gradients(dict(lm.model.named_parameters()), dict(theirs.named_parameters()), tolerance)
    inputs = batch.padded()
    with torch.no_grad():
        expected = theirs(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        actual = lm.logits(batch.ids, batch.lengths)
    assert float((actual - expected[inputs["attention_mask"].bool()]).abs().max()) <= 10 * tolerance


def test_control_texts_that_see_each_other_differ(tmp_path: Path) -> None:
    """One text after the other without separation is another loss: the comparison above can fail."""
    folder, batch = save_random(tmp_path, "llama"), Batch([7, 12, 30])
    lm = CausalLM.from_pretrained(folder)
    apart = batch.loss(lm).item()
    together = lm.loss(batch.ids, np.array([49]), batch.targets).item()
    assert abs(apart - together) > 1e-3 * apart


def test_order_and_company_make_no_difference(tmp_path: Path) -> None:
    lm, batch = CausalLM.from_pretrained(save_random(tmp_path, "qwen3")), Batch()
    alone = [lm.logits(torch.from_numpy(row), np.array([len(row)])) for row in batch.rows]
    assert torch.allclose(lm.logits(batch.ids, batch.lengths), torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 16, 64, None])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_cross_entropy_in_chunks_is_the_plain_one(chunk: int | None, bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(50, 24, generator=draw), torch.randn(97, 24, generator=draw)
    offset = torch.randn(97, generator=draw) if bias else None
    targets = torch.randint(0, 97, (50,), generator=draw)
    results = []
    for dtype, ours in ((torch.float64, False), (torch.float64, True), (torch.float32, True)):
        leaves = [None if x is None else x.to(dtype).requires_grad_() for x in (rows, weight, offset)]
        if ours:
            multiply = product if dtype == torch.float32 else F.linear
            loss = head_cross_entropy(leaves[0], leaves[1], leaves[2], targets, multiply, chunk)
        else:
            loss = F.cross_entropy(F.linear(leaves[0], leaves[1], leaves[2]), targets)
        (loss * 0.7).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves if leaf is not None)])
    exact, double, single = results
    for wanted, fine, coarse in zip(exact, double, single, strict=True):
        assert (fine - wanted).norm() <= 1e-13 * wanted.norm()
        assert (coarse - wanted).norm() <= 1e-6 * wanted.norm()


def test_cross_entropy_takes_no_gradient_nobody_asked_for() -> None:
    rows, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    calls = []

    def counted(*operands: Any) -> Tensor:
        calls.append(operands)
        return F.linear(*operands)

    targets = torch.arange(5)
    with torch.no_grad():
        quiet = head_cross_entropy(rows, weight, None, targets, counted)
    assert (len(calls), quiet.requires_grad) == (1, False)
    loss = head_cross_entropy(rows, weight, None, targets, counted)
    assert len(calls) == 3
    assert torch.equal(loss.detach(), quiet)


def gradients(lm: CausalLM, batch: Batch, seed: int = 5) -> list[Tensor]:
    lm.zero_grad()
    torch.manual_seed(seed)
    loss = batch.loss(lm)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in lm.model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("settings", [None, replace(LORA, dropout=0.3), replace(LORA, dropout=0.3, use_dora=True)])
def test_gradient_checkpointing_changes_no_bit(settings: LoraSettings | None, tmp_path: Path) -> None:
    lm, batch = CausalLM.from_pretrained(save_random(tmp_path, "qwen3", attention_dropout=0.1)), Batch()
    if settings is not None:
        randomise(Adapter.attach(lm, settings, seed=0, base_name="base"))
    lm.train()
    lm.neftune_alpha = 5.0
    before, other = gradients(lm, batch), gradients(lm, batch, seed=6)
    assert not torch.equal(before[0], other[0])
    layer = type(lm.model.base_model.layers[0].mlp)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    lm.checkpoint_gradients()
    handles = [module.register_forward_pre_hook(count) for module in lm.model.modules() if type(module) is layer]
    after = gradients(lm, batch)
    assert calls == 2 * len(handles)
    assert len(before) == len(after)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_dropout_of_the_fast_layer_is_pefts_with_the_same_noise(tmp_path: Path) -> None:
    """The noise of both is drawn by our generator's words: once kept as a mask, once as factors."""
    folder, batch = save_random(tmp_path, "llama"), Batch()
    lm = CausalLM.from_pretrained(folder)
    adapter = Adapter.attach(lm, replace(LORA, dropout=0.4), seed=0, base_name="base")
    randomise(adapter)
    lm.train()
    fast = gradients(lm, batch)
    from peft.tuners.lora import Linear as PeftLinear

    from unbroken.models.dropout import Dropout
    from unbroken.models.lora_layer import LoraLinear

    slowed = 0
    for module in lm.model.modules():
        if type(module) is LoraLinear:
            module.__class__ = PeftLinear
            slowed += 1
        elif type(module) is nn.Dropout:
            module.__class__ = Dropout
    assert slowed == 14
    slow = gradients(lm, batch)
    assert len(fast) == 1 + 2 * slowed
    for mine, wanted in zip(fast, slow, strict=True):
        assert (mine - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_neftune_is_the_papers_noise(family: str, tmp_path: Path) -> None:
    """Uniform, at most alpha / sqrt(L * D) for a text of L tokens of its own; in training only."""
    lm, lengths = CausalLM.from_pretrained(save_random(tmp_path, family)), [4, 60, 60, 16]
    lm.neftune_alpha, ids = 5.0, torch.arange(140) % 90
    seen: list[Tensor] = []

    def catch(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        if inputs.get("inputs_embeds") is not None:
            seen.append(inputs["inputs_embeds"].detach().reshape(-1, 32))

    part = lm.model.base_model if lm.packed else lm.model
    part.register_forward_pre_hook(catch, with_kwargs=True)
    targets = torch.ones(140, dtype=torch.bool)
    calm = lm.loss(ids, np.array(lengths), targets)
    assert not seen
    lm.train()
    noisy = lm.loss(ids, np.array(lengths), targets)
    assert float((calm - noisy).detach().abs()) > 1e-3
    packed_ids = torch.cat([ids[:4], ids[124:], ids[4:124]])
    noise = (torch.cat(seen) - lm.model.get_input_embeddings()(packed_ids).detach()).abs()
    for length, part in zip((4, 16, 60), noise.split([4, 16, 120]), strict=True):
        bound = 5.0 / (length * 32) ** 0.5
        assert 0.9 * bound < float(part.max()) <= bound * (1 + 1e-5)
        assert float(part.mean()) == pytest.approx(bound / 2, rel=0.15)


def test_shards_are_read_and_written_where_they_were(tmp_path: Path) -> None:
    whole = CausalLM.from_pretrained(save_random(tmp_path / "whole", "qwen2", tie_word_embeddings=False))
    model = reference(tmp_path / "whole", torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    lm = CausalLM.from_pretrained(tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert {key: file for file, key in map(lm.layout, lm.state_dict())} == index
    assert "model.safetensors.index.json" in lm.documents()
    assert all(torch.equal(tensor, lm.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in lm.state_dict().values())


def test_no_target_is_no_loss(tmp_path: Path) -> None:
    for family in ("llama", "gpt_neox"):
        lm = CausalLM.from_pretrained(save_random(tmp_path / family, family))
        loss = lm.loss(torch.tensor([5, 6, 7]), np.array([2, 1]), torch.tensor([True, False, True]))
        loss.backward()
        assert loss.item() == 0.0
