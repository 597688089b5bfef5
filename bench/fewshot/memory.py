"""Peak memory of a whole `unbroken train` by the number of labelled texts, SetFit's beside it.

    python -m bench.fewshot.memory DATA MODEL [--sizes 5000 20000 50000] [--theirs PYTHON] [--out FILE]

DATA is a file of rows (`.jsonl.gz`) with a label, and with a text or, as WordNet has them, words and a gloss. Few steps
are made (they need the same whatever the number), then the head is fitted to all texts. Each process is measured by its
VmHWM, which the kernel keeps; one that exceeds `--limit-gib` is ended. PYTHON is an interpreter that has SetFit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.fewshot.splits import Row, read, write
from unbroken.base.fingerprint import digest

SIZES = (5_000, 20_000, 50_000)
STEPS = 8
LOOK_SECONDS = 0.05
GIB = 2**20  # of the KiB that the kernel counts in
THEIRS = Path(__file__).with_name("theirs.py")


@dataclass(frozen=True)
class Measured:
    """One process: `ended` is its exit code, or why it was ended."""

    system: str
    texts: int
    peak_gib: float
    seconds: float
    ended: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--pairs", nargs="*", default=("all", "sampled"), choices=("all", "sampled"))
    parser.add_argument("--theirs", help="interpreter that has SetFit")
    parser.add_argument("--limit-gib", type=float, default=16)
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    found: list[Measured] = []
    print("| system | texts | peak GiB | seconds | ended |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="unbroken-memory-") as work:
        for measured in measure(given, Path(work)):
            found.append(measured)
            print(f"| {' | '.join(map(shown, asdict(measured).values()))} |", flush=True)
    if given.out:
        given.out.write_text(json.dumps([asdict(one) for one in found], indent=1), encoding="utf-8")


def shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def measure(given: argparse.Namespace, work: Path) -> Iterator[Measured]:
    """Train on each number of texts in each way, one process after another."""
    rows = labelled(given.data)
    for size in given.sizes:
        chosen = sample(rows, size)
        write(work / "train.jsonl", chosen)
        write(work / "test.jsonl", chosen[:20])
        for pairs in given.pairs:
            values = settings(given.model, work, pairs)
            (work / "c.yaml").write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
            command = [sys.executable, "-m", "unbroken", "train", str(work / "c.yaml")]
            yield watch(f"unbroken, pairs: {pairs}", len(chosen), command, given.limit_gib, work)
        if given.theirs:
            files = [str(work / name) for name in ("train.jsonl", "test.jsonl", "theirs.json")]
            options = json.dumps({"max_steps": STEPS, "seed": 0})
            command = [given.theirs, str(THEIRS), str(given.model), *files, options]
            yield watch("SetFit", len(chosen), command, given.limit_gib, work)


def labelled(path: Path) -> list[Row]:
    """Return the rows in an order that is that of no class: by a hash of their text."""
    rows = [
        {"text": row.get("text") or f"{row['words'][0]}: {row['gloss']}", "label": row["label"]} for row in read(path)
    ]
    return sorted(rows, key=lambda row: digest(row["text"].encode()))


def sample(rows: list[Row], size: int) -> list[Row]:
    """Return the first rows, without those that are alone in their class."""
    first = rows[:size]
    if len(first) < size:
        raise SystemExit(f"there are {len(first)} rows, fewer than {size}")
    counts = Counter(row["label"] for row in first)
    return [row for row in first if counts[row["label"]] > 1]


def settings(model: Path, work: Path, pairs: str) -> dict[str, Any]:
    """Return the defaults, a few steps long, in a folder of its own."""
    run = tempfile.mkdtemp(dir=work)
    return {
        "task": "classify",
        "model": str(model),
        "train_data": str(work / "train.jsonl"),
        "output_dir": run,
        "max_steps": STEPS,
        "pairs": pairs,
        "seed": 0,
        "threads": 1,
    }


def watch(system: str, texts: int, command: list[str], limit_gib: float, work: Path) -> Measured:
    """Run a command to its end, or to the limit; return the most memory it had."""
    began, peak, ended = time.monotonic(), 0, ""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        while process.poll() is None:
            peak = max(peak, peak_kib(process.pid))
            if peak > limit_gib * GIB:
                process.kill()
                ended = f"at the limit of {limit_gib:g} GiB"
            time.sleep(LOOK_SECONDS)
    if process.returncode and not ended:
        lines = (work / "log").read_text(errors="replace").strip().splitlines()
        ended = f"{process.returncode}: {lines[-1][:200] if lines else ''}"
    return Measured(system, texts, peak / GIB, time.monotonic() - began, ended or "0")


def peak_kib(process: int) -> int:
    """Return the most memory a process has had so far; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    main()
