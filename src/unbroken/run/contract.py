"""What must not change under a run, compared before anything is restored or moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unbroken.base.config import shown
from unbroken.base.errors import CannotContinueError

Contract = dict[str, Any]
DIGEST = ".digest"


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted key, recorded value, asked value) for every leaf that differs."""
    found = []
    for key in [*recorded, *(key for key in asked if key not in recorded)]:
        old, new = recorded.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((f"{prefix}{key}", old, new))
    return found


def require_same(recorded: Contract, asked: Contract, *, run: str, origins: Mapping[str, str]) -> None:
    """Raise `CannotContinueError` listing every difference, both values, and where the new one came from."""
    changed = differences(recorded, asked)
    if not changed:
        return
    lines = []
    for path, old, new in changed:
        name = path.removeprefix("config.")
        origin = origins.get(name.partition(".")[0]) or origins.get("model", "default")
        if path.endswith(DIGEST):
            name, old, new = name.removesuffix(DIGEST), f"content {old[:8]}", f"content {new[:8]}"
        else:
            old, new = shown(old), shown(new)
        lines.append(f"{name}: {old} (this run) -> {new} ({origin})")
    raise CannotContinueError(
        f"{run} was started with another configuration: " + ", ".join(lines),
        why="going on would make neither the one model nor the other",
        next_step="choose a new output_dir for a new run, or --restart to move this run aside and start over",
    )
