"""`unbroken predict` with a language model, killed at random instants: no row is lost, doubled, or another."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_causal import WORDS, make_causal_folder
from unbroken.store.journal import decode_line, encode_record

ROWS, BATCH = 192, 32
OUT = "answers.jsonl"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows of uneven length, some of them the same, and what an uninterrupted prediction writes."""
    folder = tmp_path_factory.mktemp("predict")
    make_causal_folder(folder / "model")
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(ROWS):
            words = draw.choices(WORDS, k=draw.randint(1, 6))
            file.write(json.dumps({"prompt": f"Say it: {' '.join(words)}"}) + "\n")
    (folder / "whole").mkdir()
    process = start(folder, folder / "whole")
    assert "unbroken" not in process.communicate()[1]
    assert process.returncode == 0
    return folder


def start(place: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = ["predict", str(place / "model"), str(place / "rows.jsonl"), "-o", str(folder / OUT)]
    return subprocess.Popen(
        [sys.executable, "-m", "unbroken", *command, "--keep", "--max-new-tokens", "24", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def batches(folder: Path) -> int:
    """Return how many batches stand, whole or not; the first line is none."""
    try:
        return max(0, (folder / f"{OUT}.partial").read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def wait_for(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    while batches(folder) < count and process.poll() is None:
        time.sleep(0.005)


def kill_at_random(place: Path, folder: Path, kills: int, seed: int) -> int:
    """Kill so many processes, each a few batches or less after it began to add; return how many were in time."""
    draw, hit = random.Random(seed), 0
    for _ in range(kills):
        process = start(place, folder)
        wait_for(folder, batches(folder) + draw.randint(0, 2), process)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.communicate()
        hit += process.returncode == -signal.SIGKILL
    return hit


def finish(place: Path, folder: Path) -> bytes:
    """Let the same command end, and return what is there: one file and nothing beside it."""
    done, said = start(place, folder, "--json").communicate()
    assert json.loads(done) == {"output": str(folder / OUT), "rows": ROWS, "done": ROWS, "finished": True}, said
    assert [entry.name for entry in folder.iterdir()] == [OUT]
    return (folder / OUT).read_bytes()


def test_killed_at_random_instants(place: Path, tmp_path: Path) -> None:
    whole = (place / "whole" / OUT).read_bytes()
    assert len(whole.splitlines()) == ROWS
    assert kill_at_random(place, tmp_path, kills=2, seed=1) >= 1
    assert not (tmp_path / OUT).exists()
    assert finish(place, tmp_path) == whole


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(10))
def test_killed_fifty_times(seed: int, place: Path, tmp_path: Path) -> None:
    kill_at_random(place, tmp_path, kills=5, seed=100 + seed)
    assert finish(place, tmp_path) == (place / "whole" / OUT).read_bytes()


@pytest.mark.slow
def test_control_a_row_that_was_changed_shows(place: Path, tmp_path: Path) -> None:
    """A batch that proves itself and holds another answer goes into the file: only the comparison can tell."""
    process = start(place, tmp_path)
    wait_for(tmp_path, 2, process)
    process.kill()
    process.communicate()
    partial = tmp_path / f"{OUT}.partial"
    head, first, *rest = partial.read_bytes().splitlines(keepends=True)
    record = decode_line(first)
    assert record is not None
    record["lines"] = record["lines"].replace('"answer": "', '"answer": "!', 1)
    partial.write_bytes(b"".join([head, encode_record(record), *rest]))
    assert finish(place, tmp_path) != (place / "whole" / OUT).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_it_after_the_batch(number: signal.Signals, code: int, place: Path, tmp_path: Path) -> None:
    process = start(place, tmp_path, "--json")
    wait_for(tmp_path, 1, process)
    process.send_signal(number)
    done, said = process.communicate()
    assert process.returncode == code
    outcome = json.loads(done)
    assert outcome["done"] == batches(tmp_path) * BATCH < ROWS
    assert outcome["finished"] is False
    assert "the batch in progress is finished and kept" in said
    assert "the same command goes on" in said
    assert finish(place, tmp_path) == (place / "whole" / OUT).read_bytes()


@pytest.mark.slow
def test_two_at_once_and_a_changed_file_are_refused(place: Path, tmp_path: Path) -> None:
    process = start(place, tmp_path)
    wait_for(tmp_path, 1, process)
    second = start(place, tmp_path)
    said = second.communicate()[1]
    process.kill()
    process.communicate()
    assert second.returncode == 75, said
    assert "is being made by another process" in said
    content = (tmp_path / f"{OUT}.partial").read_bytes()
    other = start(place, tmp_path, "--column", "prompt")
    said = other.communicate()[1]
    assert other.returncode == 4
    assert "was begun otherwise: column None, not 'prompt'" in said
    assert (tmp_path / f"{OUT}.partial").read_bytes() == content
