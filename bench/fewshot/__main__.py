"""Few-shot classification against SetFit: `python -m bench.fewshot MODEL SPLITS OUT --setfit PYTHON [--only CASE ...]`.

SPLITS comes from `bench.fewshot.splits`. Every training is a process of its own on one thread, ours directly after
SetFit's on the same examples, so that both meet the same machine; what OUT holds already is not run again. `--show`
prints the table. PYTHON is the interpreter of an environment with SetFit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
UNDER = {"sampling_strategy": "undersampling"}
ITERATIONS = {"num_iterations": 5}
THREADS = "1"


@dataclass(frozen=True)
class Case:
    """Drawn examples, and SetFit's settings beside its defaults."""

    data: str
    shots: int
    seeds: tuple[int, ...]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """How the case is called in files and tables."""
        how = {"sampling_strategy": "-under", "num_iterations": "-it5"}
        return f"{self.data}-{self.shots}" + "".join(how[key] for key in self.settings)


CASES = (
    Case("snips", 8, (0, 1, 2), {}),
    Case("snips", 16, (0, 1, 2), {}),
    Case("banking77", 8, (0, 1, 2), UNDER),
    Case("banking77", 8, (0,), ITERATIONS),
    Case("wordnet", 8, (0, 1, 2), UNDER),
    Case("wordnet", 8, (0,), ITERATIONS),
    Case("wordnet", 8, (0, 1, 2), {}),
    Case("wordnet", 64, (0,), ITERATIONS),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fewshot", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("splits", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--setfit", default=sys.executable, help="Python with SetFit; default: this one")
    parser.add_argument("--only", nargs="*", default=[case.name for case in CASES])
    parser.add_argument("--pairs", action="store_true", help="also our faithful mode: SetFit's own pairs")
    parser.add_argument("--show", action="store_true", help="run nothing, print the table")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = [case for case in CASES if case.name in given.only]
    for case in chosen if not given.show else ():
        for seed in case.seeds:
            run(given, "setfit", case, seed, given.setfit, case.settings)
            run(given, "ours", case, seed, sys.executable, {})
            if given.pairs:
                run(given, "pairs", case, seed, sys.executable, {"pairs": "sampled", **case.settings})
    print(table(given.out, chosen))


def run(given: Any, arm: str, case: Case, seed: int, python: str, settings: dict[str, Any]) -> None:
    """Train once, unless that is on record."""
    out = given.out / f"{arm}-{case.name}-{seed}.json"
    if out.exists():
        return
    split = given.splits / f"{case.data}-{case.shots}-{seed}.train.jsonl"
    command = [python, HERE / ("theirs.py" if arm == "setfit" else "ours.py"), given.model, split]
    command += [given.splits / f"{case.data}.test.jsonl", out, json.dumps({"seed": seed, **settings})]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": THREADS}
    subprocess.run([str(part) for part in command], check=True, env=os.environ | quiet, stderr=subprocess.DEVNULL)
    shutil.rmtree(f"{out}.run", ignore_errors=True)


def table(out: Path, cases: tuple[Case, ...] | list[Case]) -> str:
    """Return what is on record: accuracies, paired differences and ratios of CPU seconds."""
    lines = [
        "| case | seeds | SetFit | ours | difference, points | CPU s, training (whole): SetFit | ours | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in ("ours", "pairs"):
        lines += [line for case in cases for line in rows(out, arm, case)]
    return "\n".join(lines)


def rows(out: Path, arm: str, case: Case) -> Iterator[str]:
    """Yield the row of a case, if there is any pair of trainings on record."""
    found = [(load(out, "setfit", case, seed), load(out, arm, case, seed)) for seed in case.seeds]
    pairs = [(theirs, mine) for theirs, mine in found if theirs and mine]
    if not pairs:
        return
    theirs, mine = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    points = [100 * (b["accuracy"] - a["accuracy"]) for a, b in pairs]
    shares = [b["train_cpu_seconds"] / a["train_cpu_seconds"] for a, b in pairs]
    whole = [b["cpu_seconds"][-1] / a["cpu_seconds"][-1] for a, b in pairs]
    yield (
        f"| {case.name}{' (its pairs)' if arm == 'pairs' else ''} | {len(pairs)} "
        f"| {mean(theirs, 'accuracy'):.4f} | {mean(mine, 'accuracy'):.4f} "
        f"| {statistics.mean(points):+.2f} [{min(points):+.2f} .. {max(points):+.2f}] "
        f"| {mean(theirs, 'train_cpu_seconds'):.1f} ({whole_of(theirs):.1f}) "
        f"| {mean(mine, 'train_cpu_seconds'):.1f} ({whole_of(mine):.1f}) "
        f"| {100 * statistics.median(shares):.1f} % ({100 * statistics.median(whole):.1f} %) |"
    )


def load(out: Path, arm: str, case: Case, seed: int) -> dict[str, Any] | None:
    """Return what is on record of one training."""
    path = out / f"{arm}-{case.name}-{seed}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def mean(results: list[dict[str, Any]], key: str) -> float:
    """Return the mean of a figure."""
    return statistics.mean(result[key] for result in results)


def whole_of(results: list[dict[str, Any]]) -> float:
    """Return the mean CPU seconds of whole processes."""
    return statistics.mean(result["cpu_seconds"][-1] for result in results)


if __name__ == "__main__":
    main()
