"""Chat templates: the environment they run in, and where a folder keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unbroken.base.errors import ConfigError, DataError
from unbroken.models.chat_rendering import ChatTemplate, own_templates, special_tokens

USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def test_blocks_leave_no_white_space_and_loops_can_be_left() -> None:
    text = "{% for m in messages %}\n    {% if loop.index > 1 %}\n{% break %}\n    {% endif %}\n"
    text += "{{ m.content }}\n{% endfor %}"
    assert ChatTemplate(text, "t").render([USER, ANSWER], {})[0] == "Q\n"


def test_json_is_not_escaped_for_html() -> None:
    template = ChatTemplate(
        "{{ messages[0] | tojson }}{{ {'b': 1, 'a': 'é'} | tojson(indent=1, sort_keys=true) }}", "t"
    )
    expected = '{"role": "user", "content": "<Q>"}{\n "a": "é",\n "b": 1\n}'
    assert template.render([{"role": "user", "content": "<Q>"}], {})[0] == expected


def test_a_refusal_is_told_in_the_templates_words() -> None:
    template = ChatTemplate("{{ raise_exception('System role not supported') }}", "the chat template in x")
    with pytest.raises(
        DataError, match=r"^the chat template in x refuses the conversation: System role not supported;"
    ):
        template.render([USER], {})


def test_todays_date_is_refused_and_a_fixed_one_taken() -> None:
    with pytest.raises(
        ConfigError, match=r"writes today's date \(strftime_now\); the texts of a run could not be made"
    ):
        ChatTemplate("{{ strftime_now('%d') }}", "t").render([USER], {})
    asked = "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}26 Jul 2024{% endif %}"
    assert ChatTemplate(asked, "t").render([USER], {})[0] == "26 Jul 2024"


@pytest.mark.parametrize(
    "text", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}"]
)
def test_a_template_cannot_reach_out_or_change_what_it_is_given(text: str) -> None:
    with pytest.raises(DataError):
        ChatTemplate(text, "t").render([USER], {})


def test_what_is_no_template_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^t cannot be read: .*endfor"):
        ChatTemplate("{% for m in messages %}", "t")


def test_answers_a_template_marks() -> None:
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}"
    template = ChatTemplate(text, "t")
    messages = [{"role": "user", "content": "\U0010f000é"}, {"role": "user", "content": "\U0010f001"}]
    assert template.marks_answers
    assert template.render(messages, {}) == ("\U0010f000é;\U0010f001;", [(0, 2), (3, 4)])
    assert not ChatTemplate("{{ messages[0].content }}", "t").marks_answers


def test_where_a_folder_keeps_templates(tmp_path: Path) -> None:
    config = json.dumps({"chat_template": [{"name": "default", "template": "1"}, {"name": "rag", "template": "2"}]})
    documents = {"tokenizer_config.json": config.encode()}
    assert own_templates(tmp_path, documents) == {
        "default": ("1", "tokenizer_config.json"),
        "rag": ("2", "tokenizer_config.json"),
    }
    documents["chat_template.json"] = b'{"chat_template": "3"}'
    assert own_templates(tmp_path, documents)["default"] == ("3", "chat_template.json")
    documents["chat_template.jinja"] = b"4"
    (tmp_path / "chat_templates").mkdir()
    (tmp_path / "chat_templates" / "rag.jinja").write_text("5")
    assert own_templates(tmp_path, documents) == {
        "default": ("4", "chat_template.jinja"),
        "rag": ("5", "chat_templates/rag.jinja"),
    }
    assert own_templates(tmp_path, {}).keys() == {"rag"}


@pytest.mark.parametrize("value", [7, [1], [{"name": "a"}], {"template": "x"}, [{"name": 1, "template": "x"}]])
def test_a_template_that_is_no_text(tmp_path: Path, value: object) -> None:
    documents = {"tokenizer_config.json": json.dumps({"chat_template": value}).encode()}
    with pytest.raises(ConfigError, match="chat_template is neither a text nor a list of named texts"):
        own_templates(tmp_path, documents)


def test_names_of_tokens(tmp_path: Path) -> None:
    documents = {
        "special_tokens_map.json": b'{"eos_token": "old", "pad_token": {"content": "<pad>"}}',
        "tokenizer_config.json": b'{"eos_token": "</s>", "bos_token": null, "add_bos_token": true}',
    }
    assert special_tokens(tmp_path, documents) == {"eos_token": "</s>", "pad_token": "<pad>"}
