"""Conversations to token ids, and which of them the model is to learn: a chat template and a tokenizer.

A text is rendered once and tokenised once, as transformers' `apply_chat_template` does; which tokens are answers is
told by their places in the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError, DataError
from unbroken.base.fingerprint import canonical, digest
from unbroken.models.chat_rendering import CONFIG_FILE, ChatTemplate, Span, own_templates, special_tokens
from unbroken.models.chat_templates import TEMPLATES, template_of
from unbroken.models.folder import parse_object, read_folder, read_if_there, resolve
from unbroken.models.tokenizing import Tokenizer

LossOn = Literal["answers", "all"]
OWN = "model"
TEMPLATE_FILE = "chat_template.jinja"
USER, ASSISTANT = "user", "assistant"
# Texts of no format, to find out what a template writes around an answer; ` a` is one token almost everywhere.
QUESTION, ANSWER = "Fzqk?", "a Vxjw!"
# Rows hold no reasoning. Templates with a switch for it then end the generation prompt where such an answer begins.
SETTINGS = {"enable_thinking": False}


class ChatMessage(Protocol):
    """A message of a conversation."""

    @property
    def role(self) -> str:
        """One of system, user, assistant."""

    @property
    def content(self) -> str:
        """The text."""


@dataclass(frozen=True)
class Tokens:
    """A conversation as tokens. `targets[i]`: token i is one the model is to predict; the first never is.

    `length` is the number of tokens before truncation.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    length: int

    @property
    def cut(self) -> bool:
        """Whether the end is missing: with it the token that ends the last answer."""
        return len(self.ids) < self.length


class ChatFormat:
    """A chat template and a tokenizer. `digest` identifies everything that tokens depend on but the conversation.

    `template` is the template's text, which belongs into the folder of a model trained with it, `bos_token` and the
    like in it being the tokenizer's. Generation ends at any of `stop_ids`; `end_id` closes an answer. `notes` says in
    a line each what a user should know of the two together.
    """

    def __init__(self, root: Path, template: ChatTemplate, tokenizer: Tokenizer, names: Mapping[str, str]) -> None:
        """Take the parts; see `of`. Raises `ConfigError` if answers cannot be told from the rest."""
        self.template = template.text
        self._template, self._names = template, dict(names)
        self._backend = _untrimmed(tokenizer.backend)
        self._special = {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        ends = _end_ids(root, self._backend, names)
        if not ends:
            raise ConfigError(
                f"{root} names no token that ends a text (eos_token)",
                why="the model could not learn where to stop",
                next_step=f"add it to {CONFIG_FILE}",
            )
        self._special |= ends
        end = self._backend.token_to_id(names.get("eos_token", ""))
        parts: dict[str, Any] = {"template": template.text, "tokens": names, "tokenizer": tokenizer.digest}
        if ends != {end}:  # the model's own configuration names others
            parts["ends"] = sorted(ends)
        self.digest = digest(canonical(parts))
        self._head, self._tail, self._appended, self.end_id = self._explored(min(ends) if end is None else end)
        self.stop_ids = frozenset(ends | {self.end_id})
        pad = self._backend.token_to_id(names.get("pad_token", ""))
        self.notes = self._noted()
        self.pad_id: int = self.end_id if pad is None else pad

    @classmethod
    def of(cls, folder: str | Path, template: str = OWN) -> ChatFormat:
        """Open a model folder's tokenizer with its own template, or one of `TEMPLATES`, or of several of its own.

        Raises `ConfigError` if there is none of that name, or it does not fit the tokenizer.
        """
        root = resolve(folder)
        model = read_folder(root)
        tokenizer = Tokenizer(model)
        names = special_tokens(root, model.documents)
        own = own_templates(root, model.documents)
        chosen = "default" if template == OWN else template
        if template == OWN and chosen not in own:
            raise ConfigError(
                f"{root} has no chat template",
                why="how it is to tell questions from answers is not known",
                next_step=f"name one: `template:` {', '.join(TEMPLATES)}",
            )
        if template in TEMPLATES:
            text = _named_text(template, tokenizer.backend, names, root)
            return cls(root, ChatTemplate(text, f"the template '{template}'"), tokenizer, names)
        if chosen in own:
            text, file = own[chosen]
            return cls(root, ChatTemplate(text, f"the chat template in {root / file}"), tokenizer, names)
        near = closest(template, [*TEMPLATES, *own])
        raise ConfigError(
            f"there is no template '{template}'",
            next_step=f"did you mean '{near}'?" if near else f"use {OWN}, {', '.join([*own, *TEMPLATES])}",
        )

    def render(self, messages: Sequence[ChatMessage], add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation. Raises `DataError` if the template refuses it."""
        return self._rendered(messages, add_generation_prompt)[0]

    def encode(
        self, messages: Sequence[ChatMessage], loss_on: LossOn = "answers", max_length: int | None = None
    ) -> Tokens:
        """Return the tokens of a conversation, and which of them are targets: those of all answers, or all.

        A token is an answer's if it holds any character of it; so is the token that closes the answer, and white
        space after that is not. A longer conversation loses its end, so that every target left is predicted from
        what truly precedes it; whether it lost something, and whether a target is left, the result says.
        """
        text, spans = self._answers(messages)
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, dtype=np.int32)
        targets = self._targets(text, encoding.offsets, ids, spans)
        if self._appended and targets.any():
            last = int(np.flatnonzero(targets)[-1]) + 1
            ids = np.append(ids[:last], np.int32(self.end_id))
            targets = np.append(targets[:last], True)
        if loss_on == "all":
            targets = np.ones(len(ids), dtype=np.bool_)
        targets[:1] = False
        return Tokens(ids[:max_length], targets[:max_length], len(ids))

    def prompt(self, messages: Sequence[ChatMessage], max_length: int | None = None) -> NDArray[np.int32]:
        """Return the tokens of a conversation up to and with what stands in front of the next answer.

        A longer one loses the end of its last message, never what follows it. Raises `ConfigError` if `max_length`
        has no room for that.
        """
        text = self.render(messages, add_generation_prompt=True)
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, dtype=np.int32)
        if max_length is None or len(ids) <= max_length:
            return ids
        content = messages[-1].content.strip()
        place = text.rfind(content)
        after = place + len(content) if place >= 0 else len(self.render(messages))
        kept = sum(start >= after for start, _ in encoding.offsets)
        if kept >= max_length:
            raise ConfigError(
                f"max_length {max_length} has no room for a question: {kept} tokens stand between it and the answer",
                next_step="set a larger max_length",
            )
        return np.concatenate([ids[: max_length - kept], ids[len(ids) - kept :]])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens without the special ones."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=True))

    def _rendered(
        self, messages: Sequence[ChatMessage], asking: bool = False, settings: Mapping[str, Any] = SETTINGS
    ) -> tuple[str, list[Span]]:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        return self._template.render(plain, {**self._names, **settings, "add_generation_prompt": asking})

    def _answers(self, messages: Sequence[ChatMessage]) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and where each answer stands, with what closes it."""
        text, marked = self._rendered(messages)
        if self._template.marks_answers:
            return text, marked
        answers = [place for place, message in enumerate(messages) if message.role == ASSISTANT]
        spans = []
        for place in answers:
            start = self._start(messages[:place], text, last=place == answers[-1])
            spans.append((start, self._end(messages, place, start, text)))
        return text, spans

    def _start(self, before: Sequence[ChatMessage], text: str, last: bool) -> int:
        """Return where the answer after `before` begins: where a prompt for it would end.

        Templates that show reasoning in the last answer alone (Qwen3's) ask for earlier ones without it.
        """
        for settings in [SETTINGS] if last else [SETTINGS, {}]:
            prompt = self._rendered(before, asking=True, settings=settings)[0]
            if text.startswith(prompt):
                return len(prompt)
        raise DataError(
            f"{self._template.name} asks for an answer by other text than it writes in front of one",
            why="training would not show the model what it sees when asked",
            next_step="name another template, or mark the answers in this one: {% generation %}...{% endgeneration %}",
        )

    def _end(self, messages: Sequence[ChatMessage], place: int, start: int, text: str) -> int:
        """Return where an answer ends, in full: with what closes it."""
        if place == len(messages) - 1:
            return len(text)
        for content in (messages[place].content, messages[place].content.strip()):
            answer = self._head + content + self._tail
            if text.startswith(answer, start):
                return start + len(answer)
        upto = self._rendered(messages[: place + 1])[0]
        if text.startswith(upto):
            return len(upto)
        raise DataError(
            f"{self._template.name} writes an answer otherwise once more messages follow it",
            why="where the answer ends cannot be told",
            next_step="name another template, or mark the answers in this one: {% generation %}...{% endgeneration %}",
        )

    def _targets(
        self, text: str, offsets: Sequence[Span], ids: NDArray[np.int32], spans: Sequence[Span]
    ) -> NDArray[np.bool_]:
        """Return which tokens belong to the spans of a text, white space behind them left out."""
        targets = np.zeros(len(ids), dtype=np.bool_)
        starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
        for first, last in spans:
            inside = np.flatnonzero((starts < last) & (ends > first)).tolist()
            while inside and ids[inside[-1]] not in self._special and text[slice(*offsets[inside[-1]])].isspace():
                inside.pop()
            targets[inside] = True
            following = inside[-1] + 1 if inside else len(ids)
            if self._template.marks_answers and following < len(ids) and ids[following] in self._special:
                targets[following] |= ids[inside[-1]] not in self._special  # what closes it was left outside the mark
        return targets

    def _explored(self, end: int) -> tuple[str, str, bool, int]:
        """Find out what the template writes before and after an answer, in it, and what token closes it.

        Returns (before, after, whether nothing closes it and `end` is to be appended, the token that closes it).
        """
        self._head = self._tail = ""
        messages = [_Probe(USER, QUESTION), _Probe(ASSISTANT, ANSWER)]
        try:
            text, spans = self._answers(messages)
        except DataError as failure:
            raise ConfigError(failure.what, why=failure.why, next_step=failure.next_step) from None
        if ANSWER not in text or not spans:
            raise ConfigError(
                f"{self._template.name} does not write the assistant's messages", next_step="name another template"
            )
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, dtype=np.int32)
        targets = self._targets(text, encoding.offsets, ids, spans)
        closing = int(ids[targets][-1])
        head, _, tail = text[slice(*spans[-1])].partition(ANSWER)
        appended = closing not in self._special
        return head, tail, appended, end if appended else closing

    def _noted(self) -> tuple[str, ...]:
        notes = []
        if self._appended:
            token = self._backend.id_to_token(self.end_id)
            notes.append(
                f"{self._template.name} closes no answer with a token of its own: {token} is added to the last"
            )
        messages = [_Probe(USER, QUESTION), _Probe(ASSISTANT, ANSWER)]
        asked, whole = self.prompt(messages[:1]), self.encode(messages).ids
        if not np.array_equal(asked, whole[: len(asked)]):
            notes.append(
                f"{self._template.name} ends its question so that this tokenizer joins it with the answer: where they "
                "meet, the model is asked with other tokens than it is trained with"
            )
        return tuple(notes)


@dataclass(frozen=True)
class _Probe:
    role: str
    content: str


def _named_text(name: str, backend: Any, names: Mapping[str, str], root: Path) -> str:
    """Return the text of a named template for a tokenizer. Raises `ConfigError` if it lacks a token of the format."""
    missing = [token for token in TEMPLATES[name].tokens if backend.token_to_id(token) is None]
    if missing:
        plain = [other for other, style in TEMPLATES.items() if not style.tokens]
        raise ConfigError(
            f"the template '{name}' needs the token {missing[0]}, which the tokenizer of {root} does not have",
            next_step=f"use the model's own (`template: {OWN}`), or one without such tokens: {', '.join(plain)}",
        )
    bos = names.get("bos_token")
    begins = bos is not None and backend.encode("x").ids[:1] == [backend.token_to_id(bos)]
    return template_of(name, begins)


def _end_ids(root: Path, backend: Any, names: Mapping[str, str]) -> set[int]:
    """Return the tokens that end a text, by the tokenizer's and the model's configuration."""
    found = {backend.token_to_id(names["eos_token"])} if "eos_token" in names else set()
    files = read_if_there(root, ["generation_config.json", "config.json"])
    for file, content in files.items():
        listed = parse_object(content, root / file).get("eos_token_id")
        found |= set(listed if isinstance(listed, list) else [listed])
    known = backend.get_vocab_size(with_added_tokens=True)
    return {i for i in found if isinstance(i, int) and 0 <= i < known}


def _untrimmed(backend: Any) -> Any:
    """Have tokens say where they stand with the space in them; by default many tokenizers leave it out."""
    from tokenizers.processors import ByteLevel

    backend.post_processor = ByteLevel(trim_offsets=False)  # no special tokens: the template writes them
    return backend
