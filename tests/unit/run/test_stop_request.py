from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from unbroken.run.stop import StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_first_signal_asks(number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopRequest().listening() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.reason == f"signal {number.name}"
    assert f"{number.name}: finishing this step" in capfd.readouterr().err
    assert stop.exit_code == code
    assert signal.getsignal(number) == before


def test_the_second_signal_ends_the_process_at_once() -> None:
    script = (
        "import os, signal, time; from unbroken.run.stop import StopRequest\n"
        "with StopRequest().listening() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT); assert stop.requested\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 130


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
