"""Two processes and one run: one trains, the other says whom it found; who lost the run writes nothing more in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.exact.runs import assert_same_run, step_records, train
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import BusyError
from unbroken.run.report import Event, Stepped
from unbroken.run.stop import StopRequest
from unbroken.store.lock import RunLock, holder
from unbroken.tasks.train import Request, carry_out

slow = pytest.mark.slow
COMMAND = [sys.executable, "-m", "unbroken", "train", "c.yaml"]
RACE = """
import sys, time
from pathlib import Path
from unbroken.base.errors import BusyError
from unbroken.store.lock import RunLock

root = Path(sys.argv[1])
for line in sys.stdin:  # a moment to start at
    while time.time() < float(line):
        pass
    lock = RunLock(root)
    try:
        lock.acquire()
    except BusyError as busy:
        print(busy, flush=True)
        continue
    print("held", flush=True)
    sys.stdin.readline()
    lock.release()
    print("released", flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    rows = make_rows(40)
    return {
        "task": "embed",
        "model": str(model),
        "train_data": rows,
        "batch_size": 4,
        "max_steps": 12,
        "threads": 1,
        "save_steps": 2,
    } | changes


@contextmanager
def processes(count: int, command: list[str], cwd: Path, **options: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """Start them at once; whatever happens, none outlives the block."""
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options)
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def desk(root: Path, model: Path, **changes: Any) -> Path:
    """Write a configuration and its rows into `root`."""
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(40)), encoding="utf-8")
    asked = values(model, train_data="rows.jsonl", output_dir="run", **changes)
    (root / "c.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    return root


def test_many_races_for_one_lock(tmp_path: Path) -> None:
    """Started at the same instant, two hundred times: one holds it, the other names that one, never a dead one."""
    (tmp_path / "holder.json").write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "since": "then"}))
    with processes(2, [sys.executable, "-c", RACE, str(tmp_path)], tmp_path) as racers:
        for _ in range(200):
            moment = f"{time.time() + 0.005}\n"
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(moment)
                racer.stdin.flush()
            said = {racer: racer.stdout.readline().strip() for racer in racers if racer.stdout is not None}
            assert list(said.values()).count("held") == 1, said
            [winner] = [racer for racer, line in said.items() if line == "held"]
            [line] = [line for racer, line in said.items() if racer is not winner]
            assert f"is in use by process {winner.pid} on {socket.gethostname()} since 20" in line
            assert winner.stdin is not None
            assert winner.stdout is not None
            winner.stdin.write("\n")
            winner.stdin.flush()
            assert winner.stdout.readline() == "released\n"


@pytest.mark.parametrize(
    ("count", "begun"), [(2, True), pytest.param(4, False, marks=slow), pytest.param(8, True, marks=slow)]
)
def test_the_same_command_several_times_at_once(count: int, begun: bool, model: Path, tmp_path: Path) -> None:
    """A new run, or one whose holder is gone: all but one end with 75 and say who has it."""
    desk(tmp_path, model, max_steps=400)
    if begun:
        train(values(model, max_steps=400), tmp_path / "run", stop_after=3)
        stale = {"pid": os.getpid(), "host": "another", "since": "before the reboot", "command": "gone"}
        (tmp_path / "run" / "holder.json").write_text(json.dumps(stale))
    with processes(count, COMMAND, tmp_path) as started:
        wait_until(lambda: sum(process.poll() is not None for process in started) == count - 1)
        codes = {process.pid: process.returncode for process in started if process.poll() is not None}
        [winner] = [process for process in started if process.pid not in codes]
        assert set(codes.values()) == {75}
        for loser in started:
            if loser is not winner:
                line = loser.communicate()[1]
                assert re.search(rf"unbroken: run is in use by process {winner.pid} on \S+ since 20\S+ \(", line), line
                assert line.count("\n") == 1
        journal = tmp_path / "run" / "journal.jsonl"
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b'"kind":"segment"') > begun)
        winner.send_signal(signal.SIGTERM)
        winner.communicate()
        assert winner.returncode == 75
    assert journal.read_bytes().count(b'"kind":"segment"') == 1 + begun, "the losers began none"


def test_a_stopped_holder_still_holds(model: Path, tmp_path: Path) -> None:
    desk(tmp_path, model, max_steps=100_000)
    with processes(1, COMMAND, tmp_path) as [first]:
        wait_until(lambda: (tmp_path / "run" / "checkpoints" / "00000002").exists())
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == 75
        assert f"in use by process {first.pid} on" in second.stderr
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75


def deleted(run: Path) -> Path:
    """Somebody takes the lock for stale and deletes it."""
    (run / ".lock").unlink()
    return run


def moved(run: Path) -> Path:
    return run.rename(run.with_name("moved"))


def copied_back(run: Path) -> Path:
    """The run is moved away, and a copy of it put in its place."""
    shutil.copytree(run.rename(run.with_name("moved")), run)
    return run


@pytest.mark.parametrize("lose", [deleted, copied_back])
def test_who_lost_the_run_writes_nothing_more(lose: Callable[[Path], Path], model: Path, tmp_path: Path) -> None:
    """The second one finishes it, to the bit; the first one ends with 75 and has not touched what the second made."""
    run, asked = tmp_path / "run", values(model)
    train(asked, tmp_path / "whole")
    found: dict[str, tuple[int, int]] = {}

    def listing() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")}

    def report(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 5:
            time.sleep(0.2)  # for the commit of step 4, should it be under way
            assert train(asked, lose(run)).finished
            found.update(listing())

    with pytest.raises(BusyError, match=r"run is no longer held by this process.*run the same command again"):
        carry_out(Request({**asked, "output_dir": str(run)}), report, StopRequest())
    assert listing() == found
    assert_same_run(run, tmp_path / "whole")
    numbers = [record[0] for record in step_records(run)]
    assert numbers == sorted(set(numbers)), "a step is on record once"


def test_a_run_moved_while_it_trains(model: Path, tmp_path: Path) -> None:
    """It is still held where it is now; the process that trains ends, makes nothing at the old place, and the run
    goes on at the new one."""
    train(values(model), tmp_path / "whole")

    def report(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 5:
            time.sleep(0.2)  # for the commit of step 4, should it be under way
            with pytest.raises(BusyError, match=f"in use by process {os.getpid()} on"):
                train(values(model), moved(tmp_path / "run"))

    with pytest.raises(BusyError, match=r"run is no longer held by this process.*with the run's new path"):
        carry_out(Request({**values(model), "output_dir": str(tmp_path / "run")}), report, StopRequest())
    assert not (tmp_path / "run").exists()
    assert train(values(model), tmp_path / "moved").finished
    assert_same_run(tmp_path / "moved", tmp_path / "whole")


def test_a_new_run_in_the_place_of_one_that_trains(model: Path, tmp_path: Path) -> None:
    """Moved away by hand and begun anew with another seed: the first process leaves the new run as it is."""
    run = tmp_path / "run"
    train(values(model, seed=8), tmp_path / "whole")

    def report(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 5:
            moved(run)
            train(values(model, seed=8), run, stop_after=7)

    with pytest.raises(BusyError, match="no longer held"):
        carry_out(Request({**values(model), "output_dir": str(run)}), report, StopRequest())
    assert train(values(model, seed=8), run).finished
    assert_same_run(run, tmp_path / "whole")
    assert train(values(model), tmp_path / "moved").finished


def test_restart_does_not_move_a_run_that_trains(model: Path, tmp_path: Path) -> None:
    refused = []

    def report(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 5:
            with pytest.raises(BusyError) as busy:
                train(values(model), tmp_path / "run", restart=True)
            refused.append(busy.value)

    assert carry_out(Request({**values(model), "output_dir": str(tmp_path / "run")}), report, StopRequest()).finished
    assert f"in use by process {os.getpid()} on" in str(refused[0])
    assert sorted(os.listdir(tmp_path)) == ["run"]


@pytest.mark.slow
def test_a_zombie_wakes_up(model: Path, tmp_path: Path) -> None:
    """A real process is stopped, its lock deleted, the run finished by another one; then it wakes up."""
    desk(tmp_path, model, max_steps=120)
    train(values(model, max_steps=120), tmp_path / "whole")
    with processes(1, COMMAND, tmp_path) as [first]:
        wait_until(lambda: (tmp_path / "run" / "checkpoints" / "00000004").exists())
        first.send_signal(signal.SIGSTOP)
        deleted(tmp_path / "run")
        second = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert second.returncode == 0, second.stderr
        first.send_signal(signal.SIGCONT)
        err = first.communicate(timeout=60)[1]
        assert first.returncode == 75, err
        assert "unbroken: run is no longer held by this process" in err.splitlines()[-1]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_what_was_released_is_not_removed_from_another(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    (tmp_path / ".lock").unlink()
    with second:
        first.release()
        assert holder(tmp_path) is not None
        with pytest.raises(BusyError):
            first.require_held()
        second.require_held()
