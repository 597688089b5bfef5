"""Everything in a run's folder that carries a digest, compared with it; nothing is written, the lock is left alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unbroken.base.errors import CannotContinueError, UnbrokenError
from unbroken.base.fingerprint import digest
from unbroken.run.evidence import Evidence, read_evidence, spans
from unbroken.run.verification import Problem, Verification
from unbroken.store import files, layout
from unbroken.store.checkpoints import Restored, read_checkpoint
from unbroken.store.files import DamagedError
from unbroken.store.manifest import describe_difference, read_manifest
from unbroken.store.run import run_problems
from unbroken.store.tensors import read_file

Say = Callable[[str], None]
ROW_BYTES = 8
FORGED = "it was changed and its digests renewed, or put there from elsewhere"
UNPROVED = "what stood there cannot be compared any more"


def check_digests(root: Path, document: Mapping[str, Any], found: Verification, say: Say) -> Evidence:
    """Compare run.json, checkpoints, journal, finished model, evaluations and row digests with what was written.

    Checkpoints come before the journal: of a run that trains meanwhile, the journal then knows all of them.
    """
    found.problems += [Problem(text, differs=layout.RUN_FILE) for text in run_problems(root)]
    restored = _checkpoints(root, found, say)
    try:
        evidence = read_evidence(root)
    except UnbrokenError as failure:
        evidence = Evidence()
        found.problems.append(Problem(failure.what, UNPROVED, differs=layout.JOURNAL_FILE))
    _journal(evidence, found, say)
    _bonds(restored, evidence, found)
    _model(root, evidence, found, say)
    _evaluations(root, found)
    _row_digests(root, document, found)
    return evidence


def _checkpoints(root: Path, found: Verification, say: Say) -> dict[int, Restored]:
    """Read every checkpoint whole; return the good ones without their tensors."""
    good = {}
    home = root / layout.CHECKPOINTS_FOLDER
    for name in files.list_folder(home):
        step = layout.step_of(name)
        if step is None:
            continue
        try:
            restored = read_checkpoint(home / name, found.run_id)
        except CannotContinueError as failure:
            if not (home / name).is_dir():
                continue  # a run that trains has retired it just now
            found.problems.append(Problem(f"checkpoint {step} does not verify: {failure.what}", "", step, name))
        except UnbrokenError as failure:
            found.problems.append(Problem(f"checkpoint {step} cannot be read: {failure.what}", "", step, name))
        else:
            say(f"checkpoint {step}: every digest agrees")
            restored.tensors.clear()
            good[step] = restored
            found.good_checkpoints.append(step)
        found.checkpoints.append(step)
    return good


def _journal(evidence: Evidence, found: Verification, say: Say) -> None:
    found.journal_records, found.recorded_steps = evidence.num_records, len(evidence.steps)
    found.unproved_steps, found.drifts = evidence.missing, evidence.drifts
    lost = f"; steps {spans(evidence.missing)} have no record: unproved" if evidence.missing else ""
    for text in evidence.damaged or ([f"{layout.JOURNAL_FILE} has gaps"] if lost else []):
        first = evidence.missing[0] if evidence.missing else None
        found.problems.append(Problem(text + lost, UNPROVED, first, layout.JOURNAL_FILE))
        lost = ""
    for step in evidence.contradictions:
        what = f"{layout.JOURNAL_FILE} holds two records of step {step}, and they differ"
        found.problems.append(Problem(what, FORGED, step, layout.JOURNAL_FILE))
    say(f"journal: {evidence.num_records} records read, {len(evidence.steps)} steps among them")


def _bonds(restored: Mapping[int, Restored], evidence: Evidence, found: Verification) -> None:
    """Compare what each checkpoint says of the journal before it with the journal."""
    for step, checkpoint in restored.items():
        recorded, last = evidence.steps.get(step), checkpoint.state.get("last_record")
        if evidence.proves(checkpoint.mark):
            found.proved_marks.append(step)
        elif not evidence.damaged and not any(problem.differs == layout.JOURNAL_FILE for problem in found.problems):
            what = f"the records before checkpoint {step} are not those it was committed with (their chain differs)"
            found.problems.append(Problem(what, FORGED, step, layout.JOURNAL_FILE))
        if recorded is not None and last and last != recorded:
            what = f"the record of step {step} is not the one checkpoint {step} was committed with"
            found.problems.append(Problem(what, FORGED, step, layout.JOURNAL_FILE))


def _model(root: Path, evidence: Evidence, found: Verification, say: Say) -> None:
    """Compare the finished model with the SHA-256 of its weights and with the checkpoint it is of."""
    if evidence.finish is None:
        return
    folder, found.model_files = root / layout.MODEL_FOLDER, 0
    best = evidence.finish["best"]
    for path, expected in evidence.finish["sha256"].items():
        if (problem := _sum_differs(folder, path, expected)) is not None:
            found.problems.append(problem)
        else:
            found.model_files += 1
            say(f"{layout.MODEL_FOLDER}/{path}: SHA-256 {expected}")
    inside = f"{layout.MODEL_FOLDER}/"
    try:
        manifest = read_manifest(root / layout.CHECKPOINTS_FOLDER / layout.checkpoint_name(best))
    except UnbrokenError:
        others = "the other files of the finished model" if found.model_files else "the finished model"
        found.unchecked.append(f"{others}: checkpoint {best}, which it is of, is not there or does not verify")
        return
    for path, record in manifest.files.items():
        name = path.removeprefix(inside)
        if not path.startswith(inside) or any(problem.differs == name for problem in found.problems):
            continue
        try:
            actual = files.digest_file(folder, name)
            text = describe_difference(folder / name, record, actual) if actual != record else ""
        except UnbrokenError as failure:
            text = failure.what
        if text:
            what = f"the finished model is not that of checkpoint {best}: {text}"
            found.problems.append(Problem(what, "", best, name, "`unbroken train RUN` places it again"))
        elif name not in evidence.finish["sha256"]:
            found.model_files += 1


def _sum_differs(folder: Path, path: str, expected: str) -> Problem | None:
    repair = "`unbroken train RUN` places it again from its checkpoint"
    try:
        with files.opened(folder, path) as (handle, size):
            state = hashlib.sha256()
            for block in files.read_blocks(handle, size, folder / path):
                state.update(block)
    except UnbrokenError as failure:
        return Problem(f"the finished model cannot be read: {failure.what}", "", None, path, repair)
    if state.hexdigest() == expected:
        return None
    what = f"{folder / path} does not have the SHA-256 recorded when the run ended"
    return Problem(what, f"{expected[:12]}... then, {state.hexdigest()[:12]}... now", None, path, repair)


def _evaluations(root: Path, found: Verification) -> None:
    folder = root / layout.EVAL_FOLDER
    for name in files.list_folder(folder):
        if name.startswith("."):
            continue
        try:
            values = json.loads(files.read_whole(folder, name))
            if layout.checkpoint_name(values["step"]) != Path(name).stem or not isinstance(values["metrics"], dict):
                raise DamagedError(f"{folder / name} is that of another step")
            found.evaluations += 1
        except UnbrokenError as failure:
            found.problems.append(Problem(failure.what, "", None, f"{layout.EVAL_FOLDER}/{name}"))
        except (ValueError, KeyError, TypeError, RecursionError):
            found.problems.append(
                Problem(f"{folder / name} cannot be read", "it is damaged", None, f"{layout.EVAL_FOLDER}/{name}")
            )


def _row_digests(root: Path, document: Mapping[str, Any], found: Verification) -> None:
    """Look whether the row digests are as many as were written; their content is compared with the data themselves.

    Those are as many as examples where each row is one; a row that makes several has one digest all the same.
    """
    expected = document["contract"]["data"]["examples"] * ROW_BYTES
    try:
        with files.opened(root, layout.DATA_DIGESTS_FILE) as (_, size):
            text = (
                ""
                if size in (0, expected)
                else f"{layout.DATA_DIGESTS_FILE} has {size} bytes that are not those written"
            )
        if text and digest(files.read_whole(root, layout.DATA_DIGESTS_FILE)) == document.get("row_digests"):
            text = ""
    except UnbrokenError as failure:
        text = failure.what
    if text:
        problem = Problem(text, "a changed row could not be named", None, layout.DATA_DIGESTS_FILE)
        found.problems.append(problem)


def model_tensors(root: Path, names: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return the finished model's tensors by full name; `names` says in which file of the model each lies.

    Raises `DamagedError` if a file or a tensor is not there.
    """
    by_file = {
        file: read_file(root / layout.MODEL_FOLDER, file).tensors for file in {file for file, _ in names.values()}
    }
    missing = [name for name, (file, key) in names.items() if key not in by_file[file]]
    if missing:
        raise DamagedError(f"the finished model has no tensor {missing[0]!r}")
    return {name: by_file[file][key] for name, (file, key) in names.items()}
