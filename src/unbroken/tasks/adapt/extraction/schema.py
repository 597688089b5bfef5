"""What may be extracted: types in their order, what belongs to each, and the phrases that stand for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError
from unbroken.base.reading import read_document
from unbroken.tasks.adapt.extraction.annotations import Annotation, Event, Node, Relation, even
from unbroken.tasks.adapt.extraction.config import ExtractionConfig, Kind, SchemaValue

WITH_PARTS = {"ee": "roles", "eea": "roles", "kg": "attributes", "spo": "pairs of head and tail type"}
SHOWN_TYPES = 8
DEEPKE_LINE = {"ner": 0, "eet": 0, "re": 1, "ee": 2, "eea": 2, "kg": 2}  # types; relations; type -> roles


@dataclass(frozen=True)
class Schema:
    """The types of one kind. `parts` holds each type's roles or attributes, or its pairs of types; `names` phrases."""

    kind: Kind
    types: tuple[str, ...]
    parts: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each type in the order."""
        return {name: place for place, name in enumerate(self.types)}

    @cached_property
    def phrases(self) -> dict[str, str]:
        """What the model sees and writes for each type."""
        return {name: self.names.get(name, name) for name in self.types}

    @cached_property
    def by_phrase(self) -> dict[str, str]:
        """Each type by its phrase, letters' case and white space evened out; exact phrases win over those."""
        loose = {folded(phrase): name for name, phrase in reversed(self.phrases.items())}
        return loose | {phrase: name for name, phrase in self.phrases.items()}

    def type_of(self, phrase: str) -> str | None:
        """Return the type that a model means by a phrase, None if it means none."""
        return self.by_phrase.get(phrase) or self.by_phrase.get(folded(phrase))

    def value(self) -> Any:
        """Return the whole as a JSON value, for a digest."""
        return [self.kind, list(self.types), {name: list(parts) for name, parts in self.parts.items()}]

    def named(self, names: Mapping[str, str]) -> Schema:
        """Return this schema with phrases for types. Raises `ConfigError` for an unknown type or a shared phrase."""
        for name in names:
            if name not in self.places:
                raise ConfigError(f"extraction.names: there is no type '{name}'", next_step=self.hint(name))
        phrases: dict[str, str] = {}
        for name in self.types:
            phrase = folded(names.get(name, name))
            if not phrase or phrase in phrases:
                other = f"as '{phrases[phrase]}' has" if phrase else "empty"
                raise ConfigError(
                    f"extraction.names: the phrase of type '{name}' is {'the same ' if phrase else ''}{other}",
                    why="an answer could not be told apart",
                    next_step="give each type a phrase of its own",
                )
            phrases[phrase] = name
        return Schema(self.kind, self.types, self.parts, dict(names))

    def hint(self, name: str) -> str:
        """Return which types there are, or the one most like `name`."""
        near = closest(name, self.types)
        more = ", ..." if len(self.types) > SHOWN_TYPES else ""
        return f"did you mean '{near}'?" if near else f"the types are {', '.join(self.types[:SHOWN_TYPES])}{more}"


def folded(phrase: str) -> str:
    """Return a phrase as it is looked up when a model did not write it to the letter."""
    return even(phrase).casefold()


def derived(kind: Kind, annotations: Iterable[Iterable[Annotation]]) -> Schema:
    """Return the schema of what occurs, sorted: types, and the parts seen with each."""
    parts: dict[str, set[Any]] = {}
    for row in annotations:
        for one in row:
            seen = parts.setdefault(one.type, set())
            match one:
                case Event() if kind in ("ee", "eea"):
                    seen.update(each.role for each in one.arguments)
                case Node():
                    seen.update(name for name, _ in one.attributes)
                case Relation() if kind == "spo":
                    seen.add((one.head_type, one.tail_type))
    types = tuple(sorted(parts))
    return Schema(kind, types, {name: tuple(sorted(parts[name])) for name in types} if kind in WITH_PARTS else {})


def given(config: ExtractionConfig) -> Schema | None:
    """Return the schema a configuration gives, None if it leaves it to the data.

    Raises `ConfigError` for a file that cannot be read and for a schema that does not fit the kind.
    """
    value: Any = config.schema
    if value is None:
        return None
    place = "extraction.schema"
    if isinstance(value, str):
        place, value = value, from_file(Path(value), config.kind)
    return checked(config.kind, value, place)


def from_file(path: Path, kind: Kind) -> SchemaValue:
    """Return what a file says: one JSON value, or DeepKE's three lines. Raises `ConfigError`."""
    try:
        text = read_document(path).decode()
    except OSError as failure:
        raise ConfigError(
            f"extraction.schema: {path} cannot be read: {failure.strerror or failure}", next_step="correct the path"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"extraction.schema: {path} is not UTF-8", next_step="save it as UTF-8") from None
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        pass
    try:
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as failure:
        raise ConfigError(
            f"extraction.schema: {path} is not JSON: {failure}",
            next_step="write one JSON value, or DeepKE's three lines: types, roles, type -> roles",
        ) from None
    if len(lines) != 3 or kind not in DEEPKE_LINE:
        advice = f"write {shape(kind)} as one JSON value"
        raise ConfigError(
            f"extraction.schema: {path} has {len(lines)} lines of JSON, no schema of {kind}", next_step=advice
        )
    return lines[DEEPKE_LINE[kind]]  # type: ignore[no-any-return]


def shape(kind: Kind) -> str:
    """Return how a schema of a kind is written."""
    return f"type -> {WITH_PARTS[kind]}" if kind in WITH_PARTS else "a list of types"


def checked(kind: Kind, value: Any, place: str) -> Schema:
    """Return a schema from its JSON value. Raises `ConfigError`, naming `place`, for one that does not fit the kind."""
    if not value or isinstance(value, dict) != (kind in WITH_PARTS) or not isinstance(value, dict | list):
        raise ConfigError(f"{place}: a schema of kind '{kind}' is {shape(kind)}", next_step="write it like that")
    for name in value:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{place}: {json.dumps(name)} is no type", next_step="types are texts that are not empty")
    if len(set(value)) < len(value):
        twice = next(name for name in value if list(value).count(name) > 1)
        raise ConfigError(f"{place}: the type '{twice}' is there twice", next_step="leave one of them out")
    if isinstance(value, list):
        return Schema(kind, tuple(value))
    return Schema(kind, tuple(value), {name: _parts(kind, name, parts, place) for name, parts in value.items()})


def _parts(kind: Kind, name: str, parts: Any, place: str) -> tuple[Any, ...]:
    if kind == "spo":
        pairs = [parts] if isinstance(parts, list) and parts and isinstance(parts[0], str) else parts
        if isinstance(pairs, list) and pairs and all(_is_texts(pair) and len(pair) == 2 for pair in pairs):
            return tuple(map(tuple, pairs))
    elif _is_texts(parts) and len(set(parts)) == len(parts):
        return tuple(parts)
    raise ConfigError(
        f"{place}: what belongs to '{name}' should be {WITH_PARTS[kind]}, each once",
        next_step=f"write {name}: [[person, city]]" if kind == "spo" else f"write {name}: [first, second]",
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value)
