"""All answers about one text together: what was extracted, where it stands, and what could not be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unbroken.tasks.adapt.extraction.align import aligned
from unbroken.tasks.adapt.extraction.annotations import Annotation, Entity, Event, Node, Relation, Span
from unbroken.tasks.adapt.extraction.answers import parse
from unbroken.tasks.adapt.extraction.schema import Schema


@dataclass(frozen=True)
class Extraction:
    """What was extracted from one text. `unreadable` are the types whose answer could not be read; `counts` says how
    many answers there were, how many of them were `unreadable` or `invalid` JSON, and how much in them was left out.
    """

    annotations: tuple[Annotation, ...] = ()
    unreadable: frozenset[str] = frozenset()
    counts: Mapping[str, int] = field(default_factory=dict)


def extracted(text: str, schema: Schema, replies: Iterable[tuple[Sequence[str], str]]) -> Extraction:
    """Return what the replies to the questions about `text` say; a reply is the asked types and the model's answer."""
    found: list[Annotation] = []
    unreadable: set[str] = set()
    counts = Counter[str]()
    for asked, reply in replies:
        answer = parse(reply, schema, asked)
        found += answer.annotations
        if not answer.readable:
            unreadable.update(asked)
        counts.update(
            answers=1,
            unreadable=not answer.readable,
            invalid=answer.readable and not answer.valid,
            malformed=answer.malformed,
            unasked=answer.unasked,
        )
    annotations, counts["unaligned"] = aligned(text, found)
    return Extraction(annotations, frozenset(unreadable), counts)


def as_labels(annotations: Iterable[Annotation]) -> list[dict[str, Any]]:
    """Return annotations as a cell of labelled rows, which `Labels` reads back."""
    return [_label(one) for one in annotations]


def _label(one: Annotation) -> dict[str, Any]:
    match one:
        case Entity():
            return {**_place(one.span), "type": one.type, "text": one.text}
        case Node():
            attributes: dict[str, list[str]] = {}
            for name, value in one.attributes:
                attributes.setdefault(name, []).append(value)
            return {**_place(one.span), "type": one.type, "text": one.text, "attributes": attributes}
        case Relation():
            ends = {}
            for end, text, kind, span in (
                ("head", one.head, one.head_type, one.head_span),
                ("tail", one.tail, one.tail_type, one.tail_span),
            ):
                ends[end] = _mention(text, span) | ({"type": kind} if kind else {})
            return {"relation": one.type, **ends}
        case Event():
            arguments = [{"role": each.role, **_mention(each.text, each.span)} for each in one.arguments]
            trigger = _mention(one.trigger, one.span) if one.trigger else ""
            return {"type": one.type, "trigger": trigger, "arguments": arguments}


def _mention(text: str, span: Span | None) -> dict[str, Any]:
    return {**_place(span), "text": text}


def _place(span: Span | None) -> dict[str, int]:
    return {} if span is None else {"start": span[0], "end": span[1]}
