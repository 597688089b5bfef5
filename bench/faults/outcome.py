"""What became of a run after a fault: one word, found the same way for every system."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace

from bench.faults.systems import Ended, System, normalised
from bench.faults.trainers import Spec

EXACT = "exact"
INEXACT = "inexact"
REFUSES = "refuses"
IGNORES = "ignores"
SILENT = "silently wrong"
CRASH = "crash"
LOST = "lost"
NOT_RUN = "not run"

# The worst first: the order of a cell.
KINDS = {
    LOST: "no checkpoint is left that the system would go on from; the training starts over",
    SILENT: "finishes with other weights and prints nothing about it: state was lost or damaged, or other data or "
    "settings were used",
    CRASH: "ends with an error it did not foresee; somebody has to find out what to delete",
    INEXACT: "finishes with other bits: it says so, or nothing was lost and only rounding or random draws differ",
    IGNORES: "finishes with the weights of the original command, without a word that the changed setting had no effect",
    REFUSES: "ends with a message of its own that says what is wrong; nothing was used",
    EXACT: "finishes with the bits of the uninterrupted run",
}
TELLING = re.compile(
    r"warn|not guaranteed|match|differ|missing|didn't find|not found|ignor|fail|error|corrupt|broken|skip|damage|"
    r"moved|cannot|changed",
    re.IGNORECASE,
)
OWN_CODE = ("transformers", "sentence_transformers", "accelerate", "unbroken")


@dataclass(frozen=True)
class Outcome:
    """The word for one case, and in a few words why."""

    case: str
    kind: str
    remark: str = ""


def conclude(
    system: System,
    spec: Spec,
    case: str,
    *,
    oracle: Spec | None = None,
    asked: Spec | None = None,
    harmless: bool = False,
    repair: bool = True,
) -> Outcome:
    """Give the command again and say what became of the run.

    `oracle` is the command whose uninterrupted run it is compared with, `asked` the changed one that was asked for
    instead; `harmless` says that the fault takes nothing away, so that other bits are no lost state. Where the command
    fails, the newest checkpoint is deleted by hand and the command given again, if `repair`, until it finishes.
    """
    oracle = oracle or spec
    ended = system.run(spec)
    if ended.code == 0:
        return _finished(system, spec, case, ended, oracle, asked, harmless)
    kind, why = REFUSES if is_refusal(ended) else CRASH, last_message(ended)
    if repair:
        done, how = _repaired(system, spec, oracle)
        kind, why = (LOST, f"{why}; {how}") if not done else (kind, f"{why}; {how}")
    return Outcome(case, kind, why)


def _finished(
    system: System, spec: Spec, case: str, ended: Ended, oracle: Spec, asked: Spec | None, harmless: bool
) -> Outcome:
    found, said = system.sha256(spec.output), what_was_said(system, ended)
    if not found:
        return Outcome(case, SILENT, "exit code 0, but no finished model")
    if asked is not None and found == system.sha256(system.golden(asked)):
        return Outcome(case, EXACT, "as if the new command had been given from the start")
    if found == system.sha256(system.golden(oracle)):
        if asked is not None and not said:
            return Outcome(case, IGNORES, "")
        return Outcome(case, EXACT, said or _losses(system, spec, oracle))
    far = system.distance(spec.output, oracle)
    remark = f"distance {far:.2g}"
    if said:
        return Outcome(case, INEXACT, f"{remark}; said: {said}")
    return Outcome(case, INEXACT if harmless else SILENT, remark)


def _losses(system: System, spec: Spec, oracle: Spec) -> str:
    """Compare what was logged, where both logged the same steps."""
    mine, golden = system.losses(spec.output), system.losses(system.golden(oracle))
    differing = [step for step in sorted(mine.keys() & golden.keys()) if mine[step] != golden[step]]
    if spec.logging_steps != oracle.logging_steps or not differing:
        return ""
    return f"logged losses differ in {len(differing)} steps from {differing[0]}"


def what_was_said(system: System, ended: Ended) -> str:
    """Return the first line that neither an uninterrupted run nor a plain resume prints and that tells of trouble."""
    usual = system.usual_lines
    for raw in re.split(r"[\r\n]+", ended.text):
        for line in normalised(raw):
            if line not in usual and TELLING.search(raw) and not raw.startswith("replayed "):
                return shortened(raw, 160)
    return ""


def is_refusal(ended: Ended) -> bool:
    """Tell a message from an accident: no traceback, or one whose last frame is the trainer's own `raise`."""
    if "internal error" in ended.text or ended.code < 0:
        return False
    frames = re.findall(r'^  File "([^"]+)", line \d+, in .+\n((?:    .*\n)*)', ended.text, re.MULTILINE)
    if not frames:
        return bool(ended.text.strip())
    path, source = frames[-1]
    return source.strip().startswith("raise ") and any(f"/{name}/" in path for name in OWN_CODE)


def last_message(ended: Ended) -> str:
    """Return the line of an exception or a refusal."""
    lines = [line for line in ended.text.splitlines() if line.strip() and not line.startswith(" ")]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|unbroken: ", line)]
    return shortened((errors or lines or [f"exit code {ended.code}, no output"])[-1], 160)


def shortened(text: str, most: int) -> str:
    text = re.sub(r"(/[^\s'\":,;]+/)(?=[^\s/]+)", "", text.strip())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _repaired(system: System, spec: Spec, oracle: Spec) -> tuple[bool, str]:
    """Do by hand what is left to do; tell whether training went on from a checkpoint, and with what result."""
    first = system.last_step(spec.output) <= spec.save_steps  # before any save had been completed
    deleted = 0
    while there := system.checkpoints(spec.output):
        shutil.rmtree(there[-1])
        deleted += 1
        ended = system.run(spec)
        if ended.code == 0:
            same = system.sha256(spec.output) == system.sha256(system.golden(oracle))
            from_start = len(there) == 1
            result = "exact" if same else "other bits"
            done = first or not from_start
            return done, f"{deleted} folder{'s' * (deleted > 1)} deleted by hand: {result}" + (
                ", from step 0" * from_start
            )
    return False, "nothing left to go on from"


def undone(system: System, spec: Spec, outcome: Outcome, original: Spec) -> Outcome:
    """After a refusal of a change: take the change back, and the run must finish as if nothing had been."""
    if outcome.kind not in (REFUSES, CRASH):
        return outcome
    ended = system.run(original)
    same = ended.code == 0 and system.sha256(spec.output) == system.sha256(system.golden(original))
    return replace(outcome, remark=f"{outcome.remark}; taken back: {'exact' if same else 'NOT exact'}")
