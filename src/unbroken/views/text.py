"""Values as people read them: sizes, durations, shares, aligned tables; plain text, no ANSI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unbroken.run.findings import Section, is_table
from unbroken.views.terminal import clock_time

UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Return a number of bytes with three digits or so: 87 B, 90.9 MB."""
    unit = 0
    while abs(count) >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {UNITS[unit]}"


def cell(name: str, value: Any) -> str:
    """Return a value in the unit its name ends with."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and name.endswith("bytes"):
        return size(value)
    if isinstance(value, int | float) and name.endswith("share"):
        return f"{value:.1%}"
    if isinstance(value, int | float) and name.endswith("seconds"):
        return clock_time(value) if value >= 60 else f"{value:.3g} s"
    if isinstance(value, float):
        return f"{value:,.0f}" if value == round(value) and abs(value) >= 1000 else f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {cell(str(key), item)}" for key, item in value.items())
    return " ".join(", ".join(map(str, value)).split() if isinstance(value, list | tuple) else str(value).split())


def label(name: str) -> str:
    """Return a name without its unit, in words."""
    for unit in ("_bytes", "_seconds", "_share"):
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return aligned lines; numbers stand to the right. A heading names the unit of its column, as `cell` reads it."""
    rows = list(rows)
    numeric = [
        all(isinstance(row[i], int | float | None) and not isinstance(row[i], bool) for row in rows)
        for i in range(len(headings))
    ]
    lines = [[label(heading) for heading in headings]]
    lines += [[cell(heading, value) for heading, value in zip(headings, row, strict=True)] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]


def section_lines(section: Section) -> list[str]:
    """Return a section as lines: its title, then a line for each value, then its warnings."""
    lines = [label(section.title)]
    plain = {name: value for name, value in section.values.items() if not is_table(value)}
    width = max((len(label(name)) for name in plain), default=0)
    for name, value in section.values.items():
        if is_table(value):
            headings = list(dict.fromkeys(key for row in value.values() for key in row))
            rows = [[key, *(row.get(heading) for heading in headings)] for key, row in value.items()]
            lines += [f"  {line}" for line in table([name, *headings], rows)]
        elif isinstance(value, list):
            lines += [f"  - {item}" for item in value]
        else:
            lines.append(f"  {label(name):<{width}}  {cell(name, value)}".rstrip())
    return lines + [f"  warning: {' '.join(text.split())}" for text in section.warnings]


def page(sections: Iterable[Section]) -> str:
    """Return sections as one text, an empty line between them."""
    return "\n\n".join("\n".join(section_lines(section)) for section in sections)
