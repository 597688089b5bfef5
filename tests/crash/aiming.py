"""Where to kill a training process, and doing it: SIGKILL from outside, at an instant chosen by phase."""

from __future__ import annotations

import os
import random
import re
import select
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from unbroken.store import layout

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 300  # a process that takes longer hangs
HELD_SECONDS = 0.02  # how long the other thread goes on, at most, while one is held
TYPICAL_SECONDS = 0.001  # of a phase the uninterrupted run did not come to
SPREAD = 1.3  # instants are drawn over this multiple of what a phase takes


@dataclass(frozen=True)
class Stratum:
    """A phase to be killed in: the paths it has in the victim's messages, and how often it may have come before.

    `when`: "first" means before the first commit only, "start" once in each process, "turn" from the end of the first
    of two phases on, "last" after the last step. `after` names a phase before which it does not count.
    """

    pattern: str
    most: int
    weight: int
    when: str = ""
    after: str = ""


STRATA = {
    "import": Stratum(r"import", 4, 4, "start"),
    "read data": Stratum(r"read", 1, 2, "start"),
    "load model": Stratum(r"load", 1, 2, "start"),
    "tokenise": Stratum(r"tokenise", 3, 4, "first"),
    "create run": Stratum(r"create(/.*)?", 10, 4, "first"),
    "before a commit": Stratum(r"forward(/backward)?|optimizer|(commit/)?stage|evaluation|commit/write", 6, 8, "first"),
    "forward": Stratum(r"(replay/)?(head/)?forward", 14, 8),
    "backward": Stratum(r"(replay/)?(head/)?forward/backward", 28, 8),
    "optimizer": Stratum(r"(replay/)?optimizer", 14, 8),
    "journal": Stratum(r"(replay/)?(evaluation/)?journal", 16, 5),
    "evaluation": Stratum(r"(replay/)?evaluation(/.*)?", 8, 7),
    "stage": Stratum(r"((replay|commit)/)?stage", 8, 7),
    "hash": Stratum(r"commit/hash", 400, 6),
    "write": Stratum(r"commit/write", 40, 8),
    "fsync": Stratum(r"commit/(write/)?fsync", 60, 8),
    "rename": Stratum(r"commit/rename", 4, 7),
    "retire": Stratum(r"commit/retire(/.*)?", 8, 7),
    "restore": Stratum(r"restore(/.*)?", 2, 6, "start"),
    "replay": Stratum(r"replay(/.*)?", 20, 8, "start"),
    "boundary": Stratum(r"(replay/|restore/)?boundary", 1, 8, "turn"),
    "head": Stratum(r"(replay/)?head(/.*)?", 4, 8, "turn"),
    "features": Stratum(r"(replay/)?head/features", 1, 5, "turn"),
    "fit": Stratum(r"(replay/)?head/fit", 1, 8, "turn"),
    "after the boundary": Stratum(r"optimizer|journal|commit/.*|evaluation(/.*)?|export", 30, 10, "turn", "boundary"),
    "export": Stratum(r"export(/.*)?", 20, 1, "last"),
    "finished": Stratum(r"finished(/.*)?", 1, 1, "last"),
}
COMMIT = ("stage", "hash", "write", "fsync", "rename", "retire", "commit")


@dataclass(frozen=True)
class Aim:
    """One kill to be made. Without a stratum: at an instant drawn over the life of a process that tells nothing."""

    stratum: str
    edge: str = "+"
    count: int = 1
    hold: bool = False
    share: float = 0.0  # of the time that phase takes, or of `HELD_SECONDS`, or of the life of the process


ALONE = Aim("", share=float("inf"))  # a plain process that nobody kills


@dataclass
class Kill:
    """One SIGKILL: what was aimed at, and where each thread was when it struck."""

    aimed: str
    main: str
    writer: str
    committed: bool  # a checkpoint stood
    inside: bool  # a commit was under way
    seconds_to_new_step: float | None
    step: int | None = None  # how many steps the state in memory had, where it told; else what is on record
    boundary: int | None = None  # the step at which the second phase begins

    @property
    def side(self) -> str:
        """Where in a run of two phases it struck."""
        if self.boundary is None:
            return "a run of one phase"
        if self.step is None or self.main.startswith("restore"):
            return "before the first step of a process"
        if self.step == self.boundary:
            return "at the boundary, and in the step after it"
        return "before the boundary" if self.step < self.boundary else "after the first step of the head"

    @property
    def phases(self) -> set[str]:
        """The phases it struck in, by the names of the strata."""
        if not self.aimed:
            return {"not observed"}
        main, writer = phase_of(self.main), phase_of(self.writer)
        found = {main, writer} - {"between"} or {main}
        for phase in ("replay", "head"):
            if phase in self.main.split("/"):
                found.add(phase)
        if self.boundary is not None and (self.step or 0) >= self.boundary:
            found.add("after the boundary")
        if not self.committed:
            found.add("before a commit")
        return found


def phase_of(path: str) -> str:
    """Name the phase a path of the victim's messages stands for: the part that says most."""
    parts = path.split("/")
    known = {"read": "read data", "load": "load model", "create": "create run"}
    for name in ("create", "load", "evaluation", "export", "restore", "finished", "retire"):
        if name in parts:
            return known.get(name, name)
    last = parts[-1]
    return "between" if last in ("", "replay") else known.get(last, last)


@dataclass
class Watched:
    """What a process told until it ended."""

    began: float
    paths: dict[str, str] = field(default_factory=lambda: {"main": "", "writer": ""})
    entered: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds_to_new_step: float | None = None
    step: int | None = None
    struck: str | None = None  # the path that was aimed at, once the victim is there

    def take(self, line: str) -> None:
        """Follow one message."""
        thread, edge, name = line.split(" ", 2)
        now = time.monotonic()
        match edge:
            case "+":
                self.paths[thread] = name
                self.entered[thread + name] = now
            case "-":
                self.paths[thread] = name.rpartition("/")[0]
                self.seconds[name].append(now - self.entered[thread + name])
            case "!":
                self.struck = name
            case "@":
                self.step = int(name)
            case "=" if self.seconds_to_new_step is None:
                self.seconds_to_new_step = now - self.began


def draw_aim(name: str, draw: random.Random) -> Aim:
    """Choose an occurrence of a stratum and an instant in it; half of the time the victim waits there to be killed."""
    edge = draw.choice("++-") if (hold := draw.random() < 0.5) else "+"
    return Aim(name, edge, draw.randint(1, STRATA[name].most), hold, draw.random())


@dataclass
class Typical:
    """How long phases take, from runs left alone."""

    seconds: dict[str, float] = field(default_factory=dict)
    life: float = 3.0  # of a whole process
    start: float = 0.0  # to the first step

    @classmethod
    def of(cls, watched: Watched, life: float) -> Typical:
        seconds = {name: median(times) for name, times in watched.seconds.items()}
        return cls(seconds, life, watched.seconds_to_new_step or 0.0)


def start(arguments: list[str], log: Path, aim: Aim | None, typical: Typical, root: Path) -> tuple[int, Any, Watched]:
    """Run the command until it ends or is killed; return its exit code, the kill if it came to that, what it told.

    Raises `subprocess.TimeoutExpired` where it hangs.
    """
    if aim is not None and not aim.stratum:
        return start_unobserved(arguments, log, aim, typical, root)
    reader, writer = os.pipe()
    told = aim or Aim("import", count=0)  # a count that never comes: it only tells
    # Most kills are to follow a commit; where there is none yet, the first one is waited for.
    stratum = STRATA[told.stratum]
    after = stratum.after or ("commit" if stratum.when == "" and not checkpoint_names(root) else "")
    options = [str(writer), stratum.pattern, told.edge, str(told.count), str(int(told.hold)), after, "--"]
    command = [sys.executable, "-m", "tests.crash.victim", *options, *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, pass_fds=[writer], cwd=ROOT, env=paths())
    os.close(writer)
    watched = follow(process, reader, aim, typical)
    code = process.wait()
    if code >= 0:
        return code, None, watched
    inside = watched.paths["writer"].startswith("commit") or phase_of(watched.paths["main"]) == "stage"
    kill = Kill(
        told.stratum,
        watched.paths["main"],
        watched.paths["writer"],
        bool(checkpoint_names(root)),
        inside,
        watched.seconds_to_new_step,
        watched.step,
    )
    return code, kill, watched


def follow(process: subprocess.Popen[bytes], reader: int, aim: Aim | None, typical: Typical) -> Watched:
    """Read messages until the process is gone, and kill it when the time has come."""
    watched = Watched(time.monotonic())
    limit, moment, rest = watched.began + LIMIT_SECONDS, float("inf"), b""
    while True:
        now = time.monotonic()
        if now >= min(moment, limit):
            process.kill()
            if now >= limit:
                raise subprocess.TimeoutExpired(process.args, LIMIT_SECONDS)
            moment = float("inf")
        ready, _, _ = select.select([reader], [], [], max(0.0, min(moment, limit) - now))
        if not ready:
            continue
        block = os.read(reader, 65536)
        if not block:
            os.close(reader)
            return watched
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            watched.take(line.decode())
        if aim is not None and watched.struck is not None and moment == float("inf") and process.poll() is None:
            scale = HELD_SECONDS if aim.hold else SPREAD * typical.seconds.get(watched.struck, TYPICAL_SECONDS)
            moment = time.monotonic() + aim.share * scale


def start_unobserved(
    arguments: list[str], log: Path, aim: Aim, typical: Typical, root: Path
) -> tuple[int, Any, Watched]:
    """Run the plain command and kill it at an instant drawn over its life."""
    with log.open("ab") as output:
        command = [sys.executable, "-m", "unbroken", *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=paths())
    watched = Watched(time.monotonic())
    moment = aim.share * typical.life
    try:
        return process.wait(min(moment, LIMIT_SECONDS)), None, watched
    except subprocess.TimeoutExpired:
        process.kill()
        if moment > LIMIT_SECONDS:
            raise
    code = process.wait()
    if code >= 0:
        return code, None, watched
    inside = any(name.startswith((layout.UNFINISHED_PREFIX, layout.TRASH_PREFIX)) for name in folder_names(root))
    return code, Kill("", "", "", bool(checkpoint_names(root)), inside, None, step_on_record(root)), watched


def paths() -> dict[str, str]:
    """Return an environment in which a child finds the modules this process has found."""
    found = [str(ROOT), str(ROOT / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))}


def folder_names(root: Path) -> list[str]:
    """Return what lies in a run's folder of checkpoints."""
    try:
        return os.listdir(root / layout.CHECKPOINTS_FOLDER)
    except FileNotFoundError:
        return []


def checkpoint_names(root: Path) -> list[str]:
    """Return the names of the checkpoints that stand, in ascending order."""
    return sorted(name for name in folder_names(root) if layout.step_of(name) is not None)


def step_on_record(root: Path) -> int:
    """Return the last step in the journal; 0 without one."""
    try:
        found = re.findall(rb'"kind":"step".*?"n":(\d+)', (root / layout.JOURNAL_FILE).read_bytes())
    except FileNotFoundError:
        return 0
    return int(found[-1]) if found else 0
