"""Kill a process with SIGKILL before every system call of a commit (and of all else the store does), and at random.

Whatever the instant, the next process finds the old state or the new one, bit for bit, and what was acknowledged is
the new one. The killed processes are forked from one that has torch loaded, so that hundreds of them take seconds.

    python -m tests.crash.test_store_kill SCENARIO FOLDER
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.crash.small_run import DOCUMENT, DRIFTED, Run
from unbroken.run.folder import RunFolder
from unbroken.store import files
from unbroken.store.checkpoints import publish_model
from unbroken.store.run import create_run, prepare_folder, read_run

CALLS = ["mkdir", "open", "posix_fallocate", "write", "fsync", "close", "unlink", "rmdir", "replace", "ftruncate"]
RANDOM_KILLS = 150
CAN_EXCHANGE = sys.platform == "linux"  # the old model stands until the new one does
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Scenario:
    """A folder to begin with, what a process does in it, and what must hold when it was killed on the way."""

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    check: Callable[[Path, bool], None]


def two_commits(root: Path) -> None:
    run = Run(root)
    run.commit(1)
    run.commit(2)


def third_commit(root: Path) -> None:
    Run(root).commit(3)


def second_or_third(root: Path, acknowledged: bool) -> None:
    run = Run(root)
    step = run.restored_step()
    assert step in ((3,) if acknowledged else (2, 3))
    run.commit(step + 1)
    assert len(run.checkpoints.steps()) == 2
    assert not any(run.checkpoints.verify(step) for step in run.checkpoints.steps())
    others = {path.name for path in root.iterdir()} - {"checkpoints", "journal.jsonl"}
    assert others <= {"journal.torn-0"}, "a record cut in two is kept, and nothing else"
    assert len(list((root / "checkpoints").iterdir())) == 2, "a leftover remains"


def broken_third(root: Path) -> None:
    two_commits(root)
    third_commit(root)
    weights = root / "checkpoints" / "00000003" / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with (root / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"torn')


def fall_back_and_redo(root: Path) -> None:
    run = Run(root)
    assert run.restored_step() in (2, 3)
    run.commit(3)


def redone(root: Path, acknowledged: bool) -> None:
    assert Run(root).restored_step() in ((3,) if acknowledged else (2, 3))
    fall_back_and_redo(root)
    assert Run(root).restored_step() == 3
    assert (root / "checkpoints" / ".broken-00000003-0").is_dir(), "evidence was deleted"
    assert b'{"torn' in [path.read_bytes() for path in root.glob("journal.torn-*")]


def first_differently(root: Path) -> None:
    Run(root).commit(1, drifted=True)


def the_only_one_stands(root: Path, acknowledged: bool) -> None:
    """The only checkpoint is replaced by another of the same step: there is one at every instant."""
    restored = Run(root).checkpoints.restore()
    assert restored is not None
    assert restored.state in ([DRIFTED] if acknowledged else [DRIFTED, {"step": 1}])
    first_differently(root)
    home = root / "checkpoints"
    states = [(folder / "state.json").read_bytes() for folder in home.iterdir()]
    assert b'{"step":1}\n' in states, "evidence was deleted"
    assert Run(root).checkpoints.verify(1) == []


def published_second(root: Path) -> None:
    two_commits(root)
    publish_model(root / "checkpoints" / "00000001", root)


def publish_second(root: Path) -> None:
    publish_model(root / "checkpoints" / "00000002", root)


def whole_model(root: Path, acknowledged: bool) -> None:
    contents = {step: _content(root / "checkpoints" / f"{step:08d}" / "model") for step in (1, 2)}
    model = root / "model"
    if acknowledged or model.exists() or CAN_EXCHANGE:
        assert _content(model) in ([contents[2]] if acknowledged else contents.values())
    publish_second(root)
    assert _content(model) == contents[2]
    assert not list(root.glob(".t*"))


def new_run(root: Path) -> None:
    prepare_folder(root / "runs" / "new")
    create_run(root / "runs" / "new", DOCUMENT)


def a_run_or_none(root: Path, acknowledged: bool) -> None:
    found = read_run(root / "runs" / "new")
    assert found == DOCUMENT or (found is None and not acknowledged)
    if found is None:
        (root / "runs" / "new").mkdir(parents=True, exist_ok=True)
        (root / "runs" / "new" / ".lock").touch()  # the next process takes the lock first
        new_run(root)


def damaged_document(root: Path) -> None:
    create_run(root, DOCUMENT)
    (root / "run.json").write_bytes((root / "run.json").read_bytes()[:-7])


def damaged_copy(root: Path) -> None:
    create_run(root, DOCUMENT)
    (root / ".run.json").write_bytes((root / ".run.json").read_bytes()[:-7])


def open_and_mend(root: Path) -> None:
    RunFolder.open(root, keep=2).close()


def mended(root: Path, acknowledged: bool) -> None:
    """The run is told at every instant, and what was damaged is kept, once."""
    assert read_run(root) == DOCUMENT
    whole = (root / "run.json", root / ".run.json")
    if acknowledged:
        assert whole[0].read_bytes() == whole[1].read_bytes()
    open_and_mend(root)
    assert whole[0].read_bytes() == whole[1].read_bytes()
    assert read_run(root) == DOCUMENT
    assert [path.read_bytes() for path in root.glob(".broken-*")] == [whole[0].read_bytes()[:-7]]
    assert not list(root.glob(".t*")), "a leftover remains"


def first_commit(root: Path) -> None:
    Run(root).commit(1)


def none_or_first(root: Path, acknowledged: bool) -> None:
    assert Run(root).restored_step() in ((1,) if acknowledged else (0, 1))


SCENARIOS = {
    "commit": Scenario(two_commits, third_commit, second_or_third),
    "first commit": Scenario(lambda root: None, first_commit, none_or_first),
    "differently": Scenario(first_commit, first_differently, the_only_one_stands),
    "fall back": Scenario(broken_third, fall_back_and_redo, redone),
    "publish": Scenario(published_second, publish_second, whole_model),
    "create": Scenario(lambda root: None, new_run, a_run_or_none),
    "mend the document": Scenario(damaged_document, open_and_mend, mended),
    "mend its copy": Scenario(damaged_copy, open_and_mend, mended),
}


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def die_before(number: int, half: bool) -> list[str]:
    """Make this process kill itself before durable operation `number`, or halfway through it if it is a write."""
    done: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if len(done) == number:
                if half and name == "write":
                    original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(name)
            return original(*arguments, **named)

        return call

    for name in CALLS:
        setattr(os, name, watched(name, getattr(os, name)))
    files.renameat2 = watched("rename", files.renameat2)
    return done


def run_and_die(scenario: Scenario, root: Path, number: int, half: bool) -> tuple[bool, int]:
    """Let a forked process act on `root` until it dies; return whether it acknowledged, and how much it did."""
    reader, writer = os.pipe()
    write = os.write
    child = os.fork()
    if child == 0:
        try:
            done = die_before(number, half)
            scenario.act(root)
            write(writer, len(done).to_bytes(4, "little"))
        finally:
            os._exit(1)
    os.close(writer)
    answer = os.read(reader, 4)
    os.close(reader)
    os.waitpid(child, 0)
    return bool(answer), int.from_bytes(answer, "little")


def kill_everywhere(scenario: Scenario, folder: Path) -> int:
    """Kill the scenario before each of its operations in turn; return how many kills that were."""
    template, root = folder / "template", folder / "root"
    template.mkdir()
    scenario.prepare(template)
    shutil.copytree(template, root)
    acknowledged, total = run_and_die(scenario, root, 1_000_000, half=False)
    assert acknowledged
    assert total
    scenario.check(root, True)
    for number in range(total):
        for half in (False, True):
            shutil.rmtree(root)
            shutil.copytree(template, root)
            acknowledged, _ = run_and_die(scenario, root, number, half)
            scenario.check(root, acknowledged)
    return 2 * total


def kill_at_random(folder: Path) -> int:
    """One run, committing without pause, killed again and again; every process goes on from the last."""
    draw = random.Random(0)
    at_least = 0
    for _ in range(RANDOM_KILLS):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                run = Run(folder)
                step = run.restored_step()
                while True:
                    step += 1
                    run.commit(step)
                    os.write(writer, step.to_bytes(4, "little"))
            finally:
                os._exit(1)
        os.close(writer)
        time.sleep(draw.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = b""
        while more := os.read(reader, 65536):
            said += more
        os.close(reader)
        at_least = int.from_bytes(said[-4:], "little") or at_least
        run = Run(folder)
        found = run.restored_step()
        run.journal.close()
        assert at_least <= found <= at_least + 1 + RANDOM_KILLS
        at_least = found
    return at_least


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [*SCENARIOS, "random"])
def test_killed_at_any_instant(scenario: str, tmp_path: Path) -> None:
    """In a process of its own: forking pytest with its threads would not be sound."""
    command = [sys.executable, "-m", "tests.crash.test_store_kill", scenario, str(tmp_path)]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert int(found.stdout) > 10


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[2])
    print(kill_at_random(place) if sys.argv[1] == "random" else kill_everywhere(SCENARIOS[sys.argv[1]], place))
