"""What must not change under a run, compared before anything is restored or moved."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from unbroken.base.config import parse_yaml, shown
from unbroken.base.errors import CannotContinueError, ConfigError

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


def require_same(
    recorded: Contract,
    asked: Contract,
    *,
    run: str,
    origins: Mapping[str, str],
    fork: str | None = None,
    anew: str = "choose a new output_dir",
    movable: bool = True,
) -> None:
    """Raise `CannotContinueError` listing every difference, both values, and where the new one came from.

    `fork` is the command that begins a new run with the state of this one and the values asked for, if it can; `anew`
    says how to begin one without it, and `movable` whether --restart can.
    """
    changed = differences(recorded, asked)
    if not changed:
        return
    lines = []
    for path, old, new in changed:
        name = path.removeprefix("config.")
        origin = origins.get(name.partition(".")[0]) or origins.get("model", "default")
        if path.endswith(DIGEST) or any(isinstance(side, dict) and side.keys() == {"digest"} for side in (old, new)):
            name, old, new = name.removesuffix(DIGEST), content_of(old), content_of(new)
        else:
            old, new = shown(old), shown(new)
        lines.append(f"{name}: {old} (this run) -> {new} ({origin})")
    raise CannotContinueError(
        f"{run} was started with another configuration: " + ", ".join(lines),
        why="going on would make neither the one model nor the other",
        next_step=ways_out(
            f"{anew} for a new run", fork, "--restart to move this run aside and start over" if movable else ""
        ),
    )


def content_of(digest: Any) -> str:
    """Return a digest, or what holds one, as people see it; nothing where only the other side has such an input."""
    found = digest.get("digest") if isinstance(digest, dict) else digest
    return f"content {found[:8]}" if found else "none"


def ways_out(anew: str, fork: str | None, restart: str) -> str:
    """Join what can be done instead; `fork` is a command."""
    ways = [anew, f"`{fork}` for a new run from the state of this one" if fork else "", restart]
    *others, last = [way for way in ways if way]
    return f"{', '.join(others)}, or {last}" if others else last


def fork_command(run: str, changes: Mapping[str, Any]) -> str:
    """Return the command that begins a new run with the state of `run` under changed values, ready to paste.

    NEW is left to choose.
    """
    settings = [f"--set {shlex.quote(f'{key}={_as_yaml(value)}')}" for key, value in changes.items()]
    return " ".join(["unbroken fork", shlex.quote(run), "NEW", *settings])


def _as_yaml(value: Any) -> str:
    """Return a value as `--set` reads it: text bare where that is still the same text."""
    if isinstance(value, str):
        with suppress(ConfigError):
            if value and parse_yaml(value, "") == value:
                return value
    return json.dumps(value, ensure_ascii=False)
