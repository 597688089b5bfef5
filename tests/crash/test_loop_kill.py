"""A user's script around `Loop`, killed at random instants with SIGKILL, and asked to stop with signals."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 150
SCRIPT = f"""
import sys
import torch
from torch import nn
from unbroken import Loop

torch.set_num_threads(1)
body, head = nn.Embedding(50, 16), nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 4))
optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 50)
rows = [{{"ids": [i % 50, i * 7 % 50, i * 3 % 50], "label": i % 4}} for i in range(160)]


def collate(rows):
    return torch.tensor([row["ids"] for row in rows]), torch.tensor([row["label"] for row in rows])


loop = Loop(sys.argv[1], modules={{"body": body, "head": head}}, optimizer=optimizer, data=rows, batch_size=8,
            max_steps={STEPS}, collate=collate, extras={{"scheduler": scheduler}}, save_seconds=0.2)
for ids, labels in loop.batches():
    vectors = body(ids).mean(dim=1) + 0.01 * torch.randn(len(ids), 16)
    loop.step(nn.functional.cross_entropy(head(vectors), labels))
    scheduler.step()
    if len(sys.argv) > 2:
        import time
        time.sleep(0.005)
print("finished", loop.ended.finished)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def start(script: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), str(output), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=hear_sigint,
    )


def hear_sigint() -> None:
    """Listen as in a terminal: what a shell starts in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def steps_on_record(output: Path) -> int:
    try:
        return (output / "journal.jsonl").read_bytes().count(b'"kind":"step"')
    except OSError:
        return 0


def wait_for(output: Path, steps: int, process: subprocess.Popen[str]) -> None:
    while steps_on_record(output) < steps and process.poll() is None:
        time.sleep(0.01)


def sums(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((output / "model").iterdir())}


def records(output: Path, kind: str) -> list[dict[str, object]]:
    lines = (json.loads(line) for line in (output / "journal.jsonl").read_bytes().splitlines())
    return [record for record in lines if record["kind"] == kind]


def twin(script: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders of one run that has made its first commit: the same unseeded head in both."""
    one, other = tmp_path / "one", tmp_path / "other"
    process = start(script, one, "slowly")
    wait_for(one, 1, process)
    process.kill()
    process.communicate()
    subprocess.run(["cp", "-a", str(one), str(other)], check=True)
    return one, other


def test_killed_at_random_instants(script: Path, tmp_path: Path) -> None:
    whole, killed = twin(script, tmp_path)
    assert start(script, whole).communicate()[0].endswith("finished True\n")
    draw = random.Random(5)
    for _ in range(3):
        process = start(script, killed, "slowly")
        wait_for(killed, steps_on_record(killed) + draw.randint(5, 35), process)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    output = start(script, killed).communicate()[0]
    assert output.endswith("finished True\n"), output
    assert sums(killed) == sums(whole)
    assert len(sums(whole)) == 2
    assert len(records(killed, "segment")) == 5
    assert stripped(killed) == stripped(whole)


def stripped(output: Path) -> list[dict[str, object]]:
    keys = ("n", "ids", "loss", "grad_norm", "learning_rate")
    return [{key: record[key] for key in keys} for record in records(output, "step")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_commits_and_ends_the_process(number: signal.Signals, code: int, script: Path, tmp_path: Path) -> None:
    process = start(script, tmp_path / "run", "slowly")
    wait_for(tmp_path / "run", 20, process)
    process.send_signal(number)
    output = process.communicate()[0]
    assert process.returncode == code, output
    assert "finished" not in output.splitlines()[-1]  # what follows the loop did not run
    stopped = records(tmp_path / "run", "stop")
    assert len(stopped) == 1
    assert (tmp_path / "run" / "checkpoints" / f"{stopped[0]['n']:08d}" / "MANIFEST.json").exists()
