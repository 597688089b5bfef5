"""Annotations from the cells of labelled rows, and one clear line about a cell that holds none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeGuard

from unbroken.base.errors import DataError
from unbroken.tasks.adapt.extraction.annotations import Annotation, Argument, Entity, Event, Node, Relation, Span
from unbroken.tasks.adapt.extraction.config import Format, Kind

# What a value is called in rows with spans, and in DeepKE's.
NAMES: dict[str, tuple[str, str]] = {
    "entity": ("text", "entity"),
    "entity type": ("type", "entity_type"),
    "trigger": ("trigger", "event_trigger"),
    "event type": ("type", "event_type"),
    "argument": ("text", "argument"),
    "relation": ("relation", "relation"),
}
LAYOUTS: dict[Format, tuple[int, ...]] = {"auto": (0, 1), "spans": (0,), "conll": (0,), "deepke": (1,)}
NO_TRIGGER = ("", "NAN")  # DeepKE's word for what is not there
SHOWN_LETTERS = 40

Item = Mapping[str, Any]


class Labels:
    """Reads the cells of one kind, in one layout or, with `auto`, in whichever an item is."""

    def __init__(self, kind: Kind, layout: Format):
        self.names = {value: tuple(both[place] for place in LAYOUTS[layout]) for value, both in NAMES.items()}
        self.typed, self.triggered = kind == "spo", kind == "eet"
        self.read = {"ner": self._entity, "kg": self._node, "re": self._relation, "spo": self._relation}.get(
            kind, self._event
        )

    def annotations(self, cell: Any, text: str, place: str) -> tuple[Annotation, ...]:
        """Return what one cell says of `text`. Raises `DataError` beginning with `place` and the number of the item."""
        if isinstance(cell, str):  # a csv file has nothing but text
            try:
                cell = json.loads(cell) if cell.strip() else []
            except (ValueError, RecursionError):
                raise wrong(place, f"holds {shown(cell)}, not a list of objects") from None
        if not isinstance(cell, list):
            raise wrong(place, f"holds {shown(cell)}, not a list of objects")
        found: list[Annotation] = []
        placed: set[tuple[str, Span]] = set()
        for number, item in enumerate(cell, 1):
            where = f"{place}, item {number}"
            if not isinstance(item, Mapping):
                raise wrong(where, f"is {shown(item)}, not an object")
            one = self.read(item, text, where)
            if isinstance(one, Entity | Node) and one.span is not None:
                if (one.type, one.span) in placed:
                    raise wrong(where, f"says a second time that '{one.text}' is of type '{one.type}'")
                placed.add((one.type, one.span))
            found.append(one)
        return tuple(found)

    def _entity(self, item: Item, text: str, where: str) -> Annotation:
        kind = self._word(item, "entity type", where)
        return Entity(kind, *self._mention(item, "entity", text, where))

    def _node(self, item: Item, text: str, where: str) -> Annotation:
        kind = self._word(item, "entity type", where)
        mention, span = self._mention(item, "entity", text, where)
        attributes = {} if item.get("attributes") is None else item["attributes"]
        if not isinstance(attributes, Mapping):
            raise wrong(where, f"has attributes that are {shown(attributes)}, not an object of names and values")
        pairs = []
        for name, values in attributes.items():
            if values is None:  # parquet gives every row every name
                continue
            for value in values if isinstance(values, list) else [values]:
                if not is_word(name) or not is_word(value):
                    raise wrong(where, f"has {shown(value)} as the attribute {shown(name)}, where text is expected")
                pairs.append((name, value))
        return Node(kind, mention, tuple(pairs), span)

    def _relation(self, item: Item, text: str, where: str) -> Annotation:
        kind = self._word(item, "relation", where, "type")
        (head, head_type, head_span), (tail, tail_type, tail_span) = (
            self._end(item, end, text, where) for end in ("head", "tail")
        )
        return Relation(kind, head, tail, head_type, tail_type, head_span, tail_span)

    def _end(self, item: Item, end: str, text: str, where: str) -> tuple[str, str, Span | None]:
        """Return one end of a relation: the mention, its type where types count, and its place."""
        value, span = item.get(end), None
        if isinstance(value, Mapping):
            mention, span = self._mention(value, "entity", text, f"{where}, {end}")
            own = value.get("type", item.get(f"{end}_type"))
        else:
            mention, own = self._plain(item, end, where), item.get(f"{end}_type")
        if not self.typed:
            return mention, "", span
        if not is_word(own):
            raise wrong(where, f"has no {end}_type", "add it, or use kind: re for relations without types")
        return mention, str(own), span

    def _event(self, item: Item, text: str, where: str) -> Annotation:
        kind = self._word(item, "event type", where)
        key = self._key(item, "trigger")
        trigger: tuple[str, Span | None] = ("", None)
        if isinstance(item.get(key), Mapping):
            trigger = self._mention(item[key], "entity", text, f"{where}, {key}")
        elif item.get(key, "") not in NO_TRIGGER and item[key] is not None:
            trigger = self._plain(item, key, where), None
        if self.triggered and not trigger[0]:
            raise wrong(where, "has no trigger, which is all that kind: eet extracts", "add it or leave the event out")
        arguments = [] if item.get("arguments") is None else item["arguments"]
        if not isinstance(arguments, list):
            raise wrong(where, f"has arguments that are {shown(arguments)}, not a list")
        found = []
        for number, argument in enumerate(arguments, 1):
            inside = f"{where}, argument {number}"
            if not isinstance(argument, Mapping):
                raise wrong(inside, f"is {shown(argument)}, not an object")
            role = self._plain(argument, "role", inside)
            found.append(Argument(role, *self._mention(argument, "argument", text, inside)))
        return Event(kind, trigger[0], tuple(found), trigger[1])

    def _key(self, item: Item, value: str) -> str:
        """Return what a value is called in an item; if it is not there, what it should be called."""
        names = self.names[value]
        return next((name for name in names if name in item), names[0])

    def _word(self, item: Item, value: str, where: str, other: str | None = None) -> str:
        key = self._key(item, value)
        return self._plain(item, other if other and key not in item else key, where)

    def _plain(self, item: Item, key: str, where: str) -> str:
        """Return a text that must not be empty."""
        if key not in item:
            raise wrong(where, f"has no '{key}'", f"it has {', '.join(map(str, item)) or 'nothing'}; name it '{key}'")
        if not is_word(item[key]):
            raise wrong(where, f"has {shown(item[key])} as '{key}', where text is expected that is not empty")
        return str(item[key])

    def _mention(self, item: Item, value: str, text: str, where: str) -> tuple[str, Span | None]:
        """Return a mention and where it stands; its text may be left out where start and end are given."""
        start, end, key = item.get("start"), item.get("end"), self._key(item, value)
        if start is None and end is None:
            return self._plain(item, key, where), None
        if not is_index(start) or not is_index(end):
            raise wrong(where, f"has start {shown(start)} and end {shown(end)}, where two whole numbers are expected")
        if not 0 <= start < end <= len(text):
            problem = f"goes from {start} to {end} in a text of {len(text)} characters"
            raise wrong(where, problem, "count from 0, end behind the last character")
        there = text[start:end]
        if not is_word(there):
            raise wrong(where, f"marks characters {start} to {end}, which are white space")
        if item.get(key) is not None and item[key] != there:
            problem = f"is {shown(item[key])}, but characters {start} to {end} are {shown(there)}"
            raise wrong(where, problem, "count characters, not bytes, from 0, end behind the last")
        return there, (start, end)


def is_word(value: Any) -> bool:
    """Whether a value is text with something in it and a UTF-8 form, which half a surrogate pair lacks."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_index(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Return a value as JSON, in a few characters."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    text = text if not isinstance(value, str) else ascii(value) if not is_word(value) else repr(value)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."


def wrong(place: str, problem: str, advice: str = "correct it or remove the row") -> DataError:
    """Return the error about one cell or one item in it."""
    return DataError(f"{place} {problem}", next_step=advice)
