"""Published chat formats by the names LLaMA-Factory and DeepKE have for them, as Jinja templates.

Each is stated once, as what is written around a system message, a question and an answer. Sources: the models' own
cards and `tokenizer_config.json`; Meta's llama and Mistral's reference code; FastChat for vicuna; Stanford Alpaca.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

EOS = "{eos}"
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class ChatStyle:
    """What a format writes around each text, `{}`; `{eos}` is the tokenizer's end token.

    `opening` stands in front of an answer and ends the generation prompt; `answer` is what the model writes. `between`
    separates a question from the answer before it. `tokens` must each be one token of the tokenizer.
    """

    user: str
    answer: str
    opening: str = ""
    system: str = "{}\n\n"
    between: str = ""
    tokens: tuple[str, ...] = ()
    default_system: str = ""
    system_in_question: bool = False  # written inside the first question
    bos_each_turn: bool = False
    trimmed: bool = False  # texts are stripped of white space around them


CHATML = ChatStyle(
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n{}<|im_end|>\n",
    opening="<|im_start|>assistant\n",
    answer="{}<|im_end|>\n",
    tokens=("<|im_start|>", "<|im_end|>"),
)

TEMPLATES: dict[str, ChatStyle] = {
    "alpaca": ChatStyle(
        user="### Instruction:\n{}\n\n### Response:\n",
        answer="{}{eos}",
        between="\n\n",
        default_system=ALPACA_SYSTEM,
    ),
    "baichuan": ChatStyle(
        system="{}",
        user="<reserved_102>{}",
        opening="<reserved_103>",
        answer="{}{eos}",
        tokens=("<reserved_102>", "<reserved_103>"),
    ),
    "baichuan2": ChatStyle(
        system="{}",
        user="<reserved_106>{}",
        opening="<reserved_107>",
        answer="{}{eos}",
        tokens=("<reserved_106>", "<reserved_107>"),
    ),
    "belle": ChatStyle(user="Human: {}\n\n", opening="Belle:", answer=" {}{eos}", between="\n\n"),
    "chatml": CHATML,
    "deepseek": ChatStyle(user="User: {}\n\n", opening="Assistant:", answer=" {}{eos}"),
    "deepseekcoder": ChatStyle(
        system="{}\n",
        user="### Instruction:\n{}\n",
        opening="### Response:\n",
        answer="{}\n<|EOT|>\n",
        tokens=("<|EOT|>",),
    ),
    "default": ChatStyle(
        system="{}\n",
        user="Human: {}\n",
        opening="Assistant:",
        answer=" {}{eos}",
        between="\n",
        default_system=VICUNA_SYSTEM,
    ),
    "gemma": ChatStyle(
        user="<start_of_turn>user\n{}<end_of_turn>\n",
        opening="<start_of_turn>model\n",
        answer="{}<end_of_turn>\n",
        tokens=("<start_of_turn>", "<end_of_turn>"),
        system_in_question=True,
        trimmed=True,
    ),
    "llama2": ChatStyle(
        system="<<SYS>>\n{}\n<</SYS>>\n\n",
        user="[INST] {} [/INST]",
        answer=" {} {eos}",
        system_in_question=True,
        bos_each_turn=True,
        trimmed=True,
    ),
    "llama3": ChatStyle(
        system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer="{}<|eot_id|>",
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        trimmed=True,
    ),
    "mistral": ChatStyle(user="[INST] {} [/INST]", answer=" {}{eos}", system_in_question=True),
    "openchat": ChatStyle(
        system="{}<|end_of_turn|>",
        user="GPT4 Correct User: {}<|end_of_turn|>",
        opening="GPT4 Correct Assistant:",
        answer=" {}<|end_of_turn|>",
        tokens=("<|end_of_turn|>",),
    ),
    "phi3": ChatStyle(
        system="<|system|>\n{}<|end|>\n",
        user="<|user|>\n{}<|end|>\n",
        opening="<|assistant|>\n",
        answer="{}<|end|>\n",
        tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "phi4": ChatStyle(
        system="<|im_start|>system<|im_sep|>{}<|im_end|>",
        user="<|im_start|>user<|im_sep|>{}<|im_end|>",
        opening="<|im_start|>assistant<|im_sep|>",
        answer="{}<|im_end|>",
        tokens=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    "qwen": replace(CHATML, default_system="You are a helpful assistant."),
    "vanilla": ChatStyle(system="{}\n", user="{}", answer="{}{eos}"),
    "vicuna": ChatStyle(
        system="{} ", user="USER: {} ", opening="ASSISTANT:", answer=" {}{eos}", default_system=VICUNA_SYSTEM
    ),
    "xverse": ChatStyle(user="Human: {}\n\n", opening="Assistant:", answer=" {}{eos}"),
    "zephyr": ChatStyle(
        system="<|system|>\n{}{eos}\n",
        user="<|user|>\n{}{eos}\n",
        opening="<|assistant|>\n",
        answer="{}{eos}\n",
    ),
    "ziya": ChatStyle(
        system="{}",
        user="<human>:{}\n",
        opening="<bot>:",
        answer="{}{eos}",
        between="\n",
        tokens=("<human>", "<bot>"),
    ),
}


@cache
def template_of(name: str, begins: bool) -> str:
    """Return the Jinja template of a named format; `begins`: the tokenizer puts its begin token before every text."""
    style = TEMPLATES[name]
    trim = " | trim" if style.trimmed else ""
    content = f"message['content']{trim}"
    bos = "{{ bos_token }}" if begins else ""
    system, question = _filled(style.system, "system"), content
    written = f"{{% if system %}}{{{{ {system} }}}}{{% endif %}}"
    if style.system_in_question:
        written, question = "", f"(({system}) if loop.first and system else '') ~ ({content})"
    between = f"{{{{ {_literal(style.between)} }}}}" * bool(style.between) + bos * style.bos_each_turn
    return "".join(
        [
            bos,
            "{% if messages[0]['role'] == 'system' %}",
            f"{{% set system = messages[0]['content']{trim} %}}{{% set turns = messages[1:] %}}",
            "{% else %}",
            f"{{% set system = {_literal(style.default_system)} %}}{{% set turns = messages %}}",
            "{% endif %}",
            written,
            "{% for message in turns %}{% if message['role'] == 'user' %}",
            f"{{% if not loop.first %}}{between}{{% endif %}}" * bool(between),
            f"{{{{ {_filled(style.user, question)} }}}}",
            f"{{% elif message['role'] == 'assistant' %}}{{{{ {_filled(style.opening + style.answer, content)} }}}}",
            "{% else %}{{ raise_exception('a system message may only stand first') }}{% endif %}{% endfor %}",
            f"{{% if add_generation_prompt %}}{{{{ {_literal(style.opening)} }}}}{{% endif %}}",
        ]
    )


def _filled(pattern: str, content: str) -> str:
    """Return a Jinja expression that writes a pattern with an expression in place of `{}`."""
    before, _, after = pattern.partition("{}")
    after, eos, rest = after.partition(EOS)
    parts = [_literal(before), f"({content})", _literal(after), "eos_token" * bool(eos), _literal(rest)]
    return " ~ ".join(part for part in parts if part not in ("''", ""))


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
