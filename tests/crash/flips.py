"""Flip one bit after the other in every kind of file that a run reads: each flip must be noticed before it is used.

    python -m tests.crash.flips --flips 10000 --work FOLDER [--seed 0]

A small model is trained twice: to the end, and to the last step but one. Then one bit of one file is flipped, what
the next command would do with that file is done, and the bit is flipped back. "noticed" means refused, set aside or
made again, naming the file (and the tensor, if the bit is in one). "harmless" means that what was read is the same
value for value, as for `1e-05` and `1E-05`, or that the file is never read. Anything else is a failure.

The control renews the digests after each flip: none of those may be noticed, or the check proves nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.exact.runs import train
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import CannotContinueError, UnbrokenError
from unbroken.base.fingerprint import digest
from unbroken.models import arena
from unbroken.run.evaluation import done_before
from unbroken.run.folder import RunFolder
from unbroken.store import layout
from unbroken.store.checkpoints import Checkpoints, Restored
from unbroken.store.journal import Journal, read_records
from unbroken.store.manifest import read_manifest
from unbroken.store.run import mend_run, read_run, run_problems
from unbroken.store.tensors import LENGTH_BYTES, parse_header
from unbroken.tasks import cache as kept
from unbroken.tasks.contract import first_changed_row
from unbroken.tasks.origin import resolve_model
from unbroken.tasks.train import Request, look_over

NOTICED, HARMLESS, MISSED, CONTROL = "noticed", "harmless", "MISSED", "control"
LAST = 3  # the step of the newest checkpoint of the run that is not finished
SHARES = {"weights": 6, "moments": 6, "manifest": 3, "journal": 3, "base model": 3, "finished model": 3}


@dataclass(frozen=True)
class Flip:
    """One bit of one file."""

    path: Path
    offset: int
    bit: int


@dataclass(frozen=True)
class Kind:
    """A kind of file: which bytes of which files it is, and what is done with a file in which a bit was flipped."""

    name: str
    places: list[tuple[Path, int, int]]  # file, first byte, end
    judge: Callable[[Flip], str]


class Trained:
    """The two runs, what they were asked for, and what they hold when nothing is damaged."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True)
        self.work = work
        write_rows(work / "train.jsonl", make_rows(20))
        write_rows(work / "dev.jsonl", make_rows(8, 1))
        self.base = make_model_folder(work / "base")
        self.asked = {
            "task": "embed",
            "model": str(self.base),
            "train_data": str(work / "train.jsonl"),
            "eval_data": str(work / "dev.jsonl"),
            "batch_size": 4,
            "max_steps": LAST + 1,
            "eval_steps": 2,
            "learning_rate": 1e-3,
            "threads": 1,
            "save_steps": 1,
        }
        self.whole, self.stopped = work / "whole", work / "stopped"
        train(self.asked, self.whole)
        train(self.asked, self.stopped, stop_after=LAST)
        self.document = read_run(self.stopped) or {}
        self.run_files = {name: (self.stopped / name).read_bytes() for name in (layout.RUN_FILE, layout.RUN_COPY_FILE)}
        self.records = list(read_records(self.stopped / layout.JOURNAL_FILE))
        self.journal = Journal(work / "journal.jsonl")
        self.checkpoints = Checkpoints(self.stopped, self.document["run_id"], self.journal)
        self.newest = self.stopped / layout.CHECKPOINTS_FOLDER / layout.checkpoint_name(LAST)
        self.held = {step: self.checkpoints.restore(step) for step in (LAST - 1, LAST)}
        self.tensors = tensor_places(self.newest)
        self.model = {path: path.read_bytes() for path in files_in(self.whole / "model")}

    def request(self, **changes: Any) -> Request:
        return Request({**self.asked, "output_dir": str(self.stopped), **changes})

    def tensor_at(self, flip: Flip) -> str:
        """Return the full name of the tensor whose bytes hold the bit, "" if it is in none."""
        places = self.tensors.get(flip.path, [])
        return next((repr(name) for begin, end, name in places if begin <= flip.offset < end), "")

    def judge_checkpoint(self, flip: Flip) -> str:
        """Restore: the one before is restored, and the damage named; or nothing was damaged."""
        restored = self.checkpoints.restore()
        assert restored is not None
        if restored.step == LAST:
            return HARMLESS if same(restored, self.held[LAST]) else MISSED
        for moved in self.checkpoints.home.glob(".broken-*"):
            moved.rename(self.newest)
        said = " ".join(restored.set_aside)
        named = str(flip.path.relative_to(self.newest)) in said and self.tensor_at(flip) in said
        return NOTICED if same(restored, self.held[LAST - 1]) and named else MISSED

    def judge_run_file(self, flip: Flip) -> str:
        """Told by the other one, the damage named, and mended with the damaged one kept."""
        told, named = read_run(self.stopped) == self.document, run_problems(self.stopped)
        said = mend_run(self.stopped)
        kept = [path.read_bytes() for path in self.stopped.glob(".broken-*")]
        same = len({(self.stopped / name).read_bytes() for name in self.run_files}) == 1
        for path in self.stopped.glob(".broken-*"):
            path.unlink()
        for name, content in self.run_files.items():
            (self.stopped / name).write_bytes(content)
        return NOTICED if told and len(named) == len(said) == len(kept) == 1 and same else MISSED

    def judge_journal(self, flip: Flip) -> str:
        """The records left are true ones in order, and what is missing is said."""
        copy = self.work / "copy" / layout.JOURNAL_FILE
        copy.parent.mkdir()
        shutil.copy(flip.path, copy)
        journal = Journal(copy)
        left = iter(self.records)
        true = all(record in left for record in journal.records())
        journal.close()
        shutil.rmtree(copy.parent)
        return NOTICED if true and journal.damaged else MISSED

    def judge_inputs(self, flip: Flip) -> str:
        """Going on is refused, or nothing that counts was changed."""
        try:
            look_over(self.request())
        except UnbrokenError as refusal:
            names = ("model", "tokenizer", "train", "data", flip.path.name)
            return NOTICED if any(name in str(refusal) for name in names) else MISSED
        return HARMLESS if self.contents_that_count(flip.path) else MISSED

    def contents_that_count(self, path: Path) -> bool:
        """Whether a flipped input still says the same: only a cell, or a key, that the run never reads differs."""
        if path.name == "train.jsonl":
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            roles = ("anchor", "positive", "negative")
            return [[row.get(key) for key in roles] for row in rows] == [[r[k] for k in roles] for r in make_rows(20)]
        return False

    def judge_finished(self, flip: Flip) -> str:
        """As a parent it is refused; the finished run, asked again, places its model again."""
        try:
            resolve_model(str(self.whole))
        except CannotContinueError as refusal:
            named = str(flip.path.relative_to(self.whole / "model")) in str(refusal)
        else:
            return MISSED
        folder = RunFolder.open(self.whole, keep=2)
        ended = folder.finished()
        folder.close()
        repaired = {path: path.read_bytes() for path in files_in(self.whole / "model")} == self.model
        return NOTICED if ended and named and repaired else MISSED

    def judge_parent(self, flip: Flip) -> str:
        """A new run from the weights of a checkpoint is refused."""
        try:
            resolve_model(str(self.newest))
        except CannotContinueError as refusal:
            return NOTICED if str(flip.path.relative_to(self.newest)) in str(refusal) else MISSED
        return MISSED

    def judge_arena(self, flip: Flip) -> str:
        """It counts as absent, and is made again."""
        return NOTICED if arena.read(flip.path.parent) is None else MISSED

    def judge_cache(self, flip: Flip) -> str:
        find = kept.find_values if flip.path.suffix == ".json" else kept.find_array
        return NOTICED if find(flip.path) is None else MISSED

    def judge_evaluation(self, flip: Flip) -> str:
        """It counts as absent, and is made again."""
        made_of = json.loads((self.whole / "eval" / flip.path.name).read_bytes())["of"]
        return NOTICED if done_before(flip.path, made_of) is None else MISSED

    def judge_row_digests(self, flip: Flip) -> str:
        """When data differ, no wrong row is named."""
        digests = np.frombuffer((self.whole / layout.DATA_DIGESTS_FILE).read_bytes(), "<u8").copy()
        digests[-1] += 1
        return NOTICED if "damaged" in first_changed_row(self.stopped, digests.tobytes()) else MISSED

    def judge_unread(self, flip: Flip) -> str:
        """Nothing reads it: what a resume goes by is the same."""
        return HARMLESS if look_over(self.request()).document == self.document else MISSED


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(one: Restored, other: Restored | None) -> bool:
    assert other is not None
    return (
        (one.step, one.state, one.documents, one.mark) == (other.step, other.state, other.documents, other.mark)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


def tensor_places(checkpoint: Path) -> dict[Path, list[tuple[int, int, str]]]:
    """Return for each tensor file of a checkpoint the bytes of every tensor and its full name."""
    found: dict[Path, list[tuple[int, int, str]]] = {}
    names = {(record.file, record.key): name for name, record in read_manifest(checkpoint).tensors.items()}
    for path in checkpoint.rglob(f"*{layout.WEIGHTS_SUFFIX}"):
        content, start = path.read_bytes(), data_start(path)
        slots = parse_header(content[LENGTH_BYTES:start], len(content) - start, path)
        relative = str(path.relative_to(checkpoint))
        found[path] = [(start + slot.begin, start + slot.end, names[relative, slot.key]) for slot in slots]
    return found


def data_start(path: Path) -> int:
    return LENGTH_BYTES + int.from_bytes(path.read_bytes()[:LENGTH_BYTES], "little")


def kinds(trained: Trained) -> list[Kind]:
    """Return every kind of file, with the bytes that are flipped in it."""
    newest, stopped, whole = trained.newest, trained.stopped, trained.whole
    weights, moments = newest / "model" / "model.safetensors", newest / layout.OPTIMIZER_FILE
    documents = [path for path in files_in(newest / "model") if path != weights]
    inputs = [path for path in files_in(trained.base) if path.name in ("config.json", "modules.json")]
    tokenizer = [trained.base / name for name in ("tokenizer.json", "sentence_bert_config.json")]
    cached = files_in(stopped / "cache")
    arenas = [path for path in cached if path.parent.name.startswith("tokens-")]
    return [
        Kind("manifest", whole_files([newest / layout.MANIFEST_FILE]), trained.judge_checkpoint),
        Kind("state", whole_files([newest / layout.STATE_FILE]), trained.judge_checkpoint),
        Kind("segment", whole_files([newest / layout.SEGMENT_FILE]), trained.judge_checkpoint),
        Kind("model's documents", whole_files(documents), trained.judge_checkpoint),
        Kind("tensor headers", [(path, 0, data_start(path)) for path in (weights, moments)], trained.judge_checkpoint),
        Kind("weights", data_of([weights]), trained.judge_checkpoint),
        Kind("moments", data_of([moments]), trained.judge_checkpoint),
        Kind("run.json", whole_files([stopped / layout.RUN_FILE]), trained.judge_run_file),
        Kind("copy of run.json", whole_files([stopped / layout.RUN_COPY_FILE]), trained.judge_run_file),
        Kind("journal", whole_files([stopped / layout.JOURNAL_FILE]), trained.judge_journal),
        Kind("data.digests", whole_files([stopped / layout.DATA_DIGESTS_FILE]), trained.judge_row_digests),
        Kind("token arenas", whole_files(arenas), trained.judge_arena),
        Kind("rest of the cache", whole_files(sorted(set(cached) - set(arenas))), trained.judge_cache),
        Kind("evaluations", whole_files(files_in(stopped / "eval")), trained.judge_evaluation),
        Kind("base model", whole_files([trained.base / "model.safetensors", *inputs]), trained.judge_inputs),
        Kind("base tokenizer", whole_files(tokenizer), trained.judge_inputs),
        Kind("training data", whole_files([trained.work / "train.jsonl"]), trained.judge_inputs),
        Kind("finished model", whole_files(files_in(whole / "model")), trained.judge_finished),
        Kind("parent's weights", whole_files([weights]), trained.judge_parent),
        Kind("config.yaml", whole_files([stopped / layout.CONFIG_FILE]), trained.judge_unread),
    ]


def whole_files(paths: list[Path]) -> list[tuple[Path, int, int]]:
    return [(path, 0, path.stat().st_size) for path in paths]


def data_of(paths: list[Path]) -> list[tuple[Path, int, int]]:
    return [(path, data_start(path), path.stat().st_size) for path in paths]


@contextmanager
def flipped(flip: Flip) -> Iterator[None]:
    """Flip a bit; afterwards the file is again as it was, and where it was."""
    content = flip.path.read_bytes()
    damaged = bytearray(content)
    damaged[flip.offset] ^= 1 << flip.bit
    flip.path.write_bytes(damaged)
    try:
        yield
    finally:
        flip.path.write_bytes(content)


def renew_digests(trained: Trained, path: Path) -> None:
    """Make the manifest agree with a damaged file: now no digest can tell."""
    manifest, relative = read_manifest(trained.newest), str(path.relative_to(trained.newest))
    content = path.read_bytes()
    start = data_start(path)
    slots = {slot.key: slot for slot in parse_header(content[LENGTH_BYTES:start], len(content) - start, path)}
    tensors = {
        name: replace(record, digest=digest(content[start + slots[record.key].begin : start + slots[record.key].end]))
        if record.file == relative
        else record
        for name, record in manifest.tensors.items()
    }
    records = {**manifest.files, relative: replace(manifest.files[relative], digest=digest(content))}
    renewed = replace(manifest, files=records, tensors=tensors)
    (trained.newest / layout.MANIFEST_FILE).write_bytes(renewed.encode())


def flip_everything(work: Path, flips: int, seed: int = 0) -> dict[str, Counter[str]]:
    """Flip so many bits; return for each kind of file what became of them. Missed ones are printed."""
    draw, trained = random.Random(seed), Trained(work)
    found = kinds(trained)
    shares = [SHARES.get(kind.name, 1) for kind in found]
    results: dict[str, Counter[str]] = {}
    with spared_disk():
        for kind, share in zip(found, shares, strict=True):
            counts = results[kind.name] = Counter()
            for _ in range(math.ceil(flips * share / sum(shares))):
                path, begin, end = draw.choice(kind.places)
                flip = Flip(path, draw.randrange(begin, end), draw.randrange(8))
                with flipped(flip):
                    verdict = judged(kind, flip)
                counts[verdict] += 1
                if verdict not in (NOTICED, HARMLESS):
                    print(f"{kind.name}: bit {flip.bit} of byte {flip.offset} of {flip.path}: {verdict}")
        results[CONTROL] = control(trained, draw, 20)
    return results


def judged(kind: Kind, flip: Flip) -> str:
    """An error that is not one of ours is a failure: nobody would understand it."""
    try:
        return kind.judge(flip)
    except Exception as failure:  # noqa: BLE001 (it is counted)
        return f"{MISSED} {failure!r}"


def control(trained: Trained, draw: random.Random, flips: int) -> Counter[str]:
    """Flip bits of the weights and renew the digests: these flips cannot be noticed by any digest."""
    counts: Counter[str] = Counter()
    path, manifest = trained.newest / "model" / "model.safetensors", trained.newest / layout.MANIFEST_FILE
    before = manifest.read_bytes()
    for _ in range(flips):
        flip = Flip(path, draw.randrange(data_start(path), path.stat().st_size), draw.randrange(8))
        with flipped(flip):
            renew_digests(trained, path)
            counts[trained.judge_checkpoint(flip)] += 1
            manifest.write_bytes(before)
    return counts


@contextmanager
def spared_disk() -> Iterator[None]:
    """Nothing here is about durability."""
    fsync = os.fsync
    os.fsync = lambda handle: None
    try:
        yield
    finally:
        os.fsync = fsync


def verdict_of(results: dict[str, Counter[str]]) -> tuple[int, int, bool]:
    """Return flips, those missed, and whether the control was missed, as it must be."""
    real = {name: counts for name, counts in results.items() if name != CONTROL}
    total = sum(counts.total() for counts in real.values())
    good = sum(counts[NOTICED] + counts[HARMLESS] for counts in real.values())
    return total, total - good, results[CONTROL].keys() == {MISSED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--work", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    results = flip_everything(asked.work.resolve(), asked.flips, asked.seed)
    print(f"{'kind of file':20} {'flips':>6} {'noticed':>8} {'harmless':>9} {'missed':>7}")
    for name, counts in results.items():
        missed = counts.total() - counts[NOTICED] - counts[HARMLESS]
        print(f"{name:20} {counts.total():6} {counts[NOTICED]:8} {counts[HARMLESS]:9} {missed:7}")
    total, missed, control_missed = verdict_of(results)
    print(f"{total} flips, {missed} missed; the control was {'missed, as it must be' if control_missed else 'NOTICED'}")
    sys.exit(0 if missed == 0 and control_missed else 1)


if __name__ == "__main__":
    main()
