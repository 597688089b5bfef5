"""Runs as text: a list of them, or one with its segments, losses, checkpoints, evaluations and proof."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from unbroken.run.contract import differences
from unbroken.run.proof import origin
from unbroken.run.summary import CheckpointSummary, RunSummary, Segment
from unbroken.store.lock import describe
from unbroken.views.text import cell, size, table

SHOWN_SEGMENTS = 20
SHOWN_EVALUATIONS = 10
SHOWN_METRICS = 4


def runs_text(runs: Sequence[RunSummary]) -> str:
    """Return a line for each run, and one for whatever is wrong with it."""
    headings = ("name", "task", "state", "step", "best", "last", "metric", "segments", "size_bytes")
    rows = [
        (
            run.name,
            run.task,
            run.state,
            of(run.step, run.total_steps),
            run.best_metric,
            run.last_metric,
            run.metric,
            run.num_segments,
            run.size_bytes,
        )
        for run in runs
    ]
    return "\n".join([*table(headings, rows), *(f"{run.name}: {text}" for run in runs for text in run.problems)])


def run_text(run: RunSummary) -> str:
    """Return all there is to say about one run."""
    blocks = [
        identity(run),
        stand(run),
        segments(run.segments),
        environment(run.segments),
        checkpoints(run.checkpoints),
        evaluations(run),
    ]
    if run.proof:
        blocks.append([f"proof: {run.proof['verdict']}"])
    if run.problems:
        blocks.append(["problems", *(f"  {text}" for text in run.problems)])
    if run.resume:
        blocks.append([f"to go on: {run.resume}"])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def identity(run: RunSummary) -> list[str]:
    """Return what the run is, and the configuration that makes it so."""
    values = {
        "run": run.path,
        "run id": run.run_id,
        "created": run.created,
        "parent": run.parent if run.parent is None or run.parent.get("kind") != "fork" else origin(run.parent),
        "data": run.data,
        "size": size(run.size_bytes),
    }
    values |= {key: value for key, value in run.config.items() if value not in (None, {}, [])}
    width = max(map(len, values))
    return [f"{name:<{width}}  {cell(name, value)}" for name, value in values.items() if value not in (None, {}, [])]


def stand(run: RunSummary) -> list[str]:
    """Return how far the run has come and who holds it."""
    lines = [f"{run.state}: step {of(run.step, run.total_steps)}"]
    if run.metric:
        lines.append(f"{run.metric}: best {cell('', run.best_metric)}, last {cell('', run.last_metric)}")
    if run.stopped_in_set_up:
        lines.append(f"the last start was stopped before its first step: {run.stopped_in_set_up}")
    if run.held_by is not None:
        lines.append(f"held by {describe(run.held_by or None)}")
    if run.checkpoints:
        newest = run.newest_good_step
        lines.append("no checkpoint verifies" if newest is None else f"safe up to step {newest:,}")
    return lines


def segments(found: Sequence[Segment]) -> list[str]:
    """Return a line for each segment, and for each restore the losses on both sides of it."""
    if not found:
        return []
    shown = found[-SHOWN_SEGMENTS:]
    headings = ("segment", "began", "host", "from_step", "to_step", "replayed", "ended")
    rows = [(s.number, s.began, s.host, s.from_step, s.to_step, s.replayed or None, s.ended) for s in shown]
    lines = table(headings, rows)
    if len(found) > len(shown):
        lines.append(f"and {len(found) - len(shown)} segments before these")
    boundaries = [
        (
            s.number,
            s.before["n"],
            s.before["loss"],
            s.before["learning_rate"],
            s.after["loss"],
            s.after["learning_rate"],
        )
        for s in shown
        if s.before and s.after
    ]
    if boundaries:
        sides = ("segment", "went_on_after_step", "loss_before", "rate_before", "loss_after", "rate_after")
        lines += ["", *table(sides, boundaries)]
    return lines


def environment(found: Sequence[Segment]) -> list[str]:
    """Return where the last segment ran and by which command, and what had changed since the one before."""
    if not found:
        return []
    last = found[-1]
    values = {
        "command": shlex.join(last.command),
        "folder": last.folder,
        "host": last.host,
        **{key: value for key, value in last.environment.items() if key != "versions"},
        **{f"{name} version": version for name, version in last.environment.get("versions", {}).items()},
    }
    for before, after in pairwise(found):
        changed = differences(before.environment, after.environment)
        if changed:
            values[f"changed in segment {after.number}"] = "; ".join(f"{key}: {a} -> {b}" for key, a, b in changed)
    values = {name: value for name, value in values.items() if value not in (None, "")}
    width = max(map(len, values), default=0)
    return [f"{name:<{width}}  {value}" for name, value in values.items()]


def checkpoints(found: Sequence[CheckpointSummary]) -> list[str]:
    """Return a line for each checkpoint, and what is wrong with it."""
    rows = [(one.step, one.size_bytes, "; ".join(one.problems) if one.problems else "yes") for one in found]
    return table(("checkpoint", "size_bytes", "verifies"), rows) if rows else []


def evaluations(run: RunSummary) -> list[str]:
    """Return the main metric and a few others after each evaluated step."""
    if not run.evaluations:
        return []
    steps = sorted(run.evaluations)
    names = list(dict.fromkeys([run.metric, *run.evaluations[steps[-1]]]))[:SHOWN_METRICS]
    rows: list[list[Any]] = [
        [step, *(run.evaluations[step].get(name or "") for name in names)] for step in steps[-SHOWN_EVALUATIONS:]
    ]
    lines = table(["evaluation", *map(str, names)], rows)
    left_out = len(steps) - len(rows)
    return [*lines, f"and {left_out} evaluations before these"] if left_out > 0 else lines


def of(step: int, total: int | None) -> str:
    """Return how many steps are done of how many."""
    return f"{step:,} of {total:,}" if total else f"{step:,}"
