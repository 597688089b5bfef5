"""Schemas of every kind and annotations that fit them, drawn at random."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from unbroken.tasks.adapt.extraction.annotations import Annotation, Argument, Entity, Event, Node, Relation
from unbroken.tasks.adapt.extraction.schema import Schema

TYPES = ("person", "born in", "地点", 'odd"type')
PARTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ee": dict.fromkeys(TYPES, ("who", "where")),
    "eea": dict.fromkeys(TYPES, ("who", "where")),
    "kg": dict.fromkeys(TYPES, ("age", "job")),
    "spo": dict.fromkeys(TYPES, (("a", "b"), ("b", "a"))),
}
KINDS = ("ner", "re", "ee", "eet", "eea", "spo", "kg")
WORDS = st.text(min_size=1, max_size=8).filter(
    lambda text: bool(text.strip()) and text != "NAN" and not any("\ud800" <= letter <= "\udfff" for letter in text)
)


def schema_of(kind: str) -> Schema:
    return Schema(kind, TYPES, PARTS.get(kind, {}))  # type: ignore[arg-type]


@st.composite
def annotations(draw: st.DrawFn, kind: str, words: st.SearchStrategy[str] = WORDS) -> tuple[Annotation, ...]:
    """Annotations in the order of an answer: by type, roles in the order of the schema, no entity of `kg` twice."""
    found: list[Annotation] = []
    for name in TYPES:
        for _ in range(draw(st.integers(0, 3))):
            match kind:
                case "ner":
                    found.append(Entity(name, draw(words)))
                case "re":
                    found.append(Relation(name, draw(words), draw(words)))
                case "spo":
                    found.append(Relation(name, draw(words), draw(words), *draw(st.sampled_from(PARTS["spo"][name]))))
                case "eet":
                    found.append(Event(name, draw(words)))
                case "kg":
                    pairs = parts(draw, words, PARTS["kg"][name])
                    found.append(Node(name, draw(words), tuple(pairs)))
                case _:
                    arguments = tuple(Argument(*pair) for pair in parts(draw, words, PARTS[kind][name]))
                    trigger = draw(st.one_of(st.just(""), words)) if kind == "ee" else ""
                    found.append(Event(name, trigger, arguments))
    if kind == "kg":
        return tuple({(one.type, one.text): one for one in found if isinstance(one, Node)}.values())
    return tuple(found)


def parts(draw: Any, words: st.SearchStrategy[str], names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, value) for name in names for value in draw(st.lists(words, max_size=3))]
