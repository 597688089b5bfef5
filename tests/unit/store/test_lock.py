from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unbroken.base.errors import BusyError, ConfigError
from unbroken.store.lock import RunLock, holder

HOLD = """
import sys, time
from pathlib import Path
from unbroken.store.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_holder_is_told_of_the_first(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(BusyError) as caught:
            RunLock(tmp_path).acquire()
        assert caught.value.exit_code == 75
        assert f"process {os.getpid()}" in str(caught.value)
        assert "run the same command again" in str(caught.value)
        assert holder(tmp_path) is not None
    assert holder(tmp_path) is None
    with RunLock(tmp_path):
        pass


def test_the_holder_is_described(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        assert set(json.loads((tmp_path / "holder.json").read_text())) == {"pid", "host", "since", "command"}


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match=f"process {process.pid} "):
            RunLock(tmp_path).acquire()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "holder.json").exists()  # stale, and without effect
        with RunLock(tmp_path):
            names = holder(tmp_path)
            assert names is not None
            assert names["pid"] == os.getpid()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_a_damaged_holder_file_only_hides_the_name(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "holder.json").write_text("{")
        with pytest.raises(BusyError, match="another process"):
            RunLock(tmp_path).acquire()


def test_a_holder_that_has_not_said_its_name_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits for the disk, the name of a dead one from another machine must not stand for it."""
    (tmp_path / "holder.json").write_text(json.dumps({"pid": 1, "host": "another", "since": "before"}))
    locked = threading.Event()

    def slow(folder: Path) -> None:
        locked.set()
        time.sleep(0.3)

    monkeypatch.setattr("unbroken.store.lock.sync_folder", slow)
    first = RunLock(tmp_path)
    holding = threading.Thread(target=first.acquire)
    holding.start()
    locked.wait()
    with pytest.raises(BusyError, match=f"in use by process {os.getpid()} on"):
        RunLock(tmp_path).acquire()
    holding.join()
    first.release()


def test_a_missing_folder_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write in"):
        RunLock(tmp_path / "file").acquire()


def test_releasing_what_is_not_held_does_nothing(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        RunLock(tmp_path).release()
        assert holder(tmp_path) is not None
