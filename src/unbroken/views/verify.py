"""A verification as text: what was checked, how it came out, and what was not checked."""

from __future__ import annotations

from collections.abc import Iterator

from unbroken.base.words import number_of
from unbroken.run.evidence import spans
from unbroken.run.verification import Replayed, Verification


def verification_text(found: Verification) -> str:
    """Return a line for each thing that was looked at; differences and what was left out come last."""
    rows = list(_rows(found))
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {text}" for label, text in rows]
    for heading, texts in (
        ("differences", [problem.what for problem in found.problems]),
        ("not checked", [*([found.not_replayed] if found.not_replayed else []), *found.unchecked]),
    ):
        if texts:
            lines += ["", heading, *(f"  {text}" for text in texts)]
    return "\n".join([*lines, "", f"verdict: {found.verdict}"])


def _rows(found: Verification) -> Iterator[tuple[str, str]]:
    yield "run", f"{found.run} ({found.run_id})"
    good = f": {', '.join(map(str, found.good_checkpoints))}" if found.good_checkpoints else ""
    yield "checkpoints", f"{len(found.good_checkpoints)} of {len(found.checkpoints)} verify, every digest{good}"
    recorded = number_of(found.recorded_steps, "step")
    yield "journal", f"{number_of(found.journal_records, 'record')}, {recorded} among them"
    if found.proved_marks:
        yield "chain", f"unbroken from the first record to the commit of checkpoint {max(found.proved_marks)}"
    if found.unproved_steps:
        yield "unproved", f"steps {spans(found.unproved_steps)} have no record"
    if found.drifts:
        yield "drift", f"accepted at step {', '.join(map(str, found.drifts))}: no replay crosses it"
    if found.model_files is not None:
        yield "finished model", f"{number_of(found.model_files, 'file')} as recorded"
    if found.evaluations:
        yield "evaluations", f"{number_of(found.evaluations, 'file')} readable"
    yield "data", found.data
    yield "base model", found.base_model
    for replay in found.replays:
        yield "replayed", _replayed(replay)
    if found.tensors_compared:
        steps = [str(step) for replay in found.replays for step in replay.checkpoints]
        what = [f"checkpoint{'' if len(steps) == 1 else 's'} {', '.join(steps)}"] if steps else []
        what += ["the finished model"] if any(replay.model for replay in found.replays) else []
        same = "all identical to the bit"
        if found.tensors_identical != found.tensors_compared:
            same = f"{found.tensors_identical:,} identical to the bit"
        yield "tensors", f"{found.tensors_compared:,} of {' and '.join(what)}: {same}"
    if found.environment_changes:
        yield "environment", f"not that of the run: {', '.join(found.environment_changes)}"


def _replayed(replay: Replayed) -> str:
    canary = "the next step foreseen: identical to the bit" if replay.canary else ""
    if replay.last < replay.first:
        return f"{canary or 'nothing'}, from {replay.origin}"
    count = replay.last - replay.first + 1
    said = f"{number_of(replay.identical, 'step')} identical to the bit"
    if replay.identical < count:
        unrecorded = len(replay.unrecorded)
        said += f", {unrecorded} without a record" if unrecorded else ""
        said += f", {count - replay.identical - unrecorded} different" if count > replay.identical + unrecorded else ""
    span = f"step {replay.first}" if count == 1 else f"steps {replay.first} to {replay.last}"
    return f"{span} from {replay.origin} ({replay.chosen}): {said}" + (f"; {canary}" if canary else "")
