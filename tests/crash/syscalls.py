"""Strike one system call of a commit (or a restore) after the other, with strace: a kill, or an error.

    python -m tests.crash.syscalls MODE --work FOLDER [--calls fsync,renameat2]

A process makes two commits and then a third, acknowledging each. strace attaches to one of its two threads, so the
count of a call is that thread's own, and the third commit is met at the k-th use of each system call it makes. Then
a new process must find the previous checkpoint or the new one, bit for bit, and the new one if it was acknowledged;
it commits again and leaves nothing behind. Prints how often each call was struck; exits 1 if any point failed, which
the two controls must.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.crash.small_run import Run, assert_tidy, in_new_process
from unbroken.base.errors import StorageError, UnbrokenError
from unbroken.store import files

ATTACHED = re.compile(r"Process \d+ attached")
CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")
FAILED_SYNC = re.compile(r"^(?:\d+ +)?f(?:data)?sync\(\d+<(.*?)>\) += (-1|0)")
GO = signal.SIGUSR1  # waiting for a signal, unlike reading from a pipe, is none of the calls that are counted
THREADS = ("main", "writer")
WHOLE, FAILED = "all", "FAILED"
SPACE_CALLS = {"write", "fallocate", "openat", "mkdir", "fsync", "renameat2", "rename"}  # these may report ENOSPC
RESTARTED = {"read", "readv", "write", "fallocate", "fsync"}  # a signal may interrupt these


@dataclass(frozen=True)
class Point:
    """The k-th use of a system call by one thread."""

    thread: str
    call: str
    k: int


@dataclass
class Outcome:
    """What a process said before its end, and what strace saw."""

    said: list[str]
    log: str
    killed: bool


Act = Callable[[Run, Callable[[str], None]], None]


def commit_third(run: Run, say: Callable[[str], None]) -> None:
    """Commit; after a failure once more, as the same process might."""
    for step in (3, 4):
        try:
            run.commit(step)
        except StorageError as failure:
            say(f"failed {failure}")
        else:
            say(f"committed {step}")
            break


def acknowledge_too_early(run: Run, say: Callable[[str], None]) -> None:
    """A control: this must be found out by a kill."""
    say("committed 3")
    run.commit(3)


def sync_again(run: Run, say: Callable[[str], None]) -> None:
    """A control: an fsync that failed is tried again, which must be found out by an error."""
    sync_once = files.sync_file

    def persistent(handle: int) -> None:
        try:
            sync_once(handle)
        except OSError:
            sync_once(handle)

    files.sync_file = persistent
    commit_third(run, say)


def restore(run: Run, say: Callable[[str], None]) -> None:
    try:
        say(f"restored {run.restored_step()}")
    except UnbrokenError as failure:
        say(f"refused {failure}")


def strike(root: Path, act: Act, thread: str, call: str, inject: str = "") -> Outcome:
    """Let a new process act on `root` while strace watches one of its threads and injects a fault."""
    (ready, tell_ready), (said, say) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {GO})
            run = Run(root)
            writer = run.checkpoints._writer._pool.submit(threading.get_native_id).result()
            os.write(tell_ready, f"{writer}\n".encode())
            signal.sigwait({GO})
            act(run, lambda text: void(os.write(say, text.encode() + b"\n")))
        except BaseException as failure:  # noqa: BLE001 (told to the parent)
            os.write(say, f"crashed {failure!r}\n".encode())
        finally:
            os._exit(0)
    os.close(tell_ready)
    os.close(say)
    writer = int(os.read(ready, 64))  # both threads are there, and wait
    place = child if thread == "main" else writer
    log = root.parent / "strace.log"
    traced = "%file,%desc" if call == WHOLE else f"{call},fsync,fdatasync"
    command = ["strace", "-y", "-o", str(log), "-e", f"trace={traced}", "-p", str(place)]
    strace = subprocess.Popen(
        command + (["-e", f"inject={call}:{inject}"] if inject else []), stderr=subprocess.PIPE, text=True
    )
    assert strace.stderr is not None
    line = strace.stderr.readline()
    if not ATTACHED.search(line):
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise SystemExit(f"strace cannot attach here: {line.strip()}")
    os.kill(child, GO)
    with os.fdopen(said, "rb") as stream:
        texts = stream.read().decode().splitlines()
    _, status = os.waitpid(child, 0)
    strace.stderr.read()
    strace.wait()
    os.close(ready)
    return Outcome(texts, log.read_text(errors="replace"), os.WIFSIGNALED(status))


def void(_: object) -> None:
    """A callback that returns nothing."""


def points(outcomes: dict[str, Outcome], root: Path) -> Iterator[Point]:
    """Yield every use of a system call on a file of the run, by thread."""
    for thread, outcome in outcomes.items():
        count: Counter[str] = Counter()
        for line in outcome.log.splitlines():
            found = CALL.match(line)
            if found:
                count[found[1]] += 1
                if str(root) in line:
                    yield Point(thread, found[1], count[found[1]])


def all_points(template: Path, root: Path, act: Act) -> list[Point]:
    """Trace the act once for each thread, without a fault."""
    outcomes = {}
    for thread in THREADS:
        fresh(template, root)
        outcomes[thread] = strike(root, act, thread, WHOLE)
        assert len(outcomes[thread].said) == 1, outcomes[thread].said
        assert outcomes[thread].said[0] in ("committed 3", "restored 3")
    return list(points(outcomes, root))


def fresh(template: Path, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)


def make_template(template: Path, commits: int) -> None:
    """Make a run with so many commits, and restore it here: what is loaded at first use is loaded from then on."""

    def work() -> None:
        run = Run(template)
        for step in range(1, commits + 1):
            run.commit(step)

    template.mkdir(parents=True)
    in_new_process(work)
    run = Run(template)
    assert run.restored_step() == commits
    run.journal.mark()
    run.journal.close()


def then_a_new_process(root: Path, allowed: set[int]) -> int:
    """Restore in a new process: one of the `allowed` steps, bit for bit; then commit, and leave nothing behind."""

    def work() -> int:
        run = Run(root)
        step = run.restored_step()
        assert step in allowed, f"restored step {step}, not one of {sorted(allowed)}"
        run.commit(step + 1)
        assert_tidy(run)
        assert run.restored_step() == step + 1
        return step

    return int(in_new_process(work))


def check_killed(outcome: Outcome, root: Path) -> None:
    assert outcome.killed, "the process outlived the kill"
    acknowledged = "committed 3" in outcome.said
    then_a_new_process(root, {3} if acknowledged else {2, 3})


def check_failed(outcome: Outcome, root: Path) -> None:
    """The commit failed with a clear error or succeeded; the next one of the same process succeeded."""
    assert not outcome.killed
    assert "(INJECTED)" in outcome.log, "the fault was not injected"
    assert outcome.said, "the process said nothing"
    *failed, last = outcome.said
    assert last in ("committed 3", "committed 4"), outcome.said
    assert all(text.startswith("failed ") for text in failed), outcome.said
    assert_no_second_sync(outcome.log)
    then_a_new_process(root, {int(last.split()[1])})


def check_uninterrupted(outcome: Outcome, root: Path) -> None:
    """An interrupted system call is made again, and nobody notices."""
    assert "(INJECTED)" in outcome.log
    assert outcome.said == ["committed 3"], outcome.said
    then_a_new_process(root, {3})


def check_read(outcome: Outcome, root: Path) -> None:
    """What cannot be read is passed over or refused; whatever is restored is right, and is still there afterwards."""
    assert "(INJECTED)" in outcome.log
    assert outcome.said, "the process said nothing"
    assert outcome.said[0].startswith(("restored 3", "restored 2", "refused ")), outcome.said
    then_a_new_process(root, {2, 3})


def assert_no_second_sync(log: str) -> None:
    """No file whose fsync failed is synced again: the kernel has marked the lost pages clean (folders have none)."""
    failed = set()
    for line in log.splitlines():
        found = FAILED_SYNC.match(line)
        if found and not os.path.isdir(found[1]):
            assert found[1] not in failed, f"fsync was tried again on {found[1]}"
            if found[2] == "-1":
                failed.add(found[1])


@dataclass(frozen=True)
class Mode:
    """What is injected at each point, what must hold afterwards, what the process does, and which calls can fail so."""

    inject: str
    check: Callable[[Outcome, Path], None]
    act: Act = commit_third
    calls: set[str] | None = None
    commits_before: int = 2


MODES = {
    "kill": Mode("signal=SIGKILL:when={}", check_killed),
    "EIO": Mode("error=EIO:when={}", check_failed),
    "ENOSPC": Mode("error=ENOSPC:when={}", check_failed, calls=SPACE_CALLS),
    "EINTR": Mode("error=EINTR:when={}", check_uninterrupted, calls=RESTARTED),
    "read": Mode("error=EIO:when={}", check_read, restore, commits_before=3),
    "control-early": Mode("signal=SIGKILL:when={}", check_killed, acknowledge_too_early),
    "control-sync": Mode("error=EIO:when={}", check_failed, sync_again),
}


def strike_everywhere(mode: Mode, work: Path, only: set[str] | None = None) -> Counter[str]:
    """Strike each use of each system call in turn; return how often each call was struck, and how often it failed."""
    template, root = work / "template", work / "root"
    make_template(template, mode.commits_before)
    struck: Counter[str] = Counter()
    for point in all_points(template, root, mode.act):
        if any(chosen is not None and point.call not in chosen for chosen in (mode.calls, only)):
            continue
        fresh(template, root)
        outcome = strike(root, mode.act, point.thread, point.call, mode.inject.format(point.k))
        struck[f"{point.thread} {point.call}"] += 1
        try:
            mode.check(outcome, root)
        except AssertionError as failure:
            struck_at = next((line for line in outcome.log.splitlines() if "INJECTED" in line), "")
            print(f"{point}: {struck_at}\n    {failure}\n    the process said {outcome.said}")
            struck[FAILED] += 1
    return struck


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--calls", type=lambda text: set(text.split(",")))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    struck = strike_everywhere(MODES[asked.mode], asked.work.resolve() / asked.mode, asked.calls)
    failed = struck.pop(FAILED, 0)
    for name, count in sorted(struck.items()):
        print(f"{name:24} {count:5}")
    print(f"{asked.mode}: {struck.total()} points, {failed} failed")
    sys.exit(1 if failed or not struck else 0)


if __name__ == "__main__":
    main()
