"""Something else than the state changed between two commands: data, settings, threads, the place; or there are two."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.faults.inputs import read_rows, write_rows
from bench.faults.outcome import CRASH, EXACT, Outcome, conclude, undone
from bench.faults.systems import System

Rows = list[dict[str, Any]]


def changed_data(system: System) -> list[Outcome]:
    """The data file changed after step 14: a row edited, two swapped, all reversed, one appended, one gone."""
    changes: dict[str, Callable[[Rows], Rows]] = {
        "a row edited": lambda rows: [rows[0] | dict.fromkeys(TEXTS, "winter market"), *rows[1:]],
        "two rows swapped": lambda rows: [rows[1], rows[0], *rows[2:]],
        "rows in reverse order": lambda rows: rows[::-1],
        "a row appended": lambda rows: [*rows, rows[3] | {"anchor": "castle tower", "sentence1": "castle tower"}],
        "a row deleted": lambda rows: rows[:-1],
    }
    found = []
    for case, change in changes.items():
        original = system.stopped()
        rows = write_rows(Path(f"{original.output}.jsonl"), change(read_rows(Path(original.rows))))
        changed = replace(original, rows=str(rows))
        outcome = conclude(system, changed, case, oracle=original, asked=changed, repair=False)
        found.append(undone(system, changed, outcome, original))
    return found


TEXTS = ("anchor", "positive", "sentence1", "sentence2")


def changed_settings(system: System) -> list[Outcome]:
    """Settings that make another model, changed after step 14."""
    changes = {"learning_rate": 1e-4, "batch_size": 8, "seed": 7, "steps": 36, "accumulation": 2}
    found = []
    for name, value in changes.items():
        original = system.stopped()
        changed = replace(original, **{name: value})
        outcome = conclude(system, changed, f"{name} {value}", oracle=original, asked=changed, repair=False)
        found.append(undone(system, changed, outcome, original))
    return found


def changed_threads(system: System) -> list[Outcome]:
    """Begun on one core, gone on with on two."""
    original = system.stopped()
    changed = replace(original, threads=2)
    if system.sha256(system.golden(original)) == system.sha256(system.golden(changed)):
        return []  # the number of cores makes no difference to these weights: there is nothing to find
    outcome = conclude(system, changed, "one core, then two", oracle=original, harmless=True)
    return [replace(outcome, remark=f"{outcome.remark} (control: on two cores throughout, other bits)".strip())]


def moved_folder(system: System) -> list[Outcome]:
    """The run's folder moved, the command given with the new one."""
    original = system.stopped()
    moved = replace(original, output=f"{original.output}-moved")
    shutil.move(original.output, moved.output)
    return [conclude(system, moved, "folder moved", oracle=original)]


def other_cadence(system: System) -> list[Outcome]:
    """How often is logged, saved and evaluated, how many are kept, how many workers load, changed after step 14."""
    changes: dict[str, dict[str, Any]] = {
        "save_steps 4 to 3": {"save_steps": 3},
        "save_total_limit 2 to 5": {"keep": 5},
        "eval_steps none to 3": {"eval_steps": 3},
        "logging_steps 1 to 5": {"logging_steps": 5},
        "dataloader_num_workers 0 to 1": {"workers": 1},
    }
    found = []
    for case, change in changes.items():
        if system.name == "ours" and ("logging" in case or "workers" in case):
            continue  # there is no such setting
        original = system.stopped()
        changed = replace(original, **change)
        found.append(conclude(system, changed, case, oracle=original, harmless=True))
    return found


def two_processes(system: System, trials: int = 5) -> list[Outcome]:
    """The command given twice at the same time, or a little later; then, when both have ended, once more.

    In the last two trials the second command has another seed: somebody took the wrong folder.
    """
    found = []
    for number in range(trials):
        spec = system.spec(output=str(system.new_output()))
        delay = number * 0.1
        first = system.start(spec)
        time.sleep(delay)
        second = system.start(spec if number < trials - 2 else replace(spec, seed=spec.seed + 1))
        codes = system.server.wait(first), system.server.wait(second)
        made = system.sha256(spec.output) == system.sha256(system.golden(spec))
        outcome = conclude(system, spec, f"the second {delay:.1f} s later" + ", another seed" * (number >= trials - 2))
        if outcome.kind == EXACT and "Traceback" in system.log(spec).read_text(errors="replace"):
            outcome = replace(outcome, kind=CRASH)
        remark = f"exit codes {codes[0]} and {codes[1]}, model then {'exact' if made else 'not exact'}"
        found.append(replace(outcome, remark=f"{remark}. {outcome.remark}".strip()))
    return found
