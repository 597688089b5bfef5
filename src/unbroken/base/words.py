"""Words for people."""

from __future__ import annotations


def number_of(count: int, thing: str) -> str:
    """Return a count and what is counted: 1 step, 1,200 steps."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
