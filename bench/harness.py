"""Runs arms one after the other, A B A B, each in a process of its own, and keeps what they recorded."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.figures import Event, of_kind, parse_events
from bench.rows import Pair, read_pairs

HOME = Path(__file__).parent
REPOSITORY = HOME.parent
OUT = HOME / "out"
THREADS = 2
TIMEOUT_SECONDS = 900
PACKAGES = ("torch", "sentence-transformers", "transformers", "tokenizers", "accelerate", "numpy", "unbroken")
TAIL_CHARACTERS = 1500

Spec = dict[str, Any]


class ArmError(Exception):
    """An arm ended as it should not have, or did not record what it should have."""


@dataclass(frozen=True)
class Run:
    """One process of an arm: what it recorded, and how it went."""

    arm: str
    spawned_at: float
    wall_seconds: float
    cpu_seconds: float
    others_share: float  # of the machine's CPU time, what everything else used meanwhile
    events: list[Event]

    @property
    def first_step_seconds(self) -> float:
        """From before the process was started to the end of its first step."""
        return float(self._first()["at"]) - self.spawned_at

    @property
    def first_step_cpu(self) -> float:
        return float(self._first()["cpu"])

    @property
    def peak_bytes(self) -> int:
        return int(of_kind(self.events, "ended")[-1]["peak_bytes"])

    @property
    def device_bytes(self) -> int:
        """The most memory tensors have had on a GPU; 0 where there was none."""
        return int(of_kind(self.events, "ended")[-1].get("device_bytes", 0))

    @property
    def losses(self) -> list[float]:
        return [event["loss"] for event in of_kind(self.events, "step")]

    def _first(self) -> Event:
        return of_kind(self.events, "step")[0]


@dataclass
class Context:
    """What every part needs to know; `work` is on disk, not in memory, because commits are measured in it."""

    model: Path
    wordnet: Path
    runs: int
    quick: bool
    scale: float
    out: Path
    max_length: int = 128
    _pairs: list[Pair] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.out / "work"

    @property
    def pairs(self) -> list[Pair]:
        if not self._pairs:
            self._pairs = read_pairs(self.wordnet)
        return self._pairs


@dataclass(frozen=True)
class Result:
    """What a part found: a heading, its tables and remarks in markdown, and all of it as data."""

    title: str
    text: str
    data: dict[str, Any]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run_arm(context: Context, module: str, name: str, spec: Spec, *, killed: bool = False) -> Run:
    """Run `python -m MODULE SPEC.json` to its end; `killed` if it should end itself by SIGKILL.

    Both arms get the same environment. Disks are synced before, so that no run pays for the writes of another.
    """
    context.work.mkdir(parents=True, exist_ok=True)
    place = context.work / name
    paths = {suffix: place.with_name(f"{place.name}.{suffix}") for suffix in ("json", "events", "log")}
    paths["events"].unlink(missing_ok=True)
    paths["json"].write_text(json.dumps({**spec, "events": str(paths["events"])}), encoding="utf-8")
    os.sync()
    with paths["log"].open("wb") as log:
        busy, before = busy_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
        spawned = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(paths["json"])],
            cwd=REPOSITORY,
            env=environment(spec.get("threads", THREADS)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            code = process.wait(TIMEOUT_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.monotonic() - spawned
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    events = parse_events(paths["events"].read_text(encoding="utf-8")) if paths["events"].exists() else []
    if code != (-9 if killed else 0) or not events:
        tail = paths["log"].read_text(encoding="utf-8", errors="replace")[-TAIL_CHARACTERS:]
        raise ArmError(f"{module} ({name}) ended with {code} after {len(events)} events:\n{tail}")
    others = max(0.0, busy_seconds() - busy - cpu) / (wall * (os.cpu_count() or 1))
    return Run(module.rpartition(".")[2], spawned, wall, cpu, others, events)


def environment(threads: int = THREADS) -> dict[str, str]:
    """Return what arms see: as many threads for all, and no network to wait for."""
    source = os.pathsep.join(part for part in (str(REPOSITORY / "src"), os.environ.get("PYTHONPATH")) if part)
    limited = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": source}
    return {**os.environ, **limited, **offline}


def busy_seconds() -> float:
    """Return the CPU time all processes have used since the machine started, in seconds; what was stolen counts."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def interleave(
    context: Context, title: str, one_round: Callable[[int], Mapping[str, Run]], *, seconds: float, least: int
) -> list[Mapping[str, Run]]:
    """Return what `one_round` did, repeated `context.runs` times.

    Fewer times, but at least `least`, if another round would exceed the part's share of time.
    """
    limit, began = seconds * context.scale, time.monotonic()
    rounds: list[Mapping[str, Run]] = []
    for number in range(context.runs):
        taken = time.monotonic() - began
        if number >= min(least, context.runs) and taken * (number + 1) / number > limit:
            break
        say(f"{title}: round {number + 1} of at most {context.runs}")
        rounds.append(one_round(number))
    return rounds


def train_spec(context: Context, name: str, rows: Path, batch: int, steps: int, **more: Any) -> Spec:
    """Return what both arms are told alike."""
    return {
        "model": str(context.model),
        "train_data": str(rows),
        "output_dir": str(context.work / f"{name}.run"),
        "batch_size": batch,
        "max_steps": steps,
        "learning_rate": 5e-5,
        "warmup_steps": max(1, steps // 10),
        "max_length": context.max_length,
        "seed": 42,
        "threads": THREADS,
        **more,
    }


def run_ours(context: Context, name: str, spec: Spec, **more: Any) -> Run:
    """Run `unbroken train`; without `save_steps` in the spec it commits when it sees fit."""
    keys: tuple[str, ...] = (
        "model",
        "train_data",
        "output_dir",
        "batch_size",
        "max_steps",
        "learning_rate",
        "warmup_steps",
    )
    keys += ("max_length", "seed", "threads", "save_steps", "save_total_limit", "shuffle")
    values = {"task": "embed", "shuffle": False} | {key: spec[key] for key in keys if spec.get(key) is not None}
    config = context.work / f"{name}.yaml"
    context.work.mkdir(parents=True, exist_ok=True)
    config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    return run_arm(context, "bench.arms.ours", name, {**spec, "config_file": str(config)}, **more)


def run_theirs(context: Context, name: str, spec: Spec, **more: Any) -> Run:
    """Run sentence-transformers' trainer; without `save_steps` in the spec it saves nothing."""
    return run_arm(context, "bench.arms.theirs", name, spec, **more)


def run_hugging_face(context: Context, name: str, spec: Spec, **more: Any) -> Run:
    """Run the Hugging Face Trainer; without `save_steps` in the spec it saves nothing."""
    spec = {"cache": str(context.work / "arrow"), **spec}
    return run_arm(context, "bench.arms.hugging_face", name, spec, **more)


def evaluate(context: Context, models: Mapping[str, Path], pairs: list[Pair]) -> dict[str, float]:
    """Return nDCG@10 of each model on held-out pairs."""
    from bench.rows import write_pairs

    say(f"evaluating {len(models)} models on {len(pairs)} pairs")
    spec = {
        "models": {name: str(path) for name, path in models.items()},
        "eval_data": str(write_pairs(context.work / "eval.jsonl", pairs)),
        "threads": THREADS,
        "max_length": context.max_length,
    }
    run = run_arm(context, "bench.arms.evaluate", "evaluate", spec)
    return {event["model"]: event["ndcg"] for event in of_kind(run.events, "evaluated")}


def others_remark(rounds: Iterable[Mapping[str, Run]]) -> str:
    """Return the sentence that says how quiet the machine was."""
    share = max(run.others_share for one in rounds for run in one.values())
    return f"Other processes used up to {100 * share:.0f} % of the machine during a run."


def remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict[str, Any]:
    """Return where this runs: for the head of every report."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": cpu.partition(":")[2].strip(),
        "avx512": "avx512f" in flags.split(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.split()[1]) / 2**20, 1),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:
        return "unknown"
