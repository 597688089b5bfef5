"""`unbroken train` in processes that signal themselves at a chosen place. Forked from one that has imported torch, but
computed nothing: a process costs a fifth of a second instead of three.

A line on stdin asks for a process (the fields of `Case`), a line on stdout says what it ended with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from unbroken.run.stop import ECHO_SECONDS

PLACES = {
    "arguments": ("unbroken.base.config", "parse_overrides"),
    "data": ("unbroken.plan.source", "_collect"),
    "load": ("unbroken.models.encoder", "build_backbone"),
    "create": ("unbroken.store.run", "sweep"),
    "tokenising": ("unbroken.models.tokenizing", "Tokenizer._truncate"),
    "restore": ("unbroken.store.checkpoints", "read_checkpoint"),
    "begin": ("unbroken.run.engine", "resume_point"),
    "step": ("unbroken.run.stepping", "update"),
    "commit": ("unbroken.store.commit", "_fill"),
    "evaluation": ("unbroken.models.inference", "token_batches"),
    "canary": ("unbroken.run.stepping", "Steps.foresee"),
    "publish": ("unbroken.run.folder", "publish_model"),
    "finished": ("unbroken.run.folder", "proof"),
}


@dataclass(frozen=True)
class Case:
    """A process that at a certain call of a place gets signals, `pause` seconds apart; each ambush is such a triple."""

    arguments: list[str]
    folder: str
    ambushes: list[tuple[str, int, list[int]]] = field(default_factory=list)
    pause: float = 2 * ECHO_SECONDS
    stream: str = "file"  # what stdout and stderr are: or "broken pipe", "full", "closed"
    ignored: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What became of a process."""

    code: int
    output: str


class Server:
    """The process that the cases are forked from."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "output.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.signalled", str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, case: Case) -> Outcome:
        """Run one case."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(asdict(case)), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return Outcome(code, self.log.read_text(encoding="utf-8"))


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        assert server.process.stdin is not None
        assert server.process.stdout is not None
        server.process.stdin.close()
        server.process.stdout.close()
        server.process.wait(timeout=60)


def serve(log: str) -> None:
    for module, _ in PLACES.values():
        import_module(module)
    import_module("unbroken.tasks.embed.job")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become(Case(**json.loads(line)), log)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(case: Case, log: str) -> None:
    """Be the process of a case: with its streams and dispositions, and the signals lying in wait."""
    try:
        for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in case.ignored:
            signal.signal(number, signal.SIG_IGN)
        take_streams(case.stream, log)
        os.chdir(case.folder)
        for ambush in case.ambushes:
            lie_in_wait(*ambush, case.pause)
        sys.argv = ["unbroken", *case.arguments]
        from unbroken.cli.start import main

        main()
    except BaseException as failure:  # noqa: BLE001 (a fork must not go on as its parent)
        os.write(2, repr(failure).encode())
    finally:
        os._exit(99)


def take_streams(stream: str, log: str) -> None:
    file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    if stream == "broken pipe":
        reader, file = os.pipe()
        os.close(reader)
    elif stream == "full":
        file = os.open("/dev/full", os.O_WRONLY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(file, number)
    os.closerange(3, 64)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8") for number in (1, 2))  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    if stream == "closed":
        os.closerange(0, 64)
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None  # as Python has it then


def lie_in_wait(place: str, at_call: int, signals: list[int], pause: float) -> None:
    names = PLACES[place][1].split(".")
    holder: Any = import_module(PLACES[place][0])
    for name in names[:-1]:
        holder = getattr(holder, name)
    real: Callable[..., Any] = getattr(holder, names[-1])
    calls = 0

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call:
            for number in signals:
                os.kill(os.getpid(), number)
                time.sleep(pause)
        return real(*args, **kwargs)

    setattr(holder, names[-1], struck)


if __name__ == "__main__":
    serve(sys.argv[1])
