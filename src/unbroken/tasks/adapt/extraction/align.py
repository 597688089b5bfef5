"""Where in a text the mentions of an answer stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from unbroken.tasks.adapt.extraction.annotations import Annotation, Argument, Entity, Event, Node, Relation, Span


def occurrences(text: str, mention: str) -> list[Span]:
    """Return where `mention` stands in `text`, those at borders of words first; letters' case and white space count.

    If it stands nowhere like that, where it does if case and the length of white space do not count.
    """
    parts = mention.split()
    if not parts:
        return []
    exact = [match.span() for match in re.finditer(re.escape(mention.strip()), text)]
    loose = re.compile(r"\s+".join(map(re.escape, parts)), re.IGNORECASE)
    found = exact or [match.span() for match in loose.finditer(text)]
    return sorted(found, key=lambda span: not stands_alone(text, span))


def stands_alone(text: str, span: Span) -> bool:
    """Whether a span neither begins nor ends within a word of an alphabet; Chinese has no borders to break."""
    return not any(0 < at < len(text) and _joined(text[at - 1], text[at]) for at in span)


def _joined(left: str, right: str) -> bool:
    return all(letter.isalnum() and letter < "\u2e80" for letter in (left, right))


def place(text: str, mentions: Sequence[tuple[str, str]]) -> list[Span | None]:
    """Return a span for each mention, a pair of type and text; None for one that is not there, or not that often.

    The same text again has the next occurrence. Longer mentions choose first, so that a part of one is not taken for
    itself; an occurrence inside another mention is used where there is no other, and a span twice only under two types.
    """
    spans: list[Span | None] = [None] * len(mentions)
    used: set[tuple[str, Span]] = set()
    taken: set[Span] = set()
    for number in sorted(range(len(mentions)), key=lambda number: -len(mentions[number][1])):
        kind, mention = mentions[number]
        free = [span for span in occurrences(text, mention) if (kind, span) not in used]
        apart = [span for span in free if not any(overlap(span, other) for other in taken)]
        chosen = next(iter(apart or free), None)
        if chosen is not None:
            spans[number] = chosen
            used.add((kind, chosen))
            taken.add(chosen)
    return spans


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans share a character."""
    return one[0] < other[1] and other[0] < one[1]


def aligned(text: str, annotations: Iterable[Annotation]) -> tuple[tuple[Annotation, ...], int]:
    """Return annotations with the spans of their mentions, and how many mentions are not in the text.

    What is named more than once in relations and arguments may be one mention: those have the first occurrence.
    """
    annotations = tuple(annotations)
    heads = [one for one in annotations if isinstance(one, Entity | Node)]
    events = [one for one in annotations if isinstance(one, Event) and one.trigger]
    placed = iter(place(text, [(one.type, one.text) for one in heads]))
    triggers = iter(place(text, [(one.type, one.trigger) for one in events]))
    found: list[Annotation] = []
    missing = 0
    for one in annotations:
        spans: list[Span | None]
        match one:
            case Entity() | Node():
                spans = [next(placed)]
                found.append(replace(one, span=spans[0]))
            case Relation():
                spans = [anywhere(text, one.head), anywhere(text, one.tail)]
                found.append(replace(one, head_span=spans[0], tail_span=spans[1]))
            case Event():
                spans = [next(triggers)] if one.trigger else []
                arguments = tuple(Argument(each.role, each.text, anywhere(text, each.text)) for each in one.arguments)
                found.append(replace(one, span=spans[0] if spans else None, arguments=arguments))
                spans += [each.span for each in arguments]
        missing += spans.count(None)
    return tuple(found), missing


def anywhere(text: str, mention: str) -> Span | None:
    """Return the first occurrence of a mention, None if there is none."""
    return next(iter(occurrences(text, mention)), None)
