"""What was found out about a run, a configuration or a folder, as values: one form for people and programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """One thing that was looked at.

    A key of `values` ends in the unit of its value where it has one: `_bytes`, `_seconds`, `_share`. A mapping of
    mappings is a table: its keys name the rows. `details` are for programs only; `warnings` are whole sentences.
    """

    title: str
    values: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def is_table(value: Any) -> bool:
    """Tell whether a value is a table: a mapping of mappings."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(row, Mapping) for row in value.values())


def flat(sections: Iterable[Section]) -> dict[str, Any]:
    """Return every value of the sections under one dotted key, as `--json` prints them."""
    found: dict[str, Any] = {}
    for section in sections:
        for key, value in {**section.details, **section.values}.items():
            if is_table(value):
                for row, cells in value.items():
                    found |= {f"{section.title}.{key}.{row}.{name}": cell for name, cell in cells.items()}
            else:
                found[f"{section.title}.{key}"] = value
    return found
