"""The board in Markdown: a table, what the words mean, what was run, and every case."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.faults.outcome import EXACT, KINDS, NOT_RUN, Outcome
from bench.faults.rows import ROWS
from bench.faults.server import REPOSITORY
from bench.faults.systems import TITLES
from bench.faults.trainers import Spec, peer_arguments

PACKAGES = ("unbroken", "torch", "transformers", "sentence-transformers", "accelerate", "datasets")
PLACES = ("outside a save", "during a save", "after the end")


@dataclass(frozen=True)
class Cell:
    """What became of one row for one system, when, at which commit, and how long it took."""

    outcomes: list[Outcome]
    date: str
    commit: str
    seconds: float


Cells = Mapping[tuple[str, str], Cell]

HOW = """\
Each case is a real process that trains a model of two layers with dropout on a CPU (24 steps of 4 rows, 11 steps an
epoch, a save every 4 steps, 2 kept), is struck, and is then given **the same command again**. The oracle is an
uninterrupted run of the same command by the same system in the same environment: SHA-256 of the finished weights, and
the recorded losses. A case of a row in which nothing is said otherwise begins from a run killed after step 14. Where
the command fails, the newest checkpoint is deleted by hand and the command given again; the remark says what came of
it. The same code judges all systems. Processes are forked from one that has imported what the system imports, and has
done nothing else.

The faults are not equally likely in life. In a run this small a save is a large part of the time, so random kills hit
saves much more often than they would in a long training; row 1 tells the two apart.

"Said" is a line that neither an uninterrupted run nor a plain resume prints, at `log_level="info"` for the peers.
A traceback counts as a refusal if its last frame is a `raise` of the trainer's own code, otherwise as a crash.
A distance of 1 is that of the weights of a run with another seed.

What to hold against this board: its rows are our own fault table, chosen by the authors of one of the three systems.
The model is tiny. Rows 5, 6, 19 and 22 are one case each. Rows 11, 12 and 13 also strike three files of ours that lie
beside the checkpoints (`run.json`, `journal.jsonl`, `data.digests`); the peers have none. In rows 5 and 6 a step is
slowed to 0.3 s, so that the run outlasts the three seconds the peers wait before they save; that a model is then
saved as if finished comes of the script, which calls `save_model` after `train` as the documentation's examples do.
Ours has no loss that owns parameters, so row 26p says nothing of it. Date and commit of each row stand with its
cases."""


def board(cells: Cells, systems: Sequence[str]) -> str:
    """Return the whole page."""
    parts = ["# The same faults, three trainers", "Written by `python -m bench.faults`; not edited by hand.", HOW]
    parts.append("\n".join(f"- {key}: {value}" for key, value in about(cells).items()))
    parts.append(table(cells, systems))
    words = "\n".join(f"- **{kind}**: {meaning}." for kind, meaning in reversed(KINDS.items()))
    parts.append(f"## The words\n\n{words}\n- **{NOT_RUN}**: claims nothing. **n/a**: there is no such thing there.")
    parts.append(f"## Settings\n\n{settings()}")
    parts.append("## Every case\n\n" + "\n\n".join(details(cells, systems)))
    return "\n\n".join(parts) + "\n"


def about(cells: Cells) -> dict[str, Any]:
    from unbroken.run.environment import cpu_model

    return {
        "date": between(cell.date for cell in cells.values()),
        "machine": f"{cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES) + f", Python {platform.python_version()}",
        "commit": between(cell.commit for cell in cells.values()),
        "duration": f"{sum(cell.seconds for cell in cells.values()) / 60:.0f} minutes, "
        f"load of the machine at the end {os.getloadavg()[1]:.1f}",
    }


def between(values: Iterable[str]) -> str:
    found = sorted(set(values))
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}" if found else ""


def commit() -> str:
    """Return the commit of this checkout, and whether files differ from it."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return (
        subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    )


def table(cells: Cells, systems: Sequence[str]) -> str:
    lines = [
        "| # | fault | " + " | ".join(TITLES[name] for name in systems) + " | command |",
        "|---|---|" + "---|" * (len(systems) + 1),
    ]
    for name, row in ROWS.items():
        found = {system: cells.get((name, system)) for system in systems}
        shown = (summary(cell.outcomes if cell else None, system in row.systems) for system, cell in found.items())
        lines.append(f"| {name} | {row.title} | " + " | ".join(shown) + f" | `python -m bench.faults {name}` |")
    return "\n".join(lines)


def summary(outcomes: list[Outcome] | None, applies: bool) -> str:
    """Return the words with their counts, the worst first, and the first remark of the worst."""
    if not applies:
        return "n/a"
    if not outcomes:
        return NOT_RUN
    worst = min(outcomes, key=lambda outcome: list(KINDS).index(outcome.kind))
    places = {outcome.case.split(",")[0] for outcome in outcomes} & set(PLACES)
    if places:  # kills: where they struck
        parts = (f"{place}: {counted([o for o in outcomes if o.case.startswith(place)])}" for place in PLACES)
        words = "<br>".join(part for part, place in zip(parts, PLACES, strict=True) if place in places)
    else:
        words = counted(outcomes)
    if worst.kind == EXACT and len(outcomes) > 1:
        return words
    place = f"{worst.case}: " if len(outcomes) > 1 else ""
    return "<br>".join(part for part in (words, escaped(place + shortened(worst.remark, 110))) if part)


def counted(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.kind for outcome in outcomes)
    return ", ".join(f"**{kind}** {counts[kind]}" for kind in KINDS if counts[kind])


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").strip(": ")


def details(cells: Cells, systems: Sequence[str]) -> list[str]:
    parts = []
    for name, row in ROWS.items():
        for system in systems:
            if found := cells.get((name, system)):
                counted = Counter((o.kind, o.case, o.remark) for o in found.outcomes)
                lines = [
                    f"- {kind}: {case}{f' ({count} times)' if count > 1 else ''}{f' | {remark}' if remark else ''}"
                    for (kind, case, remark), count in counted.items()
                ]
                heading = f"<summary>{name} {TITLES[system]}: {row.title} ({found.date}, {found.commit})</summary>"
                parts.append(f"<details>{heading}\n\n" + "\n".join(lines) + "\n\n</details>")
    return parts


def settings() -> str:
    """Return what the systems were told, from the code that tells them."""
    arguments = peer_arguments(replace(Spec("OUTPUT", "MODEL", "ROWS"), save_on_sigterm=True))
    told = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return (
        f"Peers: `{told}`; `enable_jit_checkpoint` in rows 5 and 6 only; `trainer.train(resume_from_checkpoint=True)` "
        "where `get_last_checkpoint` finds one. sentence-transformers: `MultipleNegativesRankingLoss` where no loss is "
        "named. Hugging Face: `BertForSequenceClassification`, three labels. Unbroken: `unbroken train CONFIG` with "
        "the same sizes, `save_steps` and `save_total_limit`, nothing else. One thread, no network."
    )


def write(path: Path, cells: Cells, systems: Sequence[str]) -> None:
    """Write the page, and beside it as JSON what it is made of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(board(cells, systems), encoding="utf-8")
    plain = [{"row": row, "system": system, **asdict(cell)} for (row, system), cell in cells.items()]
    path.with_suffix(".json").write_text(json.dumps(plain, indent=1), encoding="utf-8")


def read(path: Path) -> dict[tuple[str, str], Cell]:
    """Return the cells of an earlier board, none if there is none."""
    listed = path.with_suffix(".json")
    found = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else []
    return {(one.pop("row"), one.pop("system")): cell_of(one) for one in found}


def cell_of(values: dict[str, Any]) -> Cell:
    return Cell(**values | {"outcomes": [Outcome(**outcome) for outcome in values["outcomes"]]})


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M")
