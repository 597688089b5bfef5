"""Cut the power at every instant of a run's life, and let a new process go on from what may be left.

    python -m tests.crash.power_cuts --work FOLDER [--samples 20]

The life: a run is made, steps are recorded, four checkpoints committed (two of them retired), one falls back, the
model is published. Whatever was acknowledged must be there; whatever is restored must be right, bit for bit; nothing
may be refused. Prints the number of different states and of failures, and exits 1 if there is any.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tests.crash.power_loss import Disk, Op, Tree, read_tree, recording, replace_tree
from tests.crash.small_run import make_image
from unbroken.run.folder import RunFolder
from unbroken.store.run import read_run

Control = Callable[[Op], bool]  # whether an operation is left out


@dataclass(frozen=True)
class Promised:
    """What a process has said to be done."""

    created: bool = False
    step: int = 0
    model: int = 0

    def with_(self, said: Any) -> Promised:
        return Promised(**{**self.__dict__, **said})


def create(root: Path) -> RunFolder:
    return RunFolder.create(root, {"data": "x"}, config={"task": "none"}, keep=2, row_digests=b"12345678")


def commit(folder: RunFolder, step: int) -> None:
    folder.journal.append({"kind": "step", "n": step, "loss": 1 / step})
    folder.checkpoints.commit(make_image(step))
    folder.journal.append({"kind": "note", "n": step})  # training goes on while the writer writes
    folder.checkpoints.wait()
    folder.journal.append({"kind": "commit", "n": step})


def live(root: Path) -> list[Op]:
    """Live the life of a run in `root`, an empty folder; return the log."""
    run = root / "runs" / "new"
    with recording(root) as recorder:
        folder = create(run)
        recorder.acknowledge({"created": True})
        for step in (1, 2, 3, 4):
            commit(folder, step)
            recorder.acknowledge({"step": step})
        folder.close()
    weights = run / "checkpoints" / "00000004" / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with (run / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"torn')
    log = recorder.log
    with recording(root) as recorder:  # the damage is on the disk
        recorder.acknowledge({"created": True, "step": 3})
        folder = RunFolder.open(run, keep=2)
        restored = folder.checkpoints.restore()
        assert restored is not None
        assert restored.step == 3
        commit(folder, 4)
        recorder.acknowledge({"step": 4})
        folder.publish(3)
        recorder.acknowledge({"model": 3})
        folder.publish(4)
        folder.journal.append({"kind": "finish", "n": 4, "best": 4, "sha256": {}})
        folder.journal.sync()
        recorder.acknowledge({"model": 4})
        folder.close()
    assert disk_after(recorder.log).live() == read_tree(root), "the log does not tell what happened"
    return [*log, Op("restart", 0), *recorder.log]


def disk_after(log: Iterable[Op]) -> Disk:
    disk = Disk()
    for op in log:
        disk.apply(op)
    return disk


def states(log: list[Op], samples: int, draw: random.Random) -> Iterator[tuple[Tree, Promised, Op]]:
    """Yield what may be left after each operation of the log, with what was promised by then."""
    disk, promised, begun = Disk(), Promised(), False
    for op in log:
        if op.kind == "restart":
            disk, promised, begun = Disk(), Promised(), False
            continue
        disk.apply(op)
        begun = begun or op.kind == "begin"
        if op.kind == "acknowledge":
            promised = promised.with_(op.said)
        if not begun:
            continue
        for tree in disk.corners():
            yield tree, promised, op
        if samples:
            for tree in disk.single_changes():
                yield tree, promised, op
        for _ in range(samples):
            yield disk.after_power_loss(draw.randrange), promised, op


def different(found: Iterable[tuple[Tree, Promised, Op]]) -> Iterator[tuple[Tree, Promised, Op]]:
    seen = set()
    for tree, promised, op in found:
        key = hashlib.sha256(repr((tree, promised)).encode()).digest()
        if key not in seen:
            seen.add(key)
            yield tree, promised, op


def recover(root: Path, promised: Promised) -> None:
    """Start again as a new process would, compare with what was promised, and go on."""
    run = root / "runs" / "new"
    if read_run(run) is None:
        assert not promised.created, "the run is lost"
        create(run).close()
        assert read_run(run) is not None
        return
    folder = RunFolder.open(run, keep=2)
    try:
        step = restored_step(folder, proved=True)
        assert step >= promised.step, f"step {promised.step} was acknowledged, step {step} was restored"
        check_model(run, folder, promised)
        commit(folder, step + 1)
        assert restored_step(folder) == step + 1
        steps = folder.checkpoints.steps()
        assert not [text for number in steps for text in folder.checkpoints.verify(number)]
        left = [path for path in run.rglob(".t*") if path.name.startswith((".tmp-", ".trash-"))]
        assert not left or not step, f"left over: {left}"
    finally:
        folder.close()


def restored_step(folder: RunFolder, *, proved: bool = False) -> int:
    """Restore, compare every bit; `proved`: the journal must hold all that the checkpoint builds on."""
    restored = folder.checkpoints.restore()
    if restored is None:
        assert not folder.has_committed(), "the journal knows of a commit that is gone"
        return 0
    image = make_image(restored.step)
    assert restored.state == image.state
    assert restored.tensors.keys() == image.tensors.keys()
    assert all(torch.equal(restored.tensors[name], placed.tensor) for name, placed in image.tensors.items())
    assert not proved or folder.journal.proves(restored.mark), "the journal lost what the checkpoint builds on"
    return restored.step


def check_model(run: Path, folder: RunFolder, promised: Promised) -> None:
    """The published model is whole, and no older than promised; doing it again places it."""
    model = run / "model"
    steps = [step for step in folder.checkpoints.steps() if step >= max(promised.model, 1)]
    contents = [read_tree(folder.checkpoints.home / f"{step:08d}" / "model") for step in steps]
    if promised.model or model.exists():
        assert model.exists(), "the model is lost"
        assert read_tree(model) in contents, "the model is not whole"
    if steps:
        folder.publish(steps[-1])
        assert read_tree(model) == contents[-1]


@contextmanager
def quick() -> Iterator[None]:
    """What recovery makes durable is not at stake here: spare the disk."""
    fsync = os.fsync
    os.fsync = lambda handle: None
    try:
        yield
    finally:
        os.fsync = fsync


def cut_everywhere(
    work: Path, samples: int, left_out: Control | None = None, every: int = 1
) -> tuple[int, Counter[str]]:
    """Recover from every state, or from one in so many; return how many those were, and how often what went wrong.

    A control leaves operations out of the log; it ends with the first failure.
    """
    work.mkdir(parents=True, exist_ok=True)
    (work / "life").mkdir()
    log = live(work / "life")
    if left_out is not None:
        kept = [op for op in log if not left_out(op)]
        assert len(kept) < len(log), "nothing was left out"
        log = kept
    count, failures = 0, Counter[str]()
    with quick(), warnings.catch_warnings():
        for tree, promised, op in islice(different(states(log, samples, random.Random(0))), 0, None, every):
            count += 1
            replace_tree(tree, work / "disk")
            try:
                recover(work / "disk", promised)
            except Exception as failure:  # noqa: BLE001 (reported below)
                place = op.path.removeprefix(str(work))
                text = f"{failure!r}".replace(str(work), "")
                failures[f"after {op.kind} {place}: {text}"] += 1
                if left_out is not None:
                    break
    shutil.rmtree(work / "disk", ignore_errors=True)
    return count, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=20, help="random states after each operation")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    count, failures = cut_everywhere(asked.work.resolve(), asked.samples)
    for text, times in failures.most_common(40):
        print(f"{times:5} {text}")
    print(f"{count} states, {failures.total()} failed")
    sys.exit(1 if failures or not count else 0)


if __name__ == "__main__":
    main()
