"""Commit, append, publish and train on a disk with room for so many pages, from none to enough.

    unshare -m python -m tests.crash.full_disk {commit,inodes,append,publish,train} --work FOLDER

Mounts a small tmpfs, so it needs a mount namespace of its own (`unshare -m`, as root). A filler leaves exactly so many
pages free. Each time: what was committed before stands, nothing half-written is left, the message says what to do,
and once there is room the same work succeeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from tests.crash.small_run import Run, assert_tidy, in_new_process
from tests.exact.runs import assert_same_run, train
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import StorageError
from unbroken.run.report import Event, Stepped
from unbroken.run.stop import StopRequest
from unbroken.store import files
from unbroken.store.checkpoints import publish_model
from unbroken.tasks.train import Request, carry_out

PAGE = 4096
DISK_PAGES, DISK_FILES = 256, 200
ADVICE = ("free some space", "delete some files")


class SmallDisk:
    """A tmpfs that can be filled up to so many free pages, or so many free files."""

    def __init__(self, place: Path, pages: int = DISK_PAGES, inodes: int = DISK_FILES) -> None:
        self.place, self.pages = place, pages
        place.mkdir(parents=True, exist_ok=True)
        options = f"size={pages * PAGE},nr_inodes={inodes}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)

    def remove(self) -> None:
        subprocess.run(["umount", str(self.place)], check=True)

    def leave_pages(self, free: int) -> None:
        self.empty()
        status = os.statvfs(self.place)
        with (self.place / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, max(1, (status.f_bavail - free) * PAGE))

    def leave_files(self, free: int) -> None:
        self.empty()
        (self.place / "fillers").mkdir()
        for number in range(os.statvfs(self.place).f_favail - free):
            (self.place / "fillers" / str(number)).touch()

    def empty(self) -> None:
        subprocess.run(["rm", "-rf", str(self.place / "filler"), str(self.place / "fillers")], check=True)


def without_preflight() -> None:
    """Let the disk be found full by whatever call is the first to need room."""
    files.free_bytes = lambda path: 1 << 40
    files.free_inodes = lambda path: None


def without_reservation() -> None:
    """And not by the reservation, but in the middle of a write."""
    without_preflight()
    files.reserve = lambda handle, size: None


VARIANTS: dict[str, Callable[[], None]] = {
    "as it is": lambda: None,
    "without preflight": without_preflight,
    "without reservation": without_reservation,
}


def attempt(work: Callable[[], object]) -> str:
    """Return "done", or the message of the failure, which must say what to do."""
    message = ""
    try:
        work()
    except StorageError as failure:
        message = str(failure)
    assert not message or any(text in message for text in ADVICE), f"no advice: {message}"
    return message or "done"


def two_commits(root: Path) -> None:
    root.mkdir()
    run = Run(root)
    run.commit(1)
    run.commit(2)


def commit_with_little(work: Path, leave: Callable[[SmallDisk, int], None], most: int) -> Counter[str]:
    """Commit a third time with 0, 1, 2, ... pages (or files) free, until it succeeds with every variant."""
    outcomes: Counter[str] = Counter()
    for name, variant in VARIANTS.items():
        enough = 0
        for free in range(most):
            disk = SmallDisk(work / "disk")
            root = disk.place / "run"
            try:
                in_new_process(lambda root=root: two_commits(root))
                leave(disk, free)
                said = in_new_process(lambda root=root, variant=variant: [variant(), commit_third(root)][1])
                outcomes[f"{name}: {'committed' if said == 'done' else 'refused'}"] += 1
                step = in_new_process(lambda root=root: Run(root).restored_step())
                assert step == (3 if said == "done" else 2), f"{free} free, {said}: restored step {step}"
                assert not list((root / "checkpoints").glob(".tmp-*")), f"{free} free: a leftover takes up room"
                disk.empty()
                in_new_process(lambda root=root: go_on(root))
            finally:
                disk.remove()
            enough = enough + 1 if said == "done" else 0
            if enough == 3:
                break
        assert enough, f"{name}: {free} were not enough: {said}"
    return outcomes


def commit_third(root: Path) -> str:
    run = Run(root)
    return attempt(lambda: run.commit(3))


def go_on(root: Path) -> None:
    run = Run(root)
    run.commit(run.restored_step() + 1)
    assert_tidy(run)


def append_with_little(work: Path) -> Counter[str]:
    """Append records until the disk is full: those before are whole, and once there is room the next one follows."""

    def fill(root: Path) -> list[int]:
        run, count = Run(root), 0
        record = {"kind": "note", "n": 0, "text": "x" * 500}
        while attempt(lambda: run.journal.append(record)) == "done":
            count += 1
        again = attempt(lambda: run.journal.append(record))
        assert again != "done", "what is full stays full"
        return [count, len(list(run.journal.records()))]

    outcomes: Counter[str] = Counter()
    for free in range(6):
        disk = SmallDisk(work / "disk")
        root = disk.place / "run"
        try:
            in_new_process(lambda root=root: two_commits(root))
            disk.leave_pages(free)
            count, found = in_new_process(lambda root=root: fill(root))
            assert found == count + 2
            outcomes["records before it was full"] += count
            disk.empty()
            in_new_process(lambda root=root: go_on(root))
            left = in_new_process(lambda root=root: [len(list(Run(root).journal.records())), Run(root).journal.damaged])
            assert left == [found + 1, []], left
        finally:
            disk.remove()
    return outcomes


def publish_with_little(work: Path) -> Counter[str]:
    """Publish another model over an earlier one with 0, 1, 2, ... pages free: the old one stands or the new one."""
    outcomes: Counter[str] = Counter()
    said = ""
    for free in range(40):
        disk = SmallDisk(work / "disk")
        root = disk.place / "run"
        checkpoint = root / "checkpoints"
        try:
            in_new_process(lambda root=root: two_commits(root))
            publish_model(checkpoint / "00000001", root)
            disk.leave_pages(free)
            said = attempt(lambda here=checkpoint, root=root: publish_model(here / "00000002", root))
            outcomes["published" if said == "done" else "refused"] += 1
            wanted = checkpoint / ("00000002" if said == "done" else "00000001") / "model" / "model.safetensors"
            assert (root / "model" / "model.safetensors").read_bytes() == wanted.read_bytes()
            assert not list(root.glob(".t*")), "a leftover takes up room"
            disk.empty()
            publish_model(checkpoint / "00000002", root)
        finally:
            disk.remove()
        if said == "done":
            break
    assert said == "done"
    return outcomes


def train_with_little(work: Path) -> Counter[str]:
    """Train on a disk that fills up on the way: it ends with an error, and goes on bit for bit when there is room."""
    rows = work / "train.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in make_rows(20)), encoding="utf-8")
    asked = {"task": "embed", "model": str(make_model_folder(work / "base")), "train_data": str(rows), "batch_size": 4}
    asked |= {"max_steps": 4, "learning_rate": 1e-3, "threads": 1, "save_steps": 1}
    train(asked, work / "whole")
    outcomes: Counter[str] = Counter()
    for free in (0, 20, 90, 150):
        disk = SmallDisk(work / "disk", pages=2000)
        output = disk.place / "run"

        def fill_after_two(event: Event, disk: SmallDisk = disk, free: int = free) -> None:
            if isinstance(event, Stepped) and event.step == 2:
                disk.leave_pages(free)

        try:
            request = Request({**asked, "output_dir": str(output)})
            said = attempt(lambda request=request, report=fill_after_two: carry_out(request, report, StopRequest()))
            outcomes["finished" if said == "done" else "failed with advice"] += 1
            assert said != "done", f"{free} pages were enough"
            sound = [folder for folder in (output / "checkpoints").iterdir() if folder.name.isdigit()]
            assert sound, "no checkpoint is left"
            disk.empty()
            train(asked, output)
            assert_same_run(work / "whole", output)
            outcomes["went on, bit for bit"] += 1
        finally:
            disk.remove()
    return outcomes


MODES: dict[str, Callable[[Path], Counter[str]]] = {
    "commit": lambda work: commit_with_little(work, SmallDisk.leave_pages, 40),
    "inodes": lambda work: commit_with_little(work, SmallDisk.leave_files, 30),
    "append": append_with_little,
    "publish": publish_with_little,
    "train": train_with_little,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.work.mkdir(parents=True, exist_ok=True)
    for name, count in sorted(MODES[asked.mode](asked.work.resolve()).items()):
        print(f"{name:32} {count:5}")


if __name__ == "__main__":
    main()
