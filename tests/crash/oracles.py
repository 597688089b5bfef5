"""What must hold of a finished run, however often it was killed on the way; every violation in words.

The letters O1 to O8 of the fault table: the same model, a classifier's head and its probabilities for fixed texts
included (O1), the same steps and evaluations (O2), the examples of the plan (O3), a tidy folder with two checkpoints
that verify (O5), no more steps lost than may be (O6). That each start ends with a documented code and no traceback
(O7), and that a further one changes nothing (O8), is for whoever starts them to look at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.tiny import make_rows
from unbroken.base.fingerprint import digest
from unbroken.models.chat import ChatFormat
from unbroken.models.classifying import SETTINGS_FILE, read_classifier
from unbroken.models.encoder import Encoder
from unbroken.plan.packing import fill_bins
from unbroken.plan.plan import Draws, Plan
from unbroken.store import files, layout
from unbroken.store.journal import read_records
from unbroken.store.manifest import differences, read_manifest
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.encoding import lengths_of
from unbroken.tasks.adapt.source import base_digest, find_base
from unbroken.tasks.adapt.task import course_over, read_rows
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.course import courses_of
from unbroken.tasks.classify.data import LabelledTexts

Steps = list[tuple[int, dict[str, Any]]]  # number and record, in order
LEFTOVERS = (layout.UNFINISHED_PREFIX, layout.TRASH_PREFIX)


@dataclass(frozen=True)
class Facts:
    """All of a finished run that must not depend on how often it was interrupted."""

    model: dict[str, str]  # SHA-256 of every file of the finished model
    steps: dict[int, dict[str, Any]]  # the journal's record of each step
    evaluations: dict[int, dict[str, float]]
    state: dict[str, str]  # digest of every tensor of the last checkpoint, the optimizer's among them
    predictions: str | None  # digest of the bits of a classifier's probabilities for fixed texts
    names: frozenset[str]  # every file and folder, those in checkpoints excepted


def facts(root: Path) -> Facts:
    """Read what a finished run has become."""
    records = list(read_records(root / layout.JOURNAL_FILE))
    steps = {record["n"]: record for record in records if record["kind"] == "step"}
    manifest = read_manifest(root / layout.CHECKPOINTS_FOLDER / layout.checkpoint_name(max(steps)))
    return Facts(
        model=sums(root / layout.MODEL_FOLDER),
        steps=steps,
        evaluations={record["n"]: record["metrics"] for record in records if record["kind"] == "evaluation"},
        state={name: record.digest for name, record in manifest.tensors.items()},
        predictions=predictions(root / layout.MODEL_FOLDER),
        names=frozenset(names(root)),
    )


def predictions(model: Path) -> str | None:
    """Return a digest of what a finished classifier says of fixed texts, to the bit; None for an encoder alone."""
    if not (model / SETTINGS_FILE).exists():
        return None
    encoder = Encoder.from_pretrained(model)
    _, head = read_classifier(model, encoder.dimension)
    with torch.no_grad():
        embeddings = encoder.encode([row["positive"] for row in make_rows(12, seed=5)], convert_to_numpy=False)
        assert isinstance(embeddings, torch.Tensor)
        return digest(head.probabilities(embeddings).numpy().astype("<f4").tobytes())


def names(root: Path) -> Iterator[str]:
    """Yield the path of all that lies in a run, but of a checkpoint only its folder."""
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        if relative.parts[0] != layout.CHECKPOINTS_FOLDER:
            yield str(relative)


def sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def compare(found: Facts, golden: Facts) -> list[str]:
    """Say in what a run differs from the one left alone; nothing if in no bit."""
    problems = []
    for what in ("model", "steps", "evaluations", "state"):
        ours, theirs = getattr(found, what), getattr(golden, what)
        different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if different:
            problems.append(f"different: {what}: {len(different)} of {len(theirs)}, first {different[0]}")
    if found.predictions != golden.predictions:
        problems.append("different: predictions")
    if found.names != golden.names:
        problems.append(f"untidy: names in the folder: {sorted(found.names ^ golden.names)}")
    return problems


def examine(root: Path, most_lost: int | None) -> list[str]:
    """Say what is wrong with a finished run by itself; `most_lost` steps may have to be made again after a kill."""
    return plan_problems(root) + tidiness_problems(root) + journal_problems(root, most_lost)


def plan_problems(root: Path) -> list[str]:
    """Compare the examples on record with the plan, and the plan with every example once an epoch."""
    document = json.loads((root / layout.RUN_FILE).read_bytes())
    config = document["config"]
    steps = sorted(facts(root).steps.items())
    if config["task"] == "classify":
        return _phase_problems(ClassifyConfig.from_values(config), steps)
    if config["task"] == "adapt":
        return _adapt_problems(AdaptConfig.from_values(config), document["contract"], steps)
    count = document["contract"]["data"]["examples"]
    plan = Plan(count, config["batch_size"], config["seed"], config["drop_last"], config["shuffle"])
    return _drawn_problems(plan, steps, 0) + _epoch_problems(plan, steps, count, config["drop_last"])


def _phase_problems(config: ClassifyConfig, steps: Steps) -> list[str]:
    """The same for two phases. In the first, no text comes twice in a batch, unless it is drawn in pairs."""
    data = LabelledTexts(config.train_data, config)
    targets = data.targets[data.chosen]
    courses = courses_of(config, targets)
    body, head = steps[: courses.body_steps], steps[courses.body_steps :]
    problems = _drawn_problems(courses.body, body, 0) + _drawn_problems(courses.head, head, courses.body_steps)
    if len(steps) != courses.total_steps:
        problems.append(f"lost: {len(steps)} steps are on record, of {courses.total_steps}")
    batches = [courses.body.draw(number - 1).ids for number, _ in body]
    if config.pairs == "all" and any(len(np.unique(ids)) != len(ids) for ids in batches):
        problems.append("different: a batch repeats an example")
    return problems + _epoch_problems(courses.head, head, len(targets), False, courses.body_steps)


def _adapt_problems(config: AdaptConfig, contract: dict[str, Any], steps: Steps) -> list[str]:
    """The same for instructions, packed or not; the learning rate is that of the step, and the base as it was."""
    base = find_base(config)
    rows, bins = read_rows(config.train_data, config), None
    if config.packing:
        assert config.max_length is not None
        chat = ChatFormat.of(base.folder, config.template)
        bins = fill_bins(lengths_of(rows, chat, config, None), config.max_length)
    count = rows.num_examples
    course = course_over(config, count, None if bins is None else len(bins), bins)
    problems = _drawn_problems(course.plan, steps, 0) + _epoch_problems(course.plan, steps, count, config.drop_last)
    rates = [number for number, record in steps if record["learning_rate"] != course.rate(number - 1)]
    problems += [f"different: step {number} is on record with another learning rate" for number in rates]
    if base_digest(base, None) != contract["model"]["digest"]:
        problems.append("different: the base model is not what it was")
    return problems


def _drawn_problems(plan: Draws, steps: Steps, before: int) -> list[str]:
    """Compare the examples of each step with those of the plan of its phase, which `before` steps precede."""
    problems = []
    for number, record in steps:
        drawn = plan.draw(number - 1 - before).ids
        if record["ids"] != digest(drawn.astype("<i8").tobytes()):
            problems.append(f"different: step {number} is on record with other examples than the plan's")
    return problems


def _epoch_problems(plan: Draws, steps: Steps, count: int, drop_last: bool, before: int = 0) -> list[str]:
    """Say which epochs of `count` examples do not have each of them once."""
    epochs: dict[int, list[int]] = {}
    for number, _ in steps:
        draw = plan.draw(number - 1 - before)
        epochs.setdefault(draw.epoch, []).extend(draw.ids.tolist())
    problems = []
    for epoch, ids in epochs.items():
        whole = epoch < max(epochs) or len(ids) == count
        if len(np.unique(ids)) != len(ids) or (whole and not drop_last and sorted(ids) != list(range(count))):
            problems.append(f"different: epoch {epoch} repeats or leaves out examples")
    return problems


def tidiness_problems(root: Path) -> list[str]:
    """Name what dead processes left behind, and checkpoints that are too few or do not verify."""
    left = [path for path in root.rglob("*") if path.name.startswith((*LEFTOVERS, layout.BROKEN_PREFIX))]
    problems = [f"untidy: {path.relative_to(root)} was left behind" for path in left]
    home = root / layout.CHECKPOINTS_FOLDER
    kept = [home / name for name in files.list_folder(home) if layout.step_of(name) is not None]
    for folder in kept:
        problems += [f"lost: {problem}" for problem in differences(folder, read_manifest(folder))]
    if len(kept) < 2:
        problems.append(f"lost: only {len(kept)} checkpoint is left")
    return problems


def journal_problems(root: Path, most_lost: int | None) -> list[str]:
    """Follow the journal: nothing acknowledged is lost, no step is on record twice or missing, nothing drifted."""
    problems, damaged = list[str](), list[str]()
    recorded = committed = 0
    for record in read_records(root / layout.JOURNAL_FILE, damaged):
        match record["kind"]:
            case "step" if record["n"] != recorded + 1:
                problems.append(f"lost: step {record['n']} is on record after step {recorded}")
            case "commit":
                committed = max(committed, record["n"])
            case "segment" if record["step"] < committed:
                problems.append(f"lost: the commit of step {committed} was acknowledged; {record['step']} was restored")
            case "segment" if most_lost is not None and recorded - record["step"] > most_lost:
                problems.append(f"lost: {recorded - record['step']} steps were made again, over {most_lost}")
            case "drift" | "refusal" | "failure":
                problems.append(f"different: {record['kind']} at step {record['n']}: {record['text']}")
        recorded = max(recorded, record["n"]) if record["kind"] == "step" else recorded
    return problems + [f"lost: {text}" for text in damaged]


def lost_steps(root: Path) -> list[int]:
    """Return, for every start after the first, how many steps on record had to be made again."""
    recorded, lost = 0, []
    for record in read_records(root / layout.JOURNAL_FILE):
        if record["kind"] == "step":
            recorded = record["n"]
        elif record["kind"] == "segment" and record["segment"] > 1:
            lost.append(recorded - record["step"])
    return lost
