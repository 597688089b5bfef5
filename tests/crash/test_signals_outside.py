"""Real processes, signalled and cut off from outside: a terminal, `timeout`, the first milliseconds."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.crash.test_signals import CONFIG, ENDLESS, assert_whole, records
from tests.tiny import make_model_folder, make_rows

COMMAND = [sys.executable, "-m", "unbroken", "train", "c.yaml"]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a run that no test waits for the end of."""
    make_model_folder(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(30)), encoding="utf-8")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG | ENDLESS | {"save_steps": 50}), encoding="utf-8")
    return tmp_path


def usual_signals() -> None:
    """Be in a session of one's own, with the dispositions of a shell in the foreground."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(desk: Path, command: list[str] | None = None, **streams: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command or COMMAND,
        cwd=desk,
        env=environment,
        text=True,
        preexec_fn=usual_signals,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | streams),
    )


def wait_for_steps(desk: Path, count: int, alive: Callable[[], bool]) -> None:
    def steps() -> int:
        try:
            return (desk / "run" / "journal.jsonl").read_bytes().count(b'"kind":"step"')
        except OSError:
            return 0

    until = time.monotonic() + 120
    while steps() < count and alive():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_ctrl_c_and_a_closed_terminal(desk: Path) -> None:
    """The key Ctrl-C, in a terminal; then the same command in a terminal that goes away."""
    child, terminal = fork_in_terminal(desk)
    wait_for_steps(desk, 5, lambda: True)
    os.write(terminal, b"\x03")
    shown = read_all(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130, shown
    assert "SIGINT: stopping" in shown
    assert shown.endswith("run again: unbroken train c.yaml\r\n")
    assert "Traceback" not in shown
    assert_whole(desk / "run")

    stopped = records(desk / "run", "stop")[-1]["n"]
    child, terminal = fork_in_terminal(desk)
    wait_for_steps(desk, stopped + 5, lambda: True)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
    assert records(desk / "run", "stop")[-1]["reason"] == "signal SIGHUP"
    assert_whole(desk / "run")


def fork_in_terminal(desk: Path) -> tuple[int, int]:
    child, terminal = pty.fork()
    if child == 0:
        try:
            os.chdir(desk)
            for name in ("SIGINT", "SIGHUP"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            os.execve(COMMAND[0], COMMAND, {**os.environ, "OMP_NUM_THREADS": "1"})
        finally:
            os._exit(99)
    return child, terminal


def read_all(terminal: int) -> str:
    """Read until the process has let go of the terminal."""
    shown = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            piece = b""
        if not piece:
            break
        shown += piece
    os.close(terminal)
    return shown.decode()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs GNU timeout")
def test_timeout_sends_its_signal_twice(desk: Path) -> None:
    """To the process, and to the group it is in."""
    shown, _ = start(desk, ["timeout", "--verbose", "12", *COMMAND]).communicate(timeout=120)
    assert shown.count("SIGTERM: stopping") == 1, shown
    assert "ended at once" not in shown
    assert records(desk / "run", "stop")[-1]["reason"] == "signal SIGTERM"
    assert_whole(desk / "run")


def test_a_deadline_that_is_past_is_refused(desk: Path) -> None:
    process = start(desk, [*COMMAND, "--stop-at", "2001-01-01T00:00"])
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert shown.count("\n") == 1
    assert "stop-at 2001-01-01T00:00 is past" in shown
    assert not (desk / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_from_the_first_milliseconds_on(number: signal.Signals, desk: Path) -> None:
    """Signals at many instants of starting: before our code runs the system's way to end, after it ours."""
    ours = 0
    for millisecond in (*range(5, 100, 15), *range(100, 4000, 300)):
        process = start(desk)
        time.sleep(millisecond / 1000)
        process.send_signal(number)
        shown, _ = process.communicate(timeout=60)
        usual = 130 if number is signal.SIGINT else 75
        if "stopping" in shown:
            ours += 1
            assert process.returncode == usual, (millisecond, shown)
            assert "Traceback" not in shown, (millisecond, shown)
        else:
            assert process.returncode in (-number, 1, 130), (millisecond, shown)
            assert not (desk / "run").exists()
    assert ours > 10
    if (desk / "run" / "journal.jsonl").exists() and records(desk / "run", "segment"):
        assert_whole(desk / "run")
