from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from unbroken.base.stopping import StopNow, interruptible, poll
from unbroken.run.deadline import Deadline
from unbroken.run.stop import ASK, COMMIT, StopRequest, say


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """As a shell in the foreground starts a program; one in the background has it ignore SIGINT."""
    usual = {getattr(signal, name): signal.SIG_DFL for name in (*ASK, COMMIT)}
    usual[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ASK)
def test_the_first_signal_asks(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopRequest().listening() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.reason == f"signal {name}"
        with pytest.raises(StopNow):
            stop.check()
    assert f"{name}: stopping" in capfd.readouterr().err
    assert stop.exit_code == (130 if name == "SIGINT" else 75)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("pause", [0.0, 0.4], ids=["echo", "second"])
def test_the_second_signal_ends_the_process_at_once(pause: float) -> None:
    script = (
        "import os, signal, sys, time; from unbroken.run.stop import StopRequest\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with StopRequest().listening() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT); assert stop.requested\n"
        f"    time.sleep({pause}); os.kill(os.getpid(), signal.SIGINT); time.sleep(0.01)\n"
        "sys.exit(3)\n"
    )
    code = subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode
    assert code == (130 if pause else 3)


def test_asking_for_a_commit_is_no_stop(capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest().listening() as stop:
        os.kill(os.getpid(), getattr(signal, COMMIT))
        assert not stop.requested
        assert stop.take_commit()
        assert not stop.take_commit()
    assert "committing after this step, and going on" in capfd.readouterr().err


@pytest.mark.parametrize("name", [*ASK, COMMIT])
def test_what_came_ignored_stays_ignored(name: str) -> None:
    number = getattr(signal, name)
    signal.signal(number, signal.SIG_IGN)
    with StopRequest().listening() as stop:
        os.kill(os.getpid(), number)
        assert not stop.requested
        assert not stop.take_commit()
    assert signal.getsignal(number) == signal.SIG_IGN


def test_a_program_keeps_the_signals_it_handles_itself() -> None:
    """But for SIGTERM and SIGINT, which it gets back."""
    seen: list[int] = []

    def mine(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    for name in (*ASK, COMMIT):
        signal.signal(getattr(signal, name), mine)
    with StopRequest().listening() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert all(signal.getsignal(getattr(signal, name)) is mine for name in (*ASK, COMMIT))


def test_listening_within_listening_is_listening_once() -> None:
    stop = StopRequest()
    with stop.listening():
        handler = signal.getsignal(signal.SIGTERM)
        with stop.listening():
            assert signal.getsignal(signal.SIGTERM) == handler
        assert signal.getsignal(signal.SIGTERM) == handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_other_threads_do_without_signals() -> None:
    stop = StopRequest()

    def work() -> None:
        with stop.listening():
            stop.ask("the test")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stop.requested
    assert stop.exit_code == 0


def test_the_first_reason_is_kept() -> None:
    stop = StopRequest()
    stop.ask("one")
    stop.ask("two")
    assert stop.reason == "one"


def test_a_deadline_asks_when_a_step_would_not_fit() -> None:
    now = [0.0]
    stop = StopRequest(Deadline(10.0, "17:30", lambda: now[0]))
    stop.deadline.step_took(1.0)
    assert not stop.before_step()
    stop.check()
    now[0] = 7.5
    stop.check()  # nothing but a commit need fit now
    assert stop.before_step()
    assert stop.reason == "stop-at 17:30"
    assert stop.exit_code == 75
    with pytest.raises(StopNow):
        stop.check()


def test_only_interruptible_work_is_left() -> None:
    stop = StopRequest()
    stop.ask("the test")
    poll()
    left: list[str] = []
    with interruptible(stop.check):
        thread = threading.Thread(target=lambda: (poll(), left.append("no")))  # that of a commit
        thread.start()
        thread.join()
        with pytest.raises(StopNow):
            poll()
    assert left == ["no"]
    poll()


def test_a_line_nobody_takes_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that waits for a full pipe would keep the second signal from ending the process."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while os.write(writer, b"x" * 4096):
            pass
    os.set_blocking(writer, True)
    monkeypatch.setattr("unbroken.run.stop.STDERR", writer)
    say("no room")
    os.close(reader)
    say("no reader")
    os.close(writer)
    say("no pipe")


def test_a_closed_stderr_is_not_another_file(tmp_path: Path) -> None:
    """What is opened next has its number: the line about a signal must not end up in a run."""
    script = (
        "import os, signal; from unbroken.run.stop import StopRequest\n"
        f"assert os.open({str(tmp_path / 'journal')!r}, os.O_CREAT | os.O_WRONLY) == 2\n"
        "with StopRequest().listening() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); assert stop.requested\n"
    )
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, script], timeout=60, check=False)
    assert done.returncode == 0
    assert (tmp_path / "journal").read_bytes() == b""
