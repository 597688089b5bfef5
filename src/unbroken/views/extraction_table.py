"""How good extraction is, by type and by kind of error, as text."""

from __future__ import annotations

from typing import Any

from unbroken.base.words import number_of
from unbroken.tasks.adapt.extraction.scores import ERRORS, Counts, Scores
from unbroken.views.text import table

WHOLE = "all (micro)"
MEAN = "mean (macro)"
SHOWN_TYPES = 60
REASONS = {
    "unreadable": "of which nothing could be read",
    "invalid": "that were not JSON, but could be read",
    "malformed": "values of the wrong shape",
    "unasked": "types nobody asked for",
    "unaligned": "mentions that are not in the text",
}


def extraction_text(scores: Scores) -> str:
    """Return the table by type, and what else there is to know of the answers; of many types, the most frequent."""
    rows = scores.table()
    shown = sorted(rows, key=lambda row: -row.wanted)[:SHOWN_TYPES]
    headings = ("type", "precision", "recall", "F1", "wanted", "predicted", *ERRORS)
    lines: list[list[Any]] = [
        [
            row.type,
            *map(share, (row.precision, row.recall, row.f1)),
            row.wanted,
            row.predicted,
            *(row.errors[error] for error in ERRORS),
        ]
        for row in rows
        if row in shown
    ]
    totals = [sum(row.errors[error] for row in rows) for error in ERRORS]
    if len(scores.groups) > 1:
        lines += [_group(name, one) for name, one in scores.groups.items()]
    lines.append([*_group(WHOLE, scores.overall)[: -len(ERRORS)], *totals])
    figures = scores.metrics()
    macro = (share(figures[f"macro_{name}"]) for name in ("precision", "recall", "f1"))
    lines.append([MEAN, *macro, *[None] * (2 + len(ERRORS))])
    if scores.spans is not None and scores.spans.wanted:
        lines.append(_group("by place in the text", scores.spans))
    text = table(headings, lines)
    if len(rows) > len(shown):
        text.append(f"and {number_of(len(rows) - len(shown), 'type')} less frequent than these")
    text.append("")
    text.append(f"{number_of(scores.num_rows, 'row')}, {number_of(scores.counts['answers'], 'answer')}")
    text += [f"  {scores.counts[name]:,} {what}" for name, what in REASONS.items() if scores.counts[name]]
    return "\n".join(text)


def _group(name: str, one: Counts) -> list[Any]:
    shares = map(share, (one.precision, one.recall, one.f1))
    return [name, *shares, one.wanted, one.predicted, *[None] * len(ERRORS)]


def share(value: float) -> str:
    """Return a share as it is shown."""
    return f"{value:.3f}"
