"""Kill real training processes with SIGKILL, phase by phase, until their runs are finished, and compare the results.

    python -m tests.crash.kills --kills 1000 --workers 2 --work FOLDER [--only TASK] [--causal FOLDER] [--json FILE]

Each configuration trains once left alone, and once telling where it is (`tests.crash.victim`), which must change
nothing. Then runs of them are killed one to twenty times each, most kills aimed at a phase, a tenth at any instant of
a process that tells nothing. Every finished run is put to the oracles of `tests.crash.oracles`. FOLDER/outcomes.jsonl
holds one line a run; given again, the command goes on after the last. Runs in which something was wrong are kept.

Exits 1 if anything was wrong, or if a control was not found out: a moment of Adam set to zero, another seed, a
checkpoint taken away; of runs of two phases also a weight of the head changed, and a head fitted to embeddings that an
earlier process left; of adapters also a bit of the frozen model they belong to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from tests.crash import aiming, oracles
from tests.crash.aiming import ALONE, STRATA, Aim, Kill, Typical, draw_aim, start
from tests.crash.settings import KINDS, Setting, write_settings
from unbroken.store import layout
from unbroken.store.journal import read_records

MOST_KILLS = 20
UNOBSERVED_SHARE = 0.1
SLOW_SHARE = 0.06  # of the runs: real models, whose processes take several times as long


@dataclass
class Outcome:
    """What became of one run."""

    number: int
    setting: str
    kills: list[Kill] = field(default_factory=list)
    missed: int = 0  # processes that ended by themselves before they came to the phase aimed at
    restores: int = 0
    replayed: int = 0
    lost_steps: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def read(cls, line: str) -> Outcome:
        values = json.loads(line)
        return cls(**values | {"kills": [Kill(**kill) for kill in values["kills"]]})


@dataclass(frozen=True)
class Golden:
    """A configuration, what its run left alone has become, and how long its phases take."""

    setting: Setting
    facts: oracles.Facts
    typical: Typical


def arguments(setting: Setting, root: Path, *more: str) -> list[str]:
    return ["train", str(setting.config), "--set", f"output_dir={root}", *more]


def make_golden(setting: Setting, work: Path) -> Golden:
    """Train once with the plain command and once with the one that tells; raise if they differ in a bit."""
    plain, telling = work / f"{setting.config.stem}-alone", work / f"{setting.config.stem}-telling"
    for root in (plain, telling):
        shutil.rmtree(root, ignore_errors=True)
    log = work / f"{setting.config.stem}.log"
    began = time.monotonic()
    assert start(arguments(setting, plain), log, ALONE, Typical(), plain)[0] == 0, f"see {log}"
    life = time.monotonic() - began
    code, _, watched = start(arguments(setting, telling), log, None, Typical(), telling)
    assert code == 0, f"see {log}"
    facts = oracles.facts(plain)
    if setting.boundary is not None:
        assert setting.boundary < max(facts.steps), "no step of a second phase"
        assert facts.predictions is not None, "no head"
    problems = oracles.compare(oracles.facts(telling), facts) + oracles.examine(plain, 0)
    if problems:
        raise SystemExit(f"{setting.name}: two runs left alone: {'; '.join(problems)}")
    return Golden(setting, facts, Typical.of(watched, life))


def plan_kills(draw: random.Random, most: int = MOST_KILLS, two_phases: bool = False) -> list[Aim]:
    """Choose one to `most` kills; some runs begin with one before the first commit, some end with one or two late.

    Of two phases, the second has half of them.
    """
    count = draw.randint(1, most)
    turns = count // 2 if two_phases else 0
    names = [*pick(draw, 1, "first" if draw.random() < 0.6 else ""), *pick(draw, count - turns - 1, "", "start")]
    names += pick(draw, turns, "turn")
    for name in ("export", "finished"):
        if draw.random() < 0.3:
            names.append(name)
    aims = [draw_aim(name, draw) for name in names]
    return aims[:1] + [Aim("", share=draw.random()) if draw.random() < UNOBSERVED_SHARE else aim for aim in aims[1:]]


def pick(draw: random.Random, count: int, *when: str) -> list[str]:
    """Draw strata of these kinds by their weights."""
    names = [name for name in STRATA if STRATA[name].when in when]
    return draw.choices(names, [STRATA[name].weight for name in names], k=count)


def carry(golden: Golden, number: int, root: Path, aims: list[Aim]) -> Outcome:
    """Start the same command until it ends by itself, killing it as planned; put the run to the oracles."""
    outcome, log, began = Outcome(number, golden.setting.name), root.with_suffix(".log"), time.monotonic()
    tidy_up(root, log)
    command = arguments(golden.setting, root)
    try:
        code = None
        for aim in aims:
            if code == 0 and aim.stratum != "finished":
                continue
            code, kill, _ = start(command, log, aim, golden.typical, root)
            outcome.kills += [replace(kill, boundary=golden.setting.boundary)] if kill else []
            outcome.missed += kill is None
            if code > 0:
                break
        while code is None or code < 0:
            code, _, _ = start(command, log, ALONE, golden.typical, root)
            if code < 0:
                outcome.problems.append(f"lost: ended with {code}, and nobody killed it")
                break
        if code > 0:
            outcome.problems.append(f"lost: ended with {code}, see {log}")
        if not outcome.problems:
            judge(golden, root, log, outcome)
    except subprocess.TimeoutExpired:
        outcome.problems.append(f"lost: hung for {aiming.LIMIT_SECONDS} s, see {log}")
    except Exception as failure:  # noqa: BLE001 (a folder the oracles cannot read is a finding like any other)
        outcome.problems.append(f"lost: {type(failure).__name__}: {failure}")
    outcome.seconds = round(time.monotonic() - began, 2)
    if not outcome.problems:
        tidy_up(root, log)
    return outcome


def tidy_up(root: Path, log: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    log.unlink(missing_ok=True)


def judge(golden: Golden, root: Path, log: Path, outcome: Outcome) -> None:
    """Put a finished run to every oracle, and start it once more: that must change nothing."""
    outcome.problems += oracles.compare(oracles.facts(root), golden.facts)
    outcome.problems += oracles.examine(root, golden.setting.most_lost)
    outcome.lost_steps = oracles.lost_steps(root)
    for record in read_records(root / layout.JOURNAL_FILE):
        outcome.restores += record["kind"] == "segment" and record["step"] > 0
        outcome.replayed += record["count"] if record["kind"] == "replay" else 0
    before = oracles.sums(root)
    code, _, _ = start(arguments(golden.setting, root), log, ALONE, golden.typical, root)
    if code != 0 or oracles.sums(root) != before:
        outcome.problems.append(f"different: a further start ended with {code} or changed the run")
    said = log.read_text(errors="replace")
    outcome.problems += [f"different: {text!r} in {log}" for text in ("Traceback", "internal error") if text in said]


def change_newest(root: Path, which: Callable[[str], bool], how: Callable[[Tensor], object]) -> None:
    """Change one tensor of the newest checkpoint that steps on record follow, and renew every digest; keep no other."""
    from unbroken.store.checkpoints import Placed, read_checkpoint
    from unbroken.store.commit import Image, Staging, write_checkpoint

    home = root / layout.CHECKPOINTS_FOLDER
    names = aiming.checkpoint_names(root)
    newest = max(name for name in names if int(name) < aiming.step_on_record(root))
    run_id = json.loads((root / layout.RUN_FILE).read_bytes())["run_id"]
    restored = read_checkpoint(home / newest, run_id)
    manifest = json.loads((home / newest / layout.MANIFEST_FILE).read_bytes())["tensors"]
    how(next(restored.tensors[name] for name in sorted(restored.tensors) if which(name)))
    placed = {n: Placed(manifest[n]["file"], manifest[n]["key"], t) for n, t in restored.tensors.items()}
    image = Image(restored.step, placed, restored.documents, restored.state)
    for name in names:
        shutil.rmtree(home / name)
    write_checkpoint(home, Staging().take(image, restored.mark), run_id, lambda: None)


def remove_acknowledged(root: Path) -> None:
    """Take away the newest checkpoint the journal acknowledges, and what is newer."""
    acknowledged = max(r["n"] for r in read_records(root / layout.JOURNAL_FILE) if r["kind"] == "commit")
    for name in aiming.checkpoint_names(root):
        if int(name) >= acknowledged:
            shutil.rmtree(root / layout.CHECKPOINTS_FOLDER / name)


def controls(golden: Golden, work: Path) -> dict[str, bool]:
    """Do what must be found out; tell of each whether it was."""
    found = {}
    root, log = work / "control", work / "control.log"
    command = arguments(golden.setting, root)

    begin_and_kill(golden, root, log)
    change_newest(root, lambda name: name.endswith("/exp_avg"), Tensor.zero_)
    found["a moment of Adam set to zero, digests renewed"] = start(command, log, None, golden.typical, root)[0] == 4

    begin_and_kill(golden, root, log, "--set", "save_total_limit=3")
    remove_acknowledged(root)
    code = start(command, log, None, golden.typical, root)[0]
    problems = oracles.compare(oracles.facts(root), golden.facts) + oracles.examine(root, golden.setting.most_lost)
    found["an acknowledged checkpoint taken away"] = code == 0 and any("was acknowledged" in text for text in problems)

    shutil.rmtree(root)
    other = arguments(golden.setting, root, "--set", "seed=12345")
    code = start(other, log, None, golden.typical, root)[0]
    problems = oracles.compare(oracles.facts(root), golden.facts)
    found["another seed"] = code == 0 and len(problems) > 2
    shutil.rmtree(root)
    return found


def controls_of_the_head(trained: Golden, fitted: Golden, work: Path) -> dict[str, bool]:
    """Do to a head what must be found out: change one that is being trained, and mislead one that is to be fitted."""
    found = {}
    root, log = work / "control-head", work / "control-head.log"
    begin_and_kill(trained, root, log, aim=Aim("head", "+", 4, hold=True))  # steps of the head follow a checkpoint
    change_newest(root, "head.weight".__eq__, lambda tensor: tensor.view(-1)[:1].add_(1e-3))
    code = start(arguments(trained.setting, root), log, None, trained.typical, root)[0]
    found["a weight of the head changed, digests renewed"] = code == 4

    shutil.rmtree(root)
    left = work / "control-embeddings"  # what the evaluation before the first step leaves there, the head is fitted to
    shutil.rmtree(left, ignore_errors=True)
    code = subprocess.run(
        [sys.executable, "-m", "tests.crash.misled", str(left), *arguments(fitted.setting, root)],
        cwd=aiming.ROOT,
        env=aiming.paths(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=aiming.LIMIT_SECONDS,
        check=False,
    ).returncode
    problems = " ".join(oracles.compare(oracles.facts(root), fitted.facts))
    told = all(f"different: {what}" in problems for what in ("model", "predictions", "state"))
    found["a head fitted to embeddings that an earlier process left"] = code == 0 and told
    shutil.rmtree(root)
    return found


def controls_of_the_base(golden: Golden, work: Path) -> dict[str, bool]:
    """Change a bit of the frozen model under an adapter's run, which holds none of it; put it back afterwards."""
    root, log = work / "control-base", work / "control-base.log"
    command = arguments(golden.setting, root)
    begin_and_kill(golden, root, log)
    weights = work / "inputs" / "tiny-causal" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    refused = start(command, log, None, golden.typical, root)[0]
    weights.write_bytes(before)
    went_on = start(command, log, None, golden.typical, root)[0] == 0
    same = not oracles.compare(oracles.facts(root), golden.facts)
    shutil.rmtree(root)
    return {"a bit of the frozen model changed": refused == 4 and went_on and same}


LATE = Aim("optimizer", "+", 12, hold=True)  # after the first commit, so that steps follow the second


def begin_and_kill(golden: Golden, root: Path, log: Path, *more: str, aim: Aim = LATE) -> None:
    """Train anew and kill it where steps on record follow a checkpoint that is not the first."""
    shutil.rmtree(root, ignore_errors=True)
    code, kill, _ = start([*arguments(golden.setting, root), *more], log, aim, golden.typical, root)
    assert kill is not None, f"the control ended with {code}"
    assert len(aiming.checkpoint_names(root)) > 1


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield the lines of the report."""
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    total = max(len(kills), 1)
    aimed = Counter(kill.aimed or "not observed" for kill in kills)
    struck = Counter(phase for kill in kills for phase in kill.phases)
    yield "| phase | aimed at | struck in |"
    yield "|---|---|---|"
    for name in [*STRATA, *sorted((aimed.keys() | struck.keys()) - STRATA.keys())]:
        yield f"| {name} | {aimed[name]} | {struck[name]} |"
    yield "(a kill may strike the training thread in one phase, the commit's thread in another, during a replay)"
    for name, count in sorted(Counter(outcome.setting for outcome in outcomes).items()):
        own = sum(len(outcome.kills) for outcome in outcomes if outcome.setting == name)
        yield f"{name}: {count} runs, {own} kills"
    committed, inside = sum(kill.committed for kill in kills), sum(kill.inside for kill in kills)
    yield f"{len(outcomes)} runs, {len(kills)} kills, at most {max(len(o.kills) for o in outcomes)} in one run"
    yield f"after a commit: {committed} ({committed / total:.1%}); inside one: {inside} ({inside / total:.1%})"
    yield from sides(kills)
    yield f"restores: {sum(o.restores for o in outcomes)}; steps replayed: {sum(o.replayed for o in outcomes)}"
    lost = [steps for outcome in outcomes for steps in outcome.lost_steps]
    waits = [kill.seconds_to_new_step for kill in kills if kill.seconds_to_new_step is not None]
    if lost:
        yield f"steps made again after a kill: median {median(lost)}, at most {max(lost)}"
    if waits:
        yield f"from start to the first new step: median {median(waits):.1f} s, at most {max(waits):.1f} s"
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    for kind in ("lost", "different", "untidy"):
        yield f"{kind}: {sum(problem.startswith(kind) for problem in problems)}"
    if not problems:
        yield f"no failure in {total} kills: under {3 / total:.2%} a kill, at 95 % confidence (rule of three)"


def sides(kills: list[Kill]) -> Iterator[str]:
    """Yield where in runs of two phases the kills struck."""
    phased = [kill for kill in kills if kill.boundary is not None]
    for side, count in sorted(Counter(kill.side for kill in phased).items()):
        inside = sum(kill.inside for kill in phased if kill.side == side)
        yield f"{side}: {count} kills, {inside} of them inside a commit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--most-kills", type=int, default=MOST_KILLS, help="in one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--only", choices=KINDS, help="runs of this task; default: of all")
    parser.add_argument("--causal", type=Path, help="folder of a real language model, for runs of adapt")
    parser.add_argument("--json", type=Path, help="write summary and outcomes to this file")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    kinds = (options.only,) if options.only else KINDS
    settings = write_settings(options.work, kinds, options.causal and options.causal.resolve())
    goldens = [make_golden(setting, options.work) for setting in settings]
    found = controls(goldens[0], options.work)
    two = {golden.setting.name: golden for golden in goldens if golden.setting.boundary is not None}
    if two:
        found |= controls_of_the_head(two["trained head"], two["fitted head"], options.work)
    found |= next((controls_of_the_base(g, options.work) for g in goldens if g.setting.task == "adapt"), {})
    outcomes = kill_runs(goldens, options)
    lines = [*table(outcomes), *(f"control: {name}: {'found out' if ok else 'MISSED'}" for name, ok in found.items())]
    print("\n".join(lines))
    problems = [f"run {outcome.number}: {problem}" for outcome in outcomes for problem in outcome.problems]
    print("\n".join([*problems, f"{time.monotonic() - began:.0f} s"]))
    if options.json:
        report: dict[str, Any] = {"seed": options.seed, "controls": found, "report": lines, "problems": problems}
        options.json.write_text(json.dumps(report | {"outcomes": [asdict(o) for o in outcomes]}, indent=1))
    sys.exit(1 if problems or not all(found.values()) else 0)


def kill_runs(goldens: list[Golden], options: argparse.Namespace) -> list[Outcome]:
    """Kill runs until there were enough kills; those that `outcomes.jsonl` holds already count."""
    record = options.work / f"outcomes-{options.seed}.jsonl"
    outcomes = [Outcome.read(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = {outcome.number for outcome in outcomes}
    numbers = (number for number in itertools.count() if number not in done)
    slow = [golden for golden in goldens if golden.setting.slow]
    quick = [golden for golden in goldens if golden not in slow]

    def one(number: int) -> Outcome:
        draw = random.Random(f"{options.seed}/{number}")
        real = draw.random() < SLOW_SHARE and bool(slow)
        golden = draw.choice(slow if real else quick)
        aims = plan_kills(draw, options.most_kills, golden.setting.boundary is not None)
        return carry(golden, number, options.work / f"run-{number:04}", aims)

    with futures.ThreadPoolExecutor(options.workers) as pool, record.open("a") as lines:
        running: set[futures.Future[Outcome]] = set()
        while True:
            enough = sum(len(outcome.kills) for outcome in outcomes) >= options.kills
            while not enough and len(running) < options.workers:
                running.add(pool.submit(one, next(numbers)))
            if not running:
                return sorted(outcomes, key=lambda outcome: outcome.number)
            ended, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for outcome in (future.result() for future in ended):
                outcomes.append(outcome)
                lines.write(json.dumps(asdict(outcome)) + "\n")
                lines.flush()
                print(line_of(outcome), flush=True)


def line_of(outcome: Outcome) -> str:
    """Say what became of one run."""
    return (
        f"run {outcome.number} ({outcome.setting}): {len(outcome.kills)} kills, {outcome.restores} restores, "
        f"{outcome.replayed} steps replayed, {outcome.seconds:.0f} s: {'; '.join(outcome.problems) or 'identical'}"
    )


if __name__ == "__main__":
    main()
