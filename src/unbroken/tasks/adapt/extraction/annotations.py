"""What can be extracted from a text, and the facts by which two extractions are compared.

`span` is where a mention stands, from its first character to behind its last, None where that is not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entity:
    """A mention of something of a type."""

    type: str
    text: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """What holds between two mentions; `head_type` and `tail_type` are empty but for typed triples (spo)."""

    type: str
    head: str
    tail: str
    head_type: str = ""
    tail_type: str = ""
    head_span: Span | None = None
    tail_span: Span | None = None


@dataclass(frozen=True, slots=True)
class Argument:
    """A mention that plays a role in an event."""

    role: str
    text: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """An event: the word that tells of it (empty if none does), and who and what takes part."""

    type: str
    trigger: str
    arguments: tuple[Argument, ...] = ()
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """An entity with attributes: pairs of name and value, a name perhaps several times."""

    type: str
    text: str
    attributes: tuple[tuple[str, str], ...] = ()
    span: Span | None = None


Annotation = Entity | Relation | Event | Node

# The groups of facts that each kind is scored on, as the metrics name them.
GROUPS: dict[str, tuple[str, ...]] = {
    "ner": ("entity",),
    "re": ("relation",),
    "spo": ("relation",),
    "ee": ("event", "argument"),
    "eet": ("event",),
    "eea": ("argument",),
    "kg": ("entity", "attribute"),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is right or wrong: a label (its type first) for mentions in the text."""

    group: str
    label: tuple[str, ...]
    mentions: tuple[str, ...]
    spans: tuple[Span | None, ...]

    @property
    def type(self) -> str:
        """The type in the schema that this belongs to."""
        return self.label[0]


def facts(annotations: Iterable[Annotation], kind: str) -> list[Fact]:
    """Return what there is to score in annotations, mentions with their white space evened out."""
    found: list[Fact] = []
    for one in annotations:
        match one:
            case Entity():
                found.append(Fact("entity", (one.type,), (even(one.text),), (one.span,)))
            case Relation():
                label = (one.type, one.head_type, one.tail_type) if kind == "spo" else (one.type,)
                mentions, spans = (even(one.head), even(one.tail)), (one.head_span, one.tail_span)
                found.append(Fact("relation", label, mentions, spans))
            case Event():
                if kind != "eea":
                    found.append(Fact("event", (one.type,), (even(one.trigger),), (one.span,)))
                if kind != "eet":
                    found += [
                        Fact("argument", (one.type, each.role), (even(each.text),), (each.span,))
                        for each in one.arguments
                    ]
            case Node():
                text = even(one.text)
                found.append(Fact("entity", (one.type,), (text,), (one.span,)))
                found += [
                    Fact("attribute", (one.type, name), (text, even(value)), (one.span, None))
                    for name, value in one.attributes
                ]
    return found


def even(text: str) -> str:
    """Return a mention as it is compared: no white space at its ends, one blank for any inside."""
    return " ".join(text.split())
