"""What the journal proves about a run, counted from its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def proof(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Count segments, restores and replayed steps, and say whether every replayed step was identical.

    Where nothing was replayed the verdict is "not disproved", which is all that was checked. Of a fork it is about
    the steps after the one it begins with.
    """
    steps: set[int] = set()
    found: dict[str, Any] = {"segments": 0, "restores": 0, "replayed_steps": 0, "drift_from": None}
    first, forked = 0, ""
    for record in records:
        match record["kind"]:
            case "fork":
                first, forked = record["n"], origin(record)
                found["forked_at"] = first
            case "step" if record["n"] > first:
                steps.add(record["n"])
            case "segment":
                found["segments"] += 1
                took_over = bool(forked) and found["segments"] == 1
                found["restores"] += record["step"] > 0 and not took_over
            case "replay":
                found["replayed_steps"] += record["count"]
            case "drift":
                found["drift_from"] = min(record["n"], found["drift_from"] or record["n"])
    found["recorded_steps"] = len(steps)
    found["missing_steps"] = max(steps, default=first) - first - len(steps)
    found["verdict"] = f"{forked}; from there {verdict(found)}" if forked else verdict(found)
    return found


def segment_proof(segment: int, began: int, replayed: int, recorded: int, drift_from: int | None) -> dict[str, Any]:
    """Return what one segment proves, the `segment`-th of its run, in the terms of `proof` and about itself alone.

    It began after step `began`, made `replayed` steps again and `recorded` for the first time.
    """
    found: dict[str, Any] = {
        "segments": 1,
        "restores": int(began > 0),
        "replayed_steps": replayed,
        "drift_from": drift_from,
        "recorded_steps": recorded,
        "missing_steps": 0,
    }
    return found | {"verdict": verdict(found | {"segments": segment})}


def origin(fork: Mapping[str, Any]) -> str:
    """Return in words what a fork (its record, or the parent in its run.json) comes from and what it changed."""
    step = fork["n"] if "n" in fork else fork["step"]
    return f"forked from {fork['run']} at step {step} (changed: {', '.join(fork['changed']) or 'nothing'})"


def verdict(found: dict[str, Any]) -> str:
    """Return in words what was checked, and no more than that."""
    if found["drift_from"]:
        return f"exact up to step {found['drift_from'] - 1}, inexact from there (drift was accepted)"
    if found["missing_steps"]:
        missing = found["missing_steps"]
        return f"{missing} {'step has' if missing == 1 else 'steps have'} no record: unproved"
    if found["replayed_steps"]:
        count = found["replayed_steps"]
        return f"{count} replayed {'step' if count == 1 else 'steps'} identical to the bit"
    return "uninterrupted" if found["segments"] == 1 else "not disproved (nothing was replayed)"
