"""What the harness knows of each system: where its checkpoints and its finished model are, and how to run it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.faults.server import MODULES_FILE, Server, kill, wait_until_stopped
from bench.faults.trainers import FINAL, LOSSES_FILE, Spec

TITLES = {"ours": "Unbroken", "st": "sentence-transformers", "hf": "Hugging Face Trainer"}
STOPPED_AT = 14  # steps done in the state that is damaged: the checkpoints are those of steps 8 and 12


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    text: str
    seconds: float


@dataclass
class System:
    """One trainer with its server. Every run has a folder of its own under `work`."""

    name: str
    work: Path
    _goldens: dict[Spec, Path] = field(default_factory=dict)
    _states: dict[Spec, Path] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        self.home = self.work / self.name
        self.home.mkdir(parents=True)
        self.server = Server(self.name, self.work)
        self.run(self.spec(output=str(self.new_output())))
        if not (self.work / f"{self.name}-{MODULES_FILE}").exists():
            raise SystemExit(f"{self.name} did not train: see {self.home}")
        self.server.restart()

    @property
    def title(self) -> str:
        return TITLES[self.name]

    def spec(self, **changes: Any) -> Spec:
        """Return the command every row begins from; the caller says where it writes."""
        model = self.work / ("classifier" if self.name == "hf" else "encoder")
        return replace(Spec("", str(model), str(self.work / "rows.jsonl")), **changes)

    def new_output(self) -> Path:
        self._count += 1
        return self.home / f"run-{self._count:04}"

    def log(self, spec: Spec) -> Path:
        """Return where the command's output goes: never on the file system that a row fills."""
        return self.home / f"{str(Path(spec.output).relative_to(self.home)).replace('/', '-')}.log"

    def start(self, spec: Spec) -> int:
        return self.server.start(spec, self.log(spec))

    def run(self, spec: Spec) -> Ended:
        """Carry out a command to its end."""
        log, began = self.log(spec), time.monotonic()
        before = log.stat().st_size if log.exists() else 0
        code = self.server.wait(self.start(spec))
        text = log.read_bytes()[before:].decode(errors="replace")
        return Ended(code, text, time.monotonic() - began)

    def pause(self, spec: Spec, step: int) -> int:
        """Begin a command and return its process id when it has stopped itself after `step`."""
        pid = self.start(replace(spec, pause_at=step))
        if not wait_until_stopped(pid):
            self.server.wait(pid)
            raise SystemExit(f"{self.name} ended before step {step}: see {self.log(spec)}")
        return pid

    def golden(self, spec: Spec) -> Path:
        """Return the folder of the uninterrupted run of this command, made once."""
        key = replace(spec, output="", die_at=0, pause_at=0, save_on_sigterm=False, pace=0.0)
        if key not in self._goldens:
            output = self.new_output()
            ended = self.run(replace(key, output=str(output)))
            if ended.code != 0:
                raise SystemExit(f"{self.name}: the uninterrupted run failed: see {output}.log")
            self._goldens[key] = output
        return self._goldens[key]

    def stopped(self, spec: Spec | None = None, step: int = STOPPED_AT) -> Spec:
        """Return a command whose run was killed after `step`: a fresh copy of the one state that was made so."""
        key = replace(spec or self.spec(), output="", die_at=step)
        if key not in self._states:
            output = self.new_output()
            self.run(replace(key, output=str(output)))
            if self.last_step(output) != step // key.save_steps * key.save_steps:
                raise SystemExit(f"{self.name}: the run killed after step {step} has not saved what it should have")
            self._states[key] = output
        output = self.new_output()
        shutil.copytree(self._states[key], output, symlinks=True)
        return replace(key, output=str(output), die_at=0)

    def checkpoints(self, output: str | Path) -> list[Path]:
        """Return the checkpoint folders, the oldest first, whole or not."""
        home = self.checkpoint_home(output)
        found = [path for path in home.iterdir() if self._step(path) is not None] if home.is_dir() else []
        return sorted(found, key=lambda path: self._step(path) or 0)

    def checkpoint_home(self, output: str | Path) -> Path:
        return Path(output) / "checkpoints" if self.name == "ours" else Path(output)

    def checkpoint(self, output: str | Path, step: int) -> Path:
        return self.checkpoint_home(output) / (f"{step:08d}" if self.name == "ours" else f"checkpoint-{step}")

    def _step(self, path: Path) -> int | None:
        found = re.fullmatch(r"\d{8}" if self.name == "ours" else r"checkpoint-(\d+)", path.name)
        return int(found.group(found.lastindex or 0)) if found and path.is_dir() else None

    def last_step(self, output: str | Path) -> int:
        there = self.checkpoints(output)
        return (self._step(there[-1]) or 0) if there else 0

    def saving(self, output: str | Path) -> bool:
        """Tell whether a save is under way, or was when the process died."""
        if self.name == "ours":
            home = self.checkpoint_home(output)
            return home.is_dir() and any(path.name.startswith((".tmp-", ".trash-")) for path in home.iterdir())
        return any(not (path / "trainer_state.json").exists() for path in self.checkpoints(output))

    def files(self, checkpoint: Path) -> list[str]:
        """Return the files of a checkpoint, relative to it."""
        found = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
        return sorted(str(path) for path in found)

    def optimizer_file(self) -> str:
        return "optimizer.safetensors" if self.name == "ours" else "optimizer.pt"

    def weights(self, output: str | Path) -> Path:
        """Return the file of the finished weights."""
        return Path(output) / ("model" if self.name == "ours" else FINAL) / "model.safetensors"

    def sha256(self, output: str | Path) -> str:
        """Return the digest of the finished weights, or nothing if there are none."""
        path = self.weights(output)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""

    def losses(self, output: str | Path) -> dict[int, float]:
        """Return the losses the system recorded, by step."""
        if self.name != "ours":
            found = json.loads((Path(output) / FINAL / LOSSES_FILE).read_text())
            return {int(step): loss for step, loss in found.items()}
        lines = (Path(output) / "journal.jsonl").read_bytes().splitlines()
        records = [record for line in lines if (record := parsed(line)).get("kind") == "step"]
        return {record["n"]: record["loss"] for record in records}

    def distance(self, output: str | Path, spec: Spec) -> float:
        """Return how far the weights are from the golden ones; 1 is as far as those of a run with another seed."""
        import numpy as np
        from safetensors.numpy import load_file

        golden, control = (
            load_file(self.weights(self.golden(replace(spec, seed=seed)))) for seed in (spec.seed, spec.seed + 1)
        )
        mine = load_file(self.weights(output))
        if mine.keys() != golden.keys():
            return float("nan")
        far = sum(float(np.square(mine[name] - golden[name], dtype=np.float64).sum()) for name in golden)
        unit = sum(float(np.square(control[name] - golden[name], dtype=np.float64).sum()) for name in golden)
        return float(np.sqrt(far / unit)) if unit else float("nan")

    @cached_property
    def usual_lines(self) -> frozenset[str]:
        """What uninterrupted runs and plain resumes print."""
        logs = [self.log(replace(self.spec(), output=str(self.golden(self.spec()))))]
        for step in (STOPPED_AT, 6):
            spec = self.stopped(step=step)
            self.run(spec)
            logs.append(self.log(spec))
        return frozenset(line for log in logs for line in normalised(log.read_text(errors="replace")))

    def forget(self, spec: Spec) -> None:
        """Delete a run that was looked at."""
        shutil.rmtree(spec.output, ignore_errors=True)

    def kill(self, pid: int) -> int:
        kill(pid)
        return self.server.wait(pid)


def parsed(line: bytes) -> dict[str, Any]:
    """Return a record of a journal, or an empty one for a damaged line, which stays where it is."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def normalised(text: str) -> list[str]:
    """Return the lines of an output without what differs from run to run: paths, numbers."""
    lines = (re.sub(r"\S*/\S*", "PATH", line) for line in re.split(r"[\r\n]+", text))
    return [found for line in lines if (found := re.sub(r"\d+", "#", line).strip())]
