"""Conversations to tokens: which tokens are answers, at every border; limits; stops; what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.chat_examples import MARKED, PLAIN, REASONING, STRICT
from tests.tiny_chat import SPECIAL, make_chat_folder

from unbroken.base.errors import ConfigError, DataError
from unbroken.models.chat import ChatFormat, Tokens
from unbroken.models.chat_templates import TEMPLATES


@dataclasses.dataclass(frozen=True)
class Said:
    role: str
    content: str


SYSTEM, ASKED, ANSWERED = Said("system", "Be brief."), Said("user", "Weather in 東京?"), Said("assistant", "Sunny 🙂.")
AGAIN, LAST = Said("user", "And London?"), Said("assistant", '{"a": ["é"]}')
SHORT, LONG = (ASKED, ANSWERED), (SYSTEM, ASKED, ANSWERED, AGAIN, LAST)


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatFormat]:
    root = tmp_path_factory.mktemp("chat")
    own = {"plain": PLAIN, "reasoning": REASONING, "marked": MARKED, "strict": STRICT}
    found = {name: ChatFormat.of(make_chat_folder(root / name, text, bos="<s>")) for name, text in own.items()}
    plain = make_chat_folder(root / "named", eos="</s>", bos="<s>")
    found |= {name: ChatFormat.of(plain, name) for name in TEMPLATES}
    found["NFC"] = ChatFormat.of(make_chat_folder(root / "nfc", PLAIN, nfc=True))
    found["metaspace"] = ChatFormat.of(make_chat_folder(root / "meta", PLAIN, metaspace=True))
    return found


ALL = ["plain", "reasoning", "marked", "strict", "NFC", "metaspace", *TEMPLATES]


def spelled(form: ChatFormat, ids: Sequence[int]) -> str:
    return str(form._backend.decode([int(i) for i in ids], skip_special_tokens=False))


def learned(form: ChatFormat, tokens: Tokens) -> list[str]:
    """Return the texts of the stretches of targets."""
    pairs = zip(tokens.ids.tolist(), tokens.targets.tolist(), strict=True)
    groups = itertools.groupby(pairs, key=lambda pair: pair[1])
    return [spelled(form, [i for i, _ in group]) for wanted, group in groups if wanted]


@pytest.mark.parametrize("name", ALL)
def test_answers_and_the_tokens_that_close_them_are_learned(formats: dict[str, ChatFormat], name: str) -> None:
    form = formats[name]
    conversation = LONG[1:] if name == "strict" else LONG
    found = learned(form, form.encode(conversation))
    end = form._backend.id_to_token(form.end_id)
    assert [text.strip().removesuffix(end).strip() for text in found] == [ANSWERED.content, LAST.content]
    assert all(text.endswith(end) for text in found)
    assert form.end_id in form.stop_ids
    assert form.notes == () or name == "metaspace", "that tokenizer has learned to join line ends with words"


@pytest.mark.parametrize("name", ALL)
def test_what_precedes_the_last_answer_is_what_the_model_is_asked_with(
    formats: dict[str, ChatFormat], name: str
) -> None:
    form = formats[name]
    conversation = LONG[1:] if name == "strict" else LONG
    tokens, asked = form.encode(conversation), form.prompt(conversation[:-1])
    assert tokens.ids[: len(asked)].tolist() == asked.tolist()
    assert not tokens.targets[len(asked) - 1]
    assert tokens.targets[len(asked)]


def test_a_border_at_which_tokens_join_is_told(tmp_path: Path) -> None:
    joining = "{% for m in messages %}{{ m.content }}{{ ': ' if m.role == 'user' else eos_token }}{% endfor %}"
    form = ChatFormat.of(make_chat_folder(tmp_path / "a", joining, eos="</s>"))
    assert len(form.notes) == 1
    assert "joins it with the answer" in form.notes[0]


def test_the_rule_at_a_border_inside_a_token(tmp_path: Path) -> None:
    """A token that holds a character of an answer is the answer's, the space in front of it included."""
    form = ChatFormat.of(
        make_chat_folder(
            tmp_path / "a",
            "{% for m in messages %}{{ m.content }}{{ ': ' if m.role == 'user' else eos_token }}{% endfor %}",
            eos="</s>",
        )
    )
    (found,) = learned(form, form.encode((Said("user", "Q"), Said("assistant", "sunny"))))
    assert found == " sunny</s>"


def test_a_space_behind_the_closing_token_is_none_of_the_answers(tmp_path: Path) -> None:
    """Byte-level tokenizers by default give a token of spaces no width."""
    spaced = PLAIN.replace("<|im_end|>\\n", "<|im_end|>  ")
    form = ChatFormat.of(make_chat_folder(tmp_path / "a", spaced))
    assert learned(form, form.encode(LONG)) == [ANSWERED.content + "<|im_end|>", LAST.content + "<|im_end|>"]


def test_multi_byte_characters_are_whole_on_either_side(formats: dict[str, ChatFormat]) -> None:
    form = formats["plain"]
    tokens = form.encode((Said("user", "東🙂"), Said("assistant", "🙂東")))
    assert learned(form, tokens) == ["🙂東<|im_end|>"]
    assert tokens.targets.sum() > 3, "several tokens a character, or this shows nothing"


texts = st.text(
    st.one_of(st.sampled_from("ab \n\t.:#é東🙂\u0301\u200d\ufe0f'\"{}[]</>|"), st.characters(codec="utf-8")),
    max_size=12,
)
answers = texts.filter(str.strip)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts, answers), min_size=1, max_size=3), st.sampled_from(["plain", "marked", "reasoning"]))
def test_targets_spell_exactly_the_answers(
    formats: dict[str, ChatFormat], turns: list[tuple[str, str]], name: str
) -> None:
    form = formats[name]
    conversation = [m for asked, answer in turns for m in (Said("user", asked), Said("assistant", answer))]
    found = "".join(learned(form, form.encode(conversation)))
    if name == "reasoning" and any("</think>" in answer for _, answer in turns):
        return
    assert found == "".join(answer + "<|im_end|>" for _, answer in turns)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts.filter(str.strip), answers), min_size=1, max_size=3), st.sampled_from(ALL))
def test_every_token_comes_from_one_text_tokenised_once(
    formats: dict[str, ChatFormat], turns: list[tuple[str, str]], name: str
) -> None:
    form = formats[name]
    conversation = [m for asked, answer in turns for m in (Said("user", asked), Said("assistant", answer))]
    tokens = form.encode(conversation)
    whole = form._backend.encode(form.render(conversation), add_special_tokens=False).ids
    assert tokens.ids.tolist() == whole
    assert tokens.length == len(tokens.ids) == len(tokens.targets)
    assert not tokens.targets[0]
    assert tokens.targets.any()
    all_of_them = form.encode(conversation, loss_on="all")
    assert all_of_them.ids.tolist() == whole
    assert all_of_them.targets.tolist() == [False] + [True] * (len(whole) - 1)


def test_special_tokens_are_never_added_twice(formats: dict[str, ChatFormat]) -> None:
    for name in ("strict", "llama2", "alpaca"):
        form = formats[name]
        ids = form.encode(SHORT).ids.tolist()
        assert ids.count(form._backend.token_to_id("<s>")) == 1, name
        assert form.prompt(SHORT[:1]).tolist().count(form._backend.token_to_id("<s>")) == 1, name


def test_a_template_that_closes_no_answer_gets_the_end_token(tmp_path: Path) -> None:
    open_ended = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
    open_ended += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    form = ChatFormat.of(make_chat_folder(tmp_path / "a", open_ended, eos="</s>"))
    assert form.notes[0].endswith("closes no answer with a token of its own: </s> is added to the last")
    tokens = form.encode(LONG)
    assert learned(form, tokens) == [" " + ANSWERED.content, " " + LAST.content + "</s>"]
    assert tokens.ids[-1] == form.end_id
    assert form.encode(LONG, loss_on="all").ids.tolist() == tokens.ids.tolist()


def test_a_conversation_without_an_answer_has_no_target(formats: dict[str, ChatFormat], tmp_path: Path) -> None:
    open_ended = ChatFormat.of(make_chat_folder(tmp_path / "a", "{% for m in messages %}{{ m.content }}{% endfor %}"))
    for form in (formats["plain"], formats["marked"], open_ended):
        assert not form.encode(SHORT[:1]).targets.any()
        assert form.encode(SHORT[:1]).ids.tolist() == form._backend.encode(form.render(SHORT[:1])).ids


def test_a_marked_answer_takes_the_token_that_closes_it_along(tmp_path: Path) -> None:
    text = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    text += "{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
    form = ChatFormat.of(make_chat_folder(tmp_path / "a", text, eos="</s>"))
    assert learned(form, form.encode(LONG)) == [ANSWERED.content + "</s>", LAST.content + "</s>"]


def test_a_longer_conversation_loses_its_end_and_says_so(formats: dict[str, ChatFormat]) -> None:
    form = formats["plain"]
    whole = form.encode(LONG)
    assert not whole.cut
    for limit in range(1, whole.length + 2):
        tokens = form.encode(LONG, max_length=limit)
        assert tokens.ids.tolist() == whole.ids[:limit].tolist()
        assert tokens.targets.tolist() == whole.targets[:limit].tolist()
        assert tokens.cut is (limit < whole.length)
        assert tokens.length == whole.length


def test_a_longer_prompt_loses_the_end_of_its_last_message_alone(formats: dict[str, ChatFormat]) -> None:
    for name in ("plain", "alpaca", "llama2", "vicuna"):
        form = formats[name]
        long = (SYSTEM, Said("user", "Read this: " + "sunny " * 40))
        whole = form.prompt(long).tolist()
        behind = spelled(form, whole).rpartition("sunny")[2].lstrip()
        for limit in range(30, len(whole)):
            asked = form.prompt(long, max_length=limit).tolist()
            assert len(asked) == limit
            assert spelled(form, asked).endswith(behind)
            kept = next((i for i, (a, b) in enumerate(zip(whole, asked, strict=False)) if a != b), limit)
            assert asked[kept:] == whole[len(whole) - (limit - kept) :]
        assert form.prompt(long, max_length=len(whole)).tolist() == whole
    with pytest.raises(ConfigError, match="max_length 3 has no room for a question"):
        formats["plain"].prompt(long, max_length=3)


def test_where_generation_stops(tmp_path: Path) -> None:
    folder = make_chat_folder(tmp_path / "a", PLAIN, eos="<|endoftext|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2, 10**9]}), encoding="utf-8")
    form = ChatFormat.of(folder)
    by_name = form._backend.token_to_id
    assert form.stop_ids == {1, 2, by_name("<|endoftext|>"), by_name("<|im_end|>")}
    assert form.end_id == by_name("<|im_end|>")
    assert form.pad_id == form.end_id


def test_decoding_leaves_special_tokens_out(formats: dict[str, ChatFormat]) -> None:
    form = formats["plain"]
    tokens = form.encode(SHORT)
    assert form.decode(tokens.ids[tokens.targets]) == ANSWERED.content


def test_the_digest_follows_template_tokenizer_and_tokens(tmp_path: Path) -> None:
    made = {
        "same": ChatFormat.of(make_chat_folder(tmp_path / "a", PLAIN)),
        "again": ChatFormat.of(make_chat_folder(tmp_path / "b", PLAIN)),
        "template": ChatFormat.of(make_chat_folder(tmp_path / "c", "{{ bos_token }}" + PLAIN)),
        "tokens": ChatFormat.of(make_chat_folder(tmp_path / "d", PLAIN, special=[*SPECIAL, "<more>"])),
        "named": ChatFormat.of(tmp_path / "a", "chatml"),
    }
    digests = {name: form.digest for name, form in made.items()}
    assert digests.pop("again") == digests["same"]
    assert len(set(digests.values())) == len(digests)


def test_a_named_template_among_the_models_own(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": PLAIN}, {"name": "short", "template": MARKED}]
    folder = make_chat_folder(tmp_path / "a", templates)
    assert ChatFormat.of(folder).template == PLAIN
    assert ChatFormat.of(folder, "short").template == MARKED


def test_no_template_of_its_own_names_the_choices(tmp_path: Path) -> None:
    folder = make_chat_folder(tmp_path / "a")
    with pytest.raises(
        ConfigError, match=r"a has no chat template; how .* not known; name one: `template:` alpaca, bai"
    ):
        ChatFormat.of(folder)
    with pytest.raises(ConfigError, match=r"^there is no template 'chatlm'; did you mean 'chatml'\?$"):
        ChatFormat.of(folder, "chatlm")


def test_a_format_whose_tokens_the_tokenizer_lacks(tmp_path: Path) -> None:
    folder = make_chat_folder(tmp_path / "a", special=["</s>"], eos="</s>")
    with pytest.raises(
        ConfigError, match=r"'llama3' needs the token <\|start_header_id\|>.*without such tokens: alpaca,"
    ):
        ChatFormat.of(folder, "llama3")
    form = ChatFormat.of(folder, "alpaca")
    assert learned(form, form.encode(SHORT)) == [ANSWERED.content + "</s>"]


def test_no_token_to_end_with(tmp_path: Path) -> None:
    folder = make_chat_folder(tmp_path / "a", PLAIN, eos="not a token")
    with pytest.raises(ConfigError, match=r"names no token that ends a text \(eos_token\); the model could not learn"):
        ChatFormat.of(folder)


def test_a_template_that_asks_otherwise_than_it_writes(tmp_path: Path) -> None:
    text = PLAIN.replace("assistant\\n", "assistant\\n<think>\\n")
    with pytest.raises(ConfigError, match="asks for an answer by other text than it writes in front of one"):
        ChatFormat.of(make_chat_folder(tmp_path / "a", text))


def test_a_template_that_rewrites_what_came_before(tmp_path: Path) -> None:
    counting = "{{ messages | length }}" + PLAIN
    with pytest.raises(ConfigError, match="asks for an answer by other text"):
        ChatFormat.of(make_chat_folder(tmp_path / "a", counting))
    shouting = PLAIN.replace("m.content", "(m.content if loop.last or m.role == 'user' else m.content | upper)")
    form = ChatFormat.of(make_chat_folder(tmp_path / "b", shouting))
    assert learned(form, form.encode(SHORT)) == [ANSWERED.content + "<|im_end|>"]
    with pytest.raises(DataError, match="writes an answer otherwise once more messages follow it"):
        form.encode(LONG)


def test_a_template_that_leaves_answers_out_or_cannot_run(tmp_path: Path) -> None:
    silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="does not write the assistant's messages"):
        ChatFormat.of(make_chat_folder(tmp_path / "a", silent))
    with pytest.raises(ConfigError, match=r"tokenizer_config.json refuses the conversation: 'nothing' is undefined"):
        ChatFormat.of(make_chat_folder(tmp_path / "b", "{{ nothing.here }}"))


def test_a_refused_conversation(formats: dict[str, ChatFormat]) -> None:
    with pytest.raises(DataError, match=r"refuses the conversation: System role not supported; .*leave it out"):
        formats["strict"].encode(LONG)
    with pytest.raises(DataError, match="roles must alternate"):
        formats["strict"].encode((ASKED, AGAIN, LAST))


def test_ids_do_not_depend_on_what_was_encoded_before(formats: dict[str, ChatFormat]) -> None:
    form = formats["plain"]
    first = form.encode(LONG)
    form.prompt(SHORT[:1], max_length=20)
    form.encode(SHORT, max_length=5)
    assert np.array_equal(form.encode(LONG).ids, first.ids)
