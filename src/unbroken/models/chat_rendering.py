"""Chat templates: where a model folder keeps its own, and how one is rendered, as transformers renders it.

No transformers here, whose import costs seconds. Sources: its `utils/chat_template_utils.py` (environment) and
`tokenization_utils_base.py` (files and their precedence), both of 5.23.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unbroken.base.errors import ConfigError, DataError
from unbroken.base.reading import read_document
from unbroken.models.folder import json_value, parse_object

Span = tuple[int, int]
TEMPLATE_FILE, OLDER_FILE, FOLDER = "chat_template.jinja", "chat_template.json", "chat_templates"
CONFIG_FILE = "tokenizer_config.json"
# No character of Unicode's: two of the last plane's private use area stand around what a template marks.
FIRST_MARK, LAST_MARK = 0x10F000, 0x10FFFD
# What a template can raise about a conversation it was not written for, beside Jinja's own errors.
FAILURES = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)
    marks = ("", "")

    def parse(self, parser: Parser) -> nodes.Node:
        """Return a call of `_marked` with the block as its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Macro) -> str:
        return f"{self.marks[0]}{caller()}{self.marks[1]}"


class ChatTemplate:
    """A compiled template. `marks_answers`: it says itself, by `{% generation %}`, what the assistant writes."""

    def __init__(self, text: str, name: str) -> None:
        """Compile `text`; `name` stands for it in messages. Raises `ConfigError` if it is no template."""
        self.text, self.name = text, name
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _as_json
        environment.globals["raise_exception"] = _refuse
        # No `strftime_now`: a text with today's date in it could not be made again. Templates that ask whether it is
        # there (Llama 3.2's) write their fixed date instead.
        try:
            self._template = environment.from_string(text)
            self.marks_answers = any(environment.parse(text).find_all(nodes.CallBlock)) and "endgeneration" in text
        except (TemplateError, RecursionError) as failure:
            raise ConfigError(
                f"{name} cannot be read: {failure}", next_step="correct it, or name a template: `template: chatml`"
            ) from None
        self._generation = next(e for e in environment.extensions.values() if isinstance(e, Generation))

    def render(self, messages: Sequence[Mapping[str, str]], values: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and in it the answers the template marks, as [start, end) of characters.

        Raises `DataError` with the template's own words if it refuses the conversation.
        """
        marks = self._unused(messages) if self.marks_answers else ("", "")
        self._generation.marks = marks
        try:
            text = self._template.render(messages=list(messages), tools=None, documents=None, **values)
        except FAILURES as failure:
            raise self._refused(failure) from None
        return _unmarked(text, marks) if self.marks_answers else (text, [])

    def _refused(self, failure: Exception) -> DataError | ConfigError:
        cause = str(failure).partition("\n")[0] or type(failure).__name__
        if "'strftime_now'" in cause:
            return ConfigError(
                f"{self.name} writes today's date (strftime_now)",
                why="the texts of a run could not be made again tomorrow",
                next_step="put a fixed date in its place, or name a template: `template: chatml`",
            )
        return DataError(
            f"{self.name} refuses the conversation: {cause}",
            next_step="correct the messages or name another template; if the system message is refused, leave it out",
        )

    def _unused(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
        used = set().union(self.text, *(value for message in messages for value in message.values()))
        free = (chr(code) for code in range(FIRST_MARK, LAST_MARK) if chr(code) not in used)
        return next(free), next(free)


def own_templates(root: Path, documents: Mapping[str, bytes]) -> dict[str, tuple[str, str]]:
    """Return name -> (text, file) of the templates in a model folder, read as transformers reads them."""
    templates: dict[str, tuple[str, str]] = {}
    for file in (CONFIG_FILE, OLDER_FILE):
        if file in documents:
            value = parse_object(documents[file], root / file).get("chat_template")
            for name, text in _named(value, root / file):
                templates[name] = (text, file)
    if TEMPLATE_FILE in documents:
        templates["default"] = (_decoded(documents[TEMPLATE_FILE], root / TEMPLATE_FILE), TEMPLATE_FILE)
    for path in sorted((root / FOLDER).glob("*.jinja")):
        templates[path.stem] = (_decoded(read_document(path), path), f"{FOLDER}/{path.name}")
    return templates


def special_tokens(root: Path, documents: Mapping[str, bytes]) -> dict[str, str]:
    """Return the tokens that have a name, as templates know them: `bos_token`, `eos_token`, ... -> text."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", CONFIG_FILE):
        value = json_value(documents[file], root / file) if file in documents else {}
        for name, token in (value if isinstance(value, dict) else {}).items():
            text = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
    return found


def _named(value: Any, place: Path) -> list[tuple[str, str]]:
    """Return the templates in a `chat_template`: one text, or a list of named ones."""
    if value is None:
        return []
    entries = [{"name": "default", "template": value}] if isinstance(value, str) else value
    try:
        pairs = [(entry["name"], entry["template"]) for entry in entries]
    except (TypeError, KeyError):
        pairs = [(None, None)]
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in pairs):
        raise ConfigError(
            f"{place}: chat_template is neither a text nor a list of named texts",
            next_step="copy the model folder again, or name a template: `template: chatml`",
        )
    return pairs


def _decoded(content: bytes, place: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as failure:
        raise ConfigError(
            f"{place} is damaged: {failure}", next_step="copy the model folder again, whole, or name a template"
        ) from None


def _unmarked(text: str, marks: tuple[str, str]) -> tuple[str, list[Span]]:
    """Take the marks out of a text and return where they stood."""
    pieces, spans, length = [], [], 0
    for number, piece in enumerate(text.split(marks[0])):
        inside, _, outside = piece.rpartition(marks[1]) if number else ("", "", piece)
        if number:
            spans.append((length, length + len(inside)))
        pieces += [inside, outside]
        length += len(inside) + len(outside)
    return "".join(pieces), spans


def _as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Write JSON without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise TemplateError(message)
