"""Run a job in this process, stop it where a test wants, and compare what is left on disk bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unbroken.run.report import Ended, Event, Stepped
from unbroken.run.stop import StopRequest
from unbroken.store.tensors import read_file
from unbroken.tasks.train import Request, carry_out

STEP_KEYS = ("n", "ids", "loss", "grad_norm", "learning_rate")


def train(values: dict[str, Any], output: Path, *, stop_after: int | None = None, **options: Any) -> Ended:
    """Run `values` in `output` as a new process would, asking for a stop after step `stop_after`."""
    stop = StopRequest()

    def report(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == stop_after:
            stop.ask("the test")

    return carry_out(Request({**values, "output_dir": str(output)}, **options), report, stop)


def step_records(output: Path) -> list[tuple[Any, ...]]:
    records = (json.loads(line) for line in (output / "journal.jsonl").read_bytes().splitlines())
    return [tuple(record[key] for key in STEP_KEYS) for record in records if record["kind"] == "step"]


def final_state(output: Path) -> dict[str, bytes]:
    """Every file of the last checkpoint that training decides, and the finished model."""
    last = max((output / "checkpoints").glob("[0-9]*"))
    found = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    for path in sorted((output / "model").rglob("*")):
        if path.is_file():
            found[f"model/{path.relative_to(output / 'model')}"] = path.read_bytes()
    return found


def assert_same_run(one: Path, other: Path) -> None:
    """Both runs hold the same step records and the same bits in every tensor."""
    assert step_records(one) == step_records(other)
    mine, theirs = final_state(one), final_state(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name] == theirs[name], f"{name} differs between {one.name} and {other.name}"


def moments(output: Path) -> dict[str, Any]:
    last = max((output / "checkpoints").glob("[0-9]*"))
    return read_file(last, "optimizer.safetensors").tensors
