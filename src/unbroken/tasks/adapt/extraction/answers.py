"""A model's answer as annotations: read even if damaged, and if nothing can be read, counted as unreadable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from unbroken.tasks.adapt.extraction.annotations import Annotation, Argument, Entity, Event, Node, Relation
from unbroken.tasks.adapt.extraction.labels import is_word
from unbroken.tasks.adapt.extraction.prompts import ABSENT
from unbroken.tasks.adapt.extraction.schema import Schema
from unbroken.tasks.adapt.extraction.tolerant_json import Pairs, objects, strict

END_OF_THOUGHT = "</think>"
HEADS, TAILS = ("head", "subject"), ("tail", "object")
MENTIONS = ("text", "entity", "name", "mention", "trigger", "word")
WRAPPED = 2  # levels of {"answer": {...}} looked into


@dataclass(frozen=True)
class Answer:
    """What one answer says. `readable`: there was an object; `valid`: it was JSON and nothing else.

    `malformed` counts values that are not of the kind's shape, `unasked` keys that were not asked for: both left out.
    """

    annotations: tuple[Annotation, ...] = ()
    readable: bool = True
    valid: bool = True
    malformed: int = 0
    unasked: int = 0


def parse(text: str, schema: Schema, asked: Sequence[str] | None = None) -> Answer:
    """Read an answer to a question for `asked` types (default: all of the schema). Never raises, whatever the text."""
    reading = _Reading(schema, schema.types if asked is None else asked)
    value, valid = _object(text, reading)
    if value is None:
        return Answer(readable=False, valid=False)
    for phrase, content in value:
        name = schema.type_of(phrase)
        if name is None or name not in reading.asked:
            reading.unasked += 1
        else:
            reading.read(name, content)
    return Answer(tuple(reading.found), True, valid, reading.malformed, reading.unasked)


def _object(text: str, reading: _Reading) -> tuple[Pairs | None, bool]:
    """Return the object that answers, and whether the text is JSON and nothing else.

    That is the first that has a key which was asked for; if none has, the first of all.
    """
    try:
        whole = strict(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, Pairs):
        return next(filter(reading.knows, _within(whole, WRAPPED)), whole), True
    _, thought, answer = text.rpartition(END_OF_THOUGHT)
    found = objects(answer if thought else text)
    return next(filter(reading.knows, found), found[0] if found else None), False


def _within(value: Pairs, levels: int) -> Iterator[Pairs]:
    yield value
    if levels:
        for _, inner in value:
            if isinstance(inner, Pairs):
                yield from _within(inner, levels - 1)


class _Reading:
    """The annotations found so far, and what was left out."""

    def __init__(self, schema: Schema, asked: Iterable[str]):
        self.schema, self.asked = schema, frozenset(asked)
        self.found: list[Annotation] = []
        self.malformed = self.unasked = 0

    def knows(self, value: Pairs) -> bool:
        """Whether an object has a key that was asked for."""
        return any(self.schema.type_of(key) in self.asked for key, _ in value)

    def read(self, name: str, content: Any) -> None:
        """Add what is said of one type."""
        if self.schema.kind == "kg":
            for value in each(content):
                self._nodes(name, value)
            return
        for value in each(content):
            if is_absent(value):
                continue
            match self.schema.kind:
                case "ner":
                    one = self._entity(name, value)
                case "re" | "spo":
                    one = self._relation(name, value)
                case _:
                    one = self._event(name, value)
            if one is None:
                self.malformed += 1
            else:
                self.found.append(one)

    def _entity(self, name: str, value: Any) -> Annotation | None:
        text = self._mention(value)
        return None if text is None else Entity(name, text)

    def _relation(self, name: str, value: Any) -> Annotation | None:
        if len(each(value)) == 2:
            value = Pairs(zip(("head", "tail"), each(value), strict=True))
        if not isinstance(value, Pairs):
            return None
        ends = [self._mention(first(value, keys)) for keys in (HEADS, TAILS)]
        if ends[0] is None or ends[1] is None:
            return None
        if self.schema.kind == "re":
            return Relation(name, ends[0], ends[1])
        types = [word(first(value, [f"{key}_type" for key in keys])) or "" for keys in (HEADS, TAILS)]
        if not all(types):  # right only if the schema leaves one way to complete them
            pairs = [
                pair for pair in self.schema.parts[name] if all(t in ("", p) for t, p in zip(types, pair, strict=True))
            ]
            if len(pairs) != 1:
                return None
            types = list(pairs[0])
        return Relation(name, ends[0], ends[1], types[0], types[1])

    def _event(self, name: str, value: Any) -> Annotation | None:
        kind = self.schema.kind
        if kind == "eet" or (kind == "ee" and not isinstance(value, Pairs)):
            trigger = "" if value == ABSENT else self._mention(value)
            return None if trigger is None else Event(name, trigger)
        if not isinstance(value, Pairs):
            return None
        arguments = first(value, ["arguments"])
        if kind == "eea":
            return Event(name, "", self._arguments(arguments if isinstance(arguments, Pairs) else value))
        trigger = first(value, ["trigger", "event_trigger"])
        if trigger is None and arguments is None:
            return None
        return Event(name, word(trigger) or "", self._arguments(arguments) if isinstance(arguments, Pairs) else ())

    def _arguments(self, roles: Pairs) -> tuple[Argument, ...]:
        found = []
        for role, values in roles:
            for value in each(values):
                text = None if is_absent(value) else self._mention(value)
                if text is not None and is_word(role):
                    found.append(Argument(role, text))
                elif not is_absent(value):
                    self.malformed += 1
        return tuple(found)

    def _nodes(self, name: str, value: Any) -> None:
        if is_absent(value):
            return
        if not isinstance(value, Pairs):
            text = word(value)
            self.malformed += text is None
            self.found += [] if text is None else [Node(name, text)]
            return
        for text, attributes in value:
            if not is_word(text):
                self.malformed += 1
                continue
            inner = attributes if isinstance(attributes, Pairs) else Pairs()
            self.malformed += not (isinstance(attributes, Pairs) or is_absent(attributes) or attributes == [])
            pairs = tuple((one.role, one.text) for one in self._arguments(inner))
            self.found.append(Node(name, text, pairs))

    def _mention(self, value: Any) -> str | None:
        return word(first(value, MENTIONS) if isinstance(value, Pairs) else value)


def each(content: Any) -> list[Any]:
    """Return the items of a list; what is no list is the one item of one."""
    return content if isinstance(content, list) and not isinstance(content, Pairs) else [content]


def first(value: Pairs, keys: Iterable[str]) -> Any:
    """Return what the first of some keys holds that is there, letters' case aside; None if none is."""
    there = {key.casefold(): content for key, content in reversed(value)}
    return next((there[key] for key in keys if key in there), None)


def word(value: Any) -> str | None:
    """Return a mention as text, a number as it is written; None for what is no mention."""
    if isinstance(value, bool) or (not isinstance(value, str | int | float)):
        return None
    try:
        text = str(value)
    except ValueError:  # a number of more digits than Python writes
        return None
    return text if is_word(text) and text != ABSENT else None


def is_absent(value: Any) -> bool:
    """Whether a value says that there is none."""
    return value is None or (isinstance(value, str) and (not value.strip() or value == ABSENT))
