"""Processes killed at random instants and at every file operation of a save, asked to stop, left without room."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

from bench.faults.outcome import Outcome, conclude
from bench.faults.server import kill, state_of
from bench.faults.systems import System
from bench.faults.trainers import Spec

RANDOM_KILLS = 16
SYSTEM_CALLS = (
    "openat,open,creat,mkdir,mkdirat,write,pwrite64,ftruncate,fallocate,fsync,fdatasync,close,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir"
)
SAVE_AT = 12
PACE = 0.3  # seconds a step: the run outlasts the three seconds that `enable_jit_checkpoint` waits


def random_instants(system: System, kills: int = RANDOM_KILLS) -> list[Outcome]:
    """Half of the kills at any time of a run, half when a save is under way; then the same command again."""
    draw, found = random.Random(1), []
    whole = system.run(system.spec(output=str(system.new_output()))).seconds
    for number in range(kills):
        spec = system.spec(output=str(system.new_output()))
        pid = system.start(spec)
        if number % 2:
            time.sleep(draw.uniform(0, whole))
        else:
            strike_in_save(system, spec, pid, draw)
        struck = system.kill(pid) == -signal.SIGKILL
        inside = system.saving(spec.output)
        place = "during a save" if inside else "outside a save" if struck else "after the end"
        where = f"{place}, newest checkpoint {system.last_step(spec.output)}"
        found.append(conclude(system, spec, where))
        system.forget(spec)
    return found


def strike_in_save(system: System, spec: Spec, pid: int, draw: random.Random) -> None:
    """Return at a random instant of a random save."""
    wanted = draw.choice(range(spec.save_steps, spec.steps + 1, spec.save_steps))
    while state_of(pid) not in ("Z", ""):
        if system.last_step(spec.output) >= wanted - spec.save_steps and system.saving(spec.output):
            newest = system.last_step(spec.output)
            if system.name == "ours" or newest >= wanted:
                break
    time.sleep(draw.uniform(0, 0.01))


@dataclass(frozen=True)
class Call:
    """A system call of a save: its name, the how-manieth of the process, and what it was done to."""

    name: str
    number: int
    target: str


def every_call_of_a_save(system: System, most: int = 16) -> list[Outcome]:
    """Kill the process when it enters the k-th call that touches the run's folder while it saves step 12."""
    if shutil.which("strace") is None:
        return []
    calls = calls_of_a_save(system)
    chosen = calls if len(calls) <= most else [calls[i * len(calls) // most] for i in range(most)]
    found = []
    for call in chosen:
        spec = system.spec(output=str(system.new_output()))
        pid = system.pause(spec, SAVE_AT - 1)
        inject = f"inject={call.name}:signal=KILL:when={call.number}"
        trace(pid, Path(f"{spec.output}.strace"), ["-e", f"trace={call.name}", "-e", inject])
        code = system.server.wait(pid)
        struck = code == -signal.SIGKILL
        place = f"{call.name} of {call.target}" + ("" if struck else " (not reached)")
        found.append(conclude(system, spec, place))
        system.forget(spec)
    return found


def calls_of_a_save(system: System) -> list[Call]:
    """Watch one save from the end of the step before it to the end of the step after it."""
    spec = replace(system.spec(output=str(system.new_output())), pause_at=SAVE_AT - 1, die_at=SAVE_AT + 1)
    pid = system.start(spec)
    while state_of(pid) not in ("T", "t"):
        time.sleep(0.002)
    log = Path(f"{spec.output}.strace")
    trace(pid, log, ["-y", "-e", f"trace={SYSTEM_CALLS}"])
    system.server.wait(pid)
    counts: dict[tuple[str, str], int] = {}
    found = []
    for line in log.read_text(errors="replace").splitlines():
        made = re.match(r"(\d+)\s+(\w+)\((.*)", line)
        if made is None:
            continue
        thread, name, rest = made.groups()
        counts[thread, name] = counts.get((thread, name), 0) + 1
        inside = re.search(rf"{re.escape(spec.output)}/([^\">,]*)", rest)
        if inside:
            target = re.sub(r"-\d+-[0-9a-z]+", "", inside.group(1))
            found.append(Call(name, counts[thread, name], target))
    return list(dict.fromkeys(found))


def trace(pid: int, log: Path, options: list[str]) -> None:
    """Attach strace to a stopped process and let it go on."""
    subprocess.Popen(
        ["strace", "-f", "-qq", "-o", str(log), *options, "-p", str(pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.002)
    time.sleep(0.02)
    os.kill(pid, signal.SIGCONT)


def terminated(system: System) -> list[Outcome]:
    """SIGTERM after step 10."""
    return [asked_to_stop(system, signal.SIGTERM)]


def interrupted(system: System) -> list[Outcome]:
    """Ctrl-C after step 10."""
    return [asked_to_stop(system, signal.SIGINT)]


def asked_to_stop(system: System, number: signal.Signals) -> Outcome:
    """Send a signal after step 10 and give the command again."""
    spec = system.spec(output=str(system.new_output()), save_on_sigterm=True)
    pid = system.pause(replace(spec, pace=PACE), 10)
    kill(pid, number)
    kill(pid, signal.SIGCONT)
    code = system.server.wait(pid)
    kept, made = system.last_step(spec.output), system.sha256(spec.output)
    outcome = conclude(system, spec, number.name)
    finished = ", a model saved as if finished" if made else ""
    remark = f"exit code {code}, newest checkpoint that of step {kept}{finished}. {outcome.remark}"
    return replace(outcome, remark=remark.strip())


def disk_full(system: System) -> list[Outcome]:
    """Leave 0, 1/4, ... of a checkpoint's size free on a file system of its own before the save of step 12."""
    size = sum(path.stat().st_size for path in system.checkpoints(system.golden(system.spec()))[-1].rglob("*"))
    found = []
    for eighths in (*range(9), 16):  # with room for two it must succeed
        home = system.new_output()
        home.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(home)], check=False).returncode:
            return []
        try:
            found.append(without_room(system, home, size * eighths // 8, f"{eighths}/8 of a checkpoint left"))
        finally:
            subprocess.run(["umount", "-l", str(home)], check=False)
    return found


def without_room(system: System, home: Path, free: int, case: str) -> Outcome:
    spec = system.spec(output=str(home / "run"))
    pid = system.pause(spec, SAVE_AT - 1)
    room = os.statvfs(home)
    ballast = home / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - free))
    kill(pid, signal.SIGCONT)
    code = system.server.wait(pid)
    ballast.unlink()
    outcome = conclude(system, spec, case)
    return replace(outcome, remark=f"meanwhile exit code {code}. {outcome.remark}".strip())
