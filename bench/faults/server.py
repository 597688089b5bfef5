"""A process that has imported what a trainer imports, and nothing else; it forks one process a command.

A command so starts in milliseconds instead of seconds. What is forked has run no operation yet, begins with the signal
handlers of a fresh interpreter and its own process group, and ends as a script would: 0, `sys.exit`'s code, 1 after a
traceback. Parent and children speak JSON, a line a message.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.faults.trainers import TRAINERS, Spec

REPOSITORY = Path(__file__).parents[2]
MODULES_FILE = "modules.json"
POLL_SECONDS = 0.002
TIMEOUT_SECONDS = 120.0
HUNG = 124


class Server:
    """Starts the commands of one system; `modules` are those its children were seen to import."""

    def __init__(self, system: str, work: Path) -> None:
        self.system, self.work = system, work
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        source = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(self.work / "cache")}
        return subprocess.Popen(
            [sys.executable, "-m", "bench.faults.server", self.system, str(self.work)],
            env={**os.environ, **alone, **offline, "PYTHONPATH": source},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def restart(self) -> None:
        """Import what the last command imported, too."""
        self.close()
        self.process = self._start()

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def start(self, spec: Spec, log: Path) -> int:
        """Begin a command and return its process id; its output is appended to `log`."""
        return int(self._ask({"spec": asdict(spec), "log": str(log)}))

    def wait(self, pid: int, seconds: float = TIMEOUT_SECONDS) -> int:
        """Return the exit code of a command, negative for a signal; kill it after `seconds` (then 124)."""
        return int(self._ask({"wait": pid, "seconds": seconds}))

    def _ask(self, message: dict[str, Any]) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Kill a command and the workers it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def state_of(pid: int) -> str:
    """Return the kernel's letter for the state of a process: T stopped, Z ended; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def wait_until_stopped(pid: int, seconds: float = TIMEOUT_SECONDS) -> bool:
    """Wait until a process stopped itself; False if it ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (state := state_of(pid)) in ("T", "t"):
            return True
        if state in ("Z", ""):
            return False
        time.sleep(POLL_SECONDS)
    return False


def serve(system: str, work: Path) -> None:
    """Answer messages until stdin is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_all(work / f"{system}-{MODULES_FILE}")
    for line in sys.stdin:
        message = json.loads(line)
        if "spec" in message:
            answer = fork(system, Spec(**message["spec"]), Path(message["log"]), work)
        else:
            answer = reap(message["wait"], message["seconds"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def import_all(listed: Path) -> None:
    """Import what an earlier command imported; a module that cannot be imported by itself is left to the command."""
    for name in json.loads(listed.read_text()) if listed.exists() else ():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def reap(pid: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    kill(pid)
    os.waitpid(pid, 0)
    return HUNG


def fork(system: str, spec: Spec, log: Path, work: Path) -> int:
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the child may have done it
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        redirect(log)
        limit_threads(spec.threads)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        listed = work / f"{system}-{MODULES_FILE}"
        if not listed.exists():
            before = set(sys.modules)
            run_noting_modules(system, spec, before, listed)
        else:
            TRAINERS[system](spec)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:  # noqa: BLE001 - what an interpreter does at its top
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)


def limit_threads(threads: int) -> None:
    """Do what `taskset` and OMP_NUM_THREADS would have done for a fresh process."""
    import torch

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[:threads]))
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def run_noting_modules(system: str, spec: Spec, before: set[str], listed: Path) -> None:
    """Carry out a command and write down what it imported, however it ends."""
    leave = os._exit

    def note(code: int) -> None:
        listed.write_text(json.dumps(sorted(set(sys.modules) - before)))
        leave(code)

    os._exit = note  # type: ignore[assignment]
    TRAINERS[system](spec)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
