"""Named formats, letter by letter as published."""

from __future__ import annotations

from pathlib import Path

import pytest

from unbroken.models.chat_rendering import ChatTemplate
from unbroken.models.chat_templates import ALPACA_SYSTEM, TEMPLATES, VICUNA_SYSTEM, template_of

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM, FIRST, ANSWER, SECOND = (
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
)

# System message, question, answer, question and the prompt for an answer; the tokenizer begins texts with <s>.
PUBLISHED = {
    "alpaca": "<s>S\n\n### Instruction:\nU1\n\n### Response:\nA1</s>\n\n### Instruction:\nU2\n\n### Response:\n",
    "baichuan": "<s>S<reserved_102>U1<reserved_103>A1</s><reserved_102>U2<reserved_103>",
    "baichuan2": "<s>S<reserved_106>U1<reserved_107>A1</s><reserved_106>U2<reserved_107>",
    "belle": "<s>S\n\nHuman: U1\n\nBelle: A1</s>\n\nHuman: U2\n\nBelle:",
    "chatml": "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n"
    "A1<|im_end|>\n<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n",
    "deepseek": "<s>S\n\nUser: U1\n\nAssistant: A1</s>User: U2\n\nAssistant:",
    "deepseekcoder": "<s>S\n### Instruction:\nU1\n### Response:\nA1\n<|EOT|>\n### Instruction:\nU2\n### Response:\n",
    "default": "<s>S\nHuman: U1\nAssistant: A1</s>\nHuman: U2\nAssistant:",
    "gemma": "<s><start_of_turn>user\nS\n\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
    "<start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\n",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A1 </s><s>[INST] U2 [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] S\n\nU1 [/INST] A1</s>[INST] U2 [/INST]",
    "openchat": "<s>S<|end_of_turn|>GPT4 Correct User: U1<|end_of_turn|>GPT4 Correct Assistant: A1<|end_of_turn|>"
    "GPT4 Correct User: U2<|end_of_turn|>GPT4 Correct Assistant:",
    "phi3": "<s><|system|>\nS<|end|>\n<|user|>\nU1<|end|>\n<|assistant|>\nA1<|end|>\n"
    "<|user|>\nU2<|end|>\n<|assistant|>\n",
    "phi4": "<s><|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U1<|im_end|>"
    "<|im_start|>assistant<|im_sep|>A1<|im_end|><|im_start|>user<|im_sep|>U2<|im_end|><|im_start|>assistant<|im_sep|>",
    "qwen": "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n"
    "A1<|im_end|>\n<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n",
    "vanilla": "<s>S\nU1A1</s>U2",
    "vicuna": "<s>S USER: U1 ASSISTANT: A1</s>USER: U2 ASSISTANT:",
    "xverse": "<s>S\n\nHuman: U1\n\nAssistant: A1</s>Human: U2\n\nAssistant:",
    "zephyr": "<s><|system|>\nS</s>\n<|user|>\nU1</s>\n<|assistant|>\nA1</s>\n<|user|>\nU2</s>\n<|assistant|>\n",
    "ziya": "<s>S<human>:U1\n<bot>:A1</s>\n<human>:U2\n<bot>:",
}


def rendered(name: str, messages: list[dict[str, str]], begins: bool = True, asking: bool = True) -> str:
    template = ChatTemplate(template_of(name, begins), name)
    return template.render(messages, {**NAMES, "add_generation_prompt": asking})[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_format_as_published(name: str) -> None:
    assert rendered(name, [SYSTEM, FIRST, ANSWER, SECOND]) == PUBLISHED[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_begin_token_where_the_tokenizer_puts_none(name: str) -> None:
    assert rendered(name, [SYSTEM, FIRST, ANSWER, SECOND], begins=False) == PUBLISHED[name].replace("<s>", "")


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("alpaca", ALPACA_SYSTEM + "\n\n"),
        ("default", VICUNA_SYSTEM + "\n"),
        ("vicuna", VICUNA_SYSTEM + " "),
        ("qwen", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"),
    ],
)
def test_default_system_message(name: str, system: str) -> None:
    without = rendered(name, [FIRST])
    assert without.startswith("<s>" + system)
    assert without == rendered(name, [{"role": "system", "content": TEMPLATES[name].default_system}, FIRST])


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"alpaca", "default", "vicuna", "qwen"}))
def test_no_system_message_of_its_own(name: str) -> None:
    style = TEMPLATES[name]
    assert rendered(name, [FIRST]) == "<s>" + style.user.replace("{}", "U1").replace("{eos}", "</s>") + style.opening


@pytest.mark.parametrize("name", ["llama2", "llama3", "gemma"])
def test_white_space_around_texts_goes_where_the_format_says_so(name: str) -> None:
    spaced = [{**message, "content": f"\n {message['content']}  "} for message in (SYSTEM, FIRST, ANSWER, SECOND)]
    assert rendered(name, spaced) == PUBLISHED[name]


def test_texts_are_never_taken_for_template_code() -> None:
    hostile = "{{ 7 * 7 }} {% raw %} ' \\n \" {} {eos}"
    assert hostile in rendered("chatml", [{"role": "user", "content": hostile}])
    assert hostile in rendered("llama2", [{"role": "system", "content": hostile}, FIRST])


def test_the_page_lists_them_all() -> None:
    page = (Path(__file__).parents[3] / "docs" / "adapt-data.md").read_text(encoding="utf-8")
    listed = page.split("`template:` alpaca", 1)[1].split("\n\n", 1)[0]
    assert f"alpaca{listed}".replace("\n", " ").split(" · ") == sorted(TEMPLATES)
