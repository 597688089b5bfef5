"""Two runs side by side, as text."""

from __future__ import annotations

from collections.abc import Iterator

from unbroken.base.config import shown
from unbroken.base.words import number_of
from unbroken.run.compare import Compared
from unbroken.run.replay import CAUSES
from unbroken.tasks.diff import Diff
from unbroken.views.text import table

SHOWN_LINES = 5


def diff_text(found: Diff) -> str:
    """Return what differs, from what was told to what came out; what is equal is said too."""
    blocks = [_configuration(found), _environment(found), list(_steps(found)), list(_tensors(found))]
    if found.notes:
        blocks.append(["notes", *(f"  {text}" for text in found.notes)])
    if found.same:
        blocks.append(["everything that both hold, and that matters, is identical to the bit"])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _configuration(found: Diff) -> list[str]:
    changed = [*found.config, *found.inputs]
    if not changed:
        return ["configuration and inputs: the same"]
    rows = [(one.key, shown(one.first), shown(one.second), one.kind) for one in changed]
    lines = table(("key", found.first, found.second, "kind"), rows)
    row = found.first_changed_row
    return lines if row is None else [*lines, f"the first row that differs is row {row}"]


def _environment(found: Diff) -> list[str]:
    if not found.environment:
        return ["environment: the same in every segment"]
    lines = [f"  {text}" for text in found.environment[:SHOWN_LINES]]
    more = len(found.environment) - len(lines)
    return ["environment, against that of the first segment", *lines, *([f"  and {more} more"] if more else [])]


def _steps(found: Diff) -> Iterator[str]:
    if found.records is None:
        yield f"steps: {found.equal_steps:,} are on record in both, identical to the bit"
        return
    equal = number_of(found.equal_steps, "equal step")
    yield f"steps: {equal}, then step {found.first_step} differs in {found.differs}"
    yield f"  likely cause: {found.likely_cause}"
    one, other = found.records
    yield from (f"  {line}" for line in table(("", found.first, found.second), _values(one, other)))


def _values(one: dict[str, object], other: dict[str, object]) -> list[tuple[str, str, str]]:
    """Return both records with all their digits."""
    return [(key, repr(one.get(key)), repr(other.get(key))) for key in CAUSES]


def _tensors(found: Diff) -> Iterator[str]:
    for what, compared in found.tensors.items():
        yield f"tensors of {what}: {compared.identical:,} of {compared.total:,} identical to the bit"
        yield from (f"  {line}" for line in _different(compared))


def _different(compared: Compared) -> Iterator[str]:
    for one in compared.different[:SHOWN_LINES]:
        yield one.text
    if len(compared.different) > SHOWN_LINES:
        yield f"and {len(compared.different) - SHOWN_LINES} more"
