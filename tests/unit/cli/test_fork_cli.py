"""`unbroken fork`: what it prints, what it refuses in one line with nothing written, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.exact.runs import train
from tests.tiny import make_model_folder, make_rows
from tests.unit.cli.bad_input import CONFIG, Desk, listing

from unbroken.cli.main import run
from unbroken.run.summary import find_runs
from unbroken.store.lock import RunLock


@pytest.fixture(scope="session")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run of four steps stopped after three, with checkpoints after two and three."""
    root = tmp_path_factory.mktemp("forked")
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(20)), encoding="utf-8")
    paths = {"model": str(tiny_model), "train_data": str(root / "train.jsonl")}
    assert train({**CONFIG, **paths, "save_steps": 2}, root / "a", stop_after=3).step == 3
    return root / "a"


@pytest.fixture
def midway(desk: Desk, two_checkpoints: Path) -> Desk:
    shutil.copytree(two_checkpoints, desk.root / "runs" / "a")
    return desk


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_what_it_prints(midway: Desk) -> None:
    assert run(["fork", "runs/a@2", "runs/b", "--set", "max_steps=8", "--set", "batch_size=2"]) == 0
    assert midway.capfd.readouterr().out.splitlines() == [
        "runs/b: forked from runs/a at step 2",
        "  batch_size: 4 -> 2",
        "  max_steps: 4 -> 8",
        "  8 steps instead of 4, 6 of them to come",
        "  learning rate: step 3 was 2.5e-05, is now 3.75e-05; it falls to 0 after step 8 (linear)",
        "  examples: step 3 begins at example 5 of 20 in epoch 1; runs/a stood at example 9 of epoch 1: "
        "4 examples come again",
        "  exact by itself from step 2 on; neither what runs/a would have been nor a run begun with these values",
        "to train it: unbroken train runs/b",
    ]
    assert run(["show", "runs/b"]) == 0
    shown = midway.capfd.readouterr().out
    assert "forked from runs/a at step 2 (changed: batch_size, max_steps)" in shown
    assert "forked: step 2 of 8" in shown
    assert "to go on: unbroken train runs/b" in shown
    assert run(["train", "runs/b"]) == 0
    assert "proof: forked from runs/a at step 2 (changed: batch_size, max_steps); from there uninterrupted" in show(
        midway
    )


def show(desk: Desk) -> str:
    desk.capfd.readouterr()
    assert run(["show", "runs/b"]) == 0
    return desk.capfd.readouterr().out


def test_as_json(midway: Desk) -> None:
    assert run(["fork", "runs/a", "runs/b", "--set", "seed=1", "--json"]) == 0
    found = json.loads(midway.capfd.readouterr().out)
    assert (found["run"], found["step"], found["total_steps"], found["parent.step"]) == ("runs/b", 3, 4, 3)
    assert found["changed"] == {"seed": [42, 1]}
    assert found["train"] == "unbroken train runs/b"


@pytest.mark.parametrize("state", ["running", "finished"])
def test_the_old_run_may_be_in_any_state_and_stays_as_it_is(state: str, midway: Desk) -> None:
    lock = RunLock(midway.root / "runs" / "a")
    if state == "finished":
        assert run(["train", "runs/a", "--set", "save_total_limit=3"]) == 0
    else:
        lock.acquire()
    before = listing(midway.root / "runs" / "a")
    assert run(["fork", "runs/a@2", "runs/b"]) == 0
    assert listing(midway.root / "runs" / "a") == before
    lock.release()
    assert run(["train", "runs/b"]) == 0


def test_a_broken_checkpoint_is_passed_over_and_said(midway: Desk) -> None:
    flip(Path("runs/a/checkpoints/00000003/model/model.safetensors"))
    midway.refuses(
        4,
        "the checkpoint of step 3 is broken: …; leave @3 out for the newest one that verifies; steps there are: 2, 3",
        *("fork", "runs/a@3", "runs/b"),
    )
    assert run(["fork", "runs/a", "runs/b"]) == 0
    out, err = midway.capfd.readouterr()
    assert "runs/b: forked from runs/a at step 2" in out
    assert "the checkpoint of step 3 was passed over: runs/a/checkpoints/00000003/model/model.safetensors" in err
    assert sorted(os.listdir("runs/a/checkpoints")) == ["00000002", "00000003"], "nothing was moved"
    flip(Path("runs/a/checkpoints/00000002/optimizer.safetensors"))
    midway.refuses(4, "no checkpoint of runs/a verifies; …", "fork", "runs/a", "runs/c")


REFUSED = {
    "fork": (2, "fork: RUN is missing; see `unbroken fork --help`"),
    "fork runs/a": (2, "fork: NEW is missing; see `unbroken fork --help`"),
    "fork runs/aa runs/c": (2, "there is no runs/aa; did you mean runs/a?"),
    "fork model runs/c": (2, "model is no run (it has no run.json); give the folder of a run"),
    "fork runs/a@ runs/c": (2, "runs/a@: '' is no number of steps; write it as runs/a@500"),
    "fork runs/a@7 runs/c": (4, "runs/a has no checkpoint of step 7; steps there are: 2, 3"),
    "fork runs/a runs/a": (2, "runs/a is a run already; choose a new or an empty folder"),
    "fork runs/a runs/a/b": (2, "runs/a/b lies in the run …; choose a folder outside of it"),
    "fork runs/a runs": (2, "output_dir runs holds files (a) but is no run; choose a new or an empty folder"),
    "fork runs/a train.jsonl": (2, "output_dir train.jsonl is a file; choose another folder"),
    "fork runs/a runs/b --set learnig_rate=1": (2, "--set: unknown key 'learnig_rate'; did you mean 'learning_rate'?"),
    "fork runs/a runs/b --set output_dir=x": (2, "output_dir is given twice: runs/b and x; …"),
    "fork runs/a runs/b --set batch_size=0": (2, "--set: batch_size: 0 is not valid; …"),
    "fork runs/a runs/b --set train_data=trian.jsonl": (3, "no file trian.jsonl; did you mean 'train.jsonl'?"),
    "fork runs/a runs/b --set max_length=65": (2, "max_length 65: this model takes 1 to 64 tokens; …"),
    "fork runs/a runs/b --set device=cuda:7": (2, "device: cuda:7 is not there; …"),
    "fork runs/a runs/b --set max_steps=2": (
        4,
        "the new run would have 2 steps, and runs/a is at step 3 there; there would be nothing left to train; "
        "set max_steps to more than 3, or fork an earlier step: runs/a@STEP",
    ),
    "fork runs/a runs/b --set model=other": (
        4,
        "model: content … (runs/a) -> content …: a fork keeps it; the weights and the optimizer's state are those of "
        "that model; begin a new run from its weights instead: `model: runs/a`",
    ),
    "fork runs/a runs/b --set task=classify": (
        4,
        "task: runs/a is a run of 'embed', not of 'classify'; another task trains other tensors; begin a new run from "
        "its weights: `model: runs/a`",
    ),
}


@pytest.mark.parametrize("typed", REFUSED)
def test_what_is_refused(typed: str, midway: Desk) -> None:
    make_model_folder(midway.root / "other", seed=1)
    code, line = REFUSED[typed]
    midway.refuses(code, line, *typed.split())


def test_an_empty_folder_may_become_the_new_run(midway: Desk) -> None:
    Path("runs/b").mkdir()
    assert run(["fork", "runs/a", "runs/b"]) == 0
    assert Path("runs/b/run.json").is_file()


KILLED = """
import os, signal, sys
import unbroken.run.fork
from unbroken.cli.main import run
from unbroken.store import files, journal
from unbroken.store import run as store_run
done, last = 0, int(sys.argv[1])
def counted(call):
    def made(*arguments, **options):
        global done
        done += 1
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return made
for name in ("create_file", "sync_folder", "rename_new", "replace_file", "make_folder"):
    original = counted(getattr(files, name))
    for module in (files, journal, store_run):
        if hasattr(module, name):
            setattr(module, name, original)
code = run(["fork", "runs/a", "runs/b", "--set", "seed=1"])
print(done)
sys.exit(code)
"""


def killed(place: int) -> subprocess.CompletedProcess[bytes]:
    """Fork in a process that is killed before its durable operation number `place`."""
    return subprocess.run([sys.executable, "-c", KILLED, str(place)], capture_output=True)


def test_a_kill_leaves_no_run_and_the_same_command_works(midway: Desk) -> None:
    """At the beginning, in the middle, before the rename in which the run appears, and right after it."""
    before = listing(midway.root / "runs" / "a")
    total = int(killed(-1).stdout.split()[-1])
    assert total > 20
    for place in (2, total // 2, total - 1, total):
        shutil.rmtree("runs/b")
        assert killed(place).returncode == -signal.SIGKILL
        appeared = place == total
        assert [path.name for path in find_runs(Path("runs"))] == (["a", "b"] if appeared else ["a"])
        assert run(["fork", "runs/a", "runs/b", "--set", "seed=1"]) == (2 if appeared else 0)
        assert sorted(os.listdir("runs")) == ["a", "b"], "what the killed one left is gone"
    assert listing(midway.root / "runs" / "a") == before
    assert run(["train", "runs/b"]) == 0


def test_two_forks_at_once(midway: Desk) -> None:
    aside = Path("runs/.tmp-fork-b")
    aside.mkdir()
    lock = RunLock(aside)
    lock.acquire()
    assert run(["fork", "runs/a", "runs/b"]) == 75
    assert "is in use by process" in midway.capfd.readouterr().err
    lock.release()
    assert run(["fork", "runs/a", "runs/b"]) == 0
