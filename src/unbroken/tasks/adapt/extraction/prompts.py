"""Questions to the model and the answers it learns to give, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from json.encoder import JSONEncoder
from typing import Any

from unbroken.tasks.adapt.extraction.annotations import Annotation, Entity, Event, Node, Relation
from unbroken.tasks.adapt.extraction.config import Style
from unbroken.tasks.adapt.extraction.schema import Schema

ABSENT = "NAN"  # DeepKE's word for a role nothing plays and a trigger that is not there
encode = JSONEncoder(ensure_ascii=False).encode  # made once: `json.dumps` would make one for every text


class Prompts:
    """What is asked about a text in one style. What does not depend on the text is written once."""

    def __init__(self, schema: Schema, instructions: Sequence[str], style: Style):
        self.schema, self.style = schema, style
        self.entries = [self._entry(name) for name in schema.types]
        self.heads = [self._head(one) for one in instructions]

    def question(self, text: str, asked: Iterable[int], phrasing: int = 0) -> str:
        """Return what the model is told: the instruction, the types with these places in the schema, the text."""
        entries = ", ".join([self.entries[place] for place in asked])
        if self.style == "json":
            return f'{self.heads[phrasing]}{entries}], "input": {encode(text)}}}'
        return f"{self.heads[phrasing]}{entries}\nInput: {text}"

    def _head(self, instruction: str) -> str:
        if self.style == "json":
            return f'{{"instruction": {encode(instruction)}, "schema": ['
        return f"{instruction}\nSchema: "

    def _entry(self, name: str) -> str:
        """Return a type as the question lists it."""
        schema, phrase, parts = self.schema, self.schema.phrases[name], list(self.schema.parts.get(name, ()))
        if self.style == "text":
            match schema.kind:
                case "spo":
                    return ", ".join(f"{phrase} ({head} -> {tail})" for head, tail in parts)
                case "ee" | "eea" | "kg" if parts:
                    return f"{phrase} ({', '.join(parts)})"
            return phrase
        value: list[Any] = [phrase]
        match schema.kind:
            case "spo":
                value = [{"subject_type": head, "predicate": phrase, "object_type": tail} for head, tail in parts]
            case "ee":
                value = [{"event_type": phrase, "trigger": True, "arguments": parts}]
            case "eea":
                value = [{"event_type": phrase, "arguments": parts}]
            case "kg":
                value = [{"entity_type": phrase, "attributes": parts}]
        return ", ".join(map(encode, value))


def answer(schema: Schema, asked: Iterable[int], annotations: Iterable[Annotation], listed: bool = True) -> str:
    """Return what the model is to say: a JSON object of the asked types in their order.

    Those with nothing are `listed`, or left out.
    """
    found: dict[str, list[Annotation]] = {}
    for one in annotations:
        found.setdefault(one.type, []).append(one)
    nothing: Any = {} if schema.kind == "kg" else []
    value = {}
    for place in asked:
        name = schema.types[place]
        if name in found or listed:
            value[schema.phrases[name]] = _shape(schema, name, found[name]) if name in found else nothing
    return encode(value)


def _shape(schema: Schema, name: str, annotations: list[Annotation]) -> Any:
    """Return the annotations of one type as JSON."""
    if schema.kind == "kg":
        return _nodes(one for one in annotations if isinstance(one, Node))
    values: list[Any] = []
    for one in annotations:
        match one:
            case Entity():
                values.append(one.text)
            case Relation() if schema.kind == "spo":
                values.append(
                    {
                        "subject": one.head,
                        "subject_type": one.head_type,
                        "object": one.tail,
                        "object_type": one.tail_type,
                    }
                )
            case Relation():
                values.append({"head": one.head, "tail": one.tail})
            case Event() if schema.kind == "eet":
                values.append(one.trigger or ABSENT)
            case Event():
                roles = _roles(one, schema.parts[name])
                values.append(roles if schema.kind == "eea" else {"trigger": one.trigger or ABSENT, "arguments": roles})
    return values


def _roles(event: Event, roles: Iterable[Any]) -> dict[str, Any]:
    """Return every role of the schema with what plays it: a text, a list of several, or `ABSENT`."""
    filled: dict[str, list[str]] = {role: [] for role in roles}
    for one in event.arguments:
        filled.setdefault(one.role, []).append(one.text)
    return {role: single(texts) if texts else ABSENT for role, texts in filled.items()}


def _nodes(nodes: Iterable[Node]) -> dict[str, Any]:
    """Return entities with their attributes; one that occurs again adds to the first."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in nodes:
        attributes = found.setdefault(one.text, {})
        for name, text in one.attributes:
            attributes.setdefault(name, []).append(text)
    return {text: {name: single(values) for name, values in each.items()} for text, each in found.items()}


def single(values: list[str]) -> Any:
    """Return a list of one as what it holds."""
    return values[0] if len(values) == 1 else values
