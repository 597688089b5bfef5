"""Real training processes killed in each phase once, and the oracles shown what they must find."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash import oracles
from tests.crash.aiming import STRATA, Aim, phase_of
from tests.crash.kills import Golden, carry, make_golden, plan_kills
from tests.crash.settings import write_settings
from unbroken.store.journal import Journal

# In this order each is still to come when the one before has struck. Held there, so that each strikes where it should.
AIMS = [
    Aim("tokenise", count=2, hold=True),
    Aim("backward", count=8, hold=True),
    Aim("write", count=13, hold=True, share=0.5),
    Aim("restore", count=2, hold=True),
    Aim("rename", "-", 2, hold=True, share=0.5),
    Aim("replay", "+", 2, hold=True),
    Aim("retire", count=2, hold=True, share=0.5),
    Aim("stage", "-", 2, hold=True),
    Aim("export", "+", 5, hold=True),
    Aim("finished", "+", 1, hold=True),
]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    work = tmp_path_factory.mktemp("kills")
    return make_golden(write_settings(work)[0], work)


def test_killed_in_one_phase_after_the_other(golden: Golden, tmp_path: Path) -> None:
    outcome = carry(golden, 0, tmp_path / "run", AIMS)
    assert outcome.problems == []
    assert [kill.aimed for kill in outcome.kills] == [aim.stratum for aim in AIMS]
    for kill, aim in zip(outcome.kills, AIMS, strict=True):
        if aim.edge == "+":
            assert aim.stratum in kill.phases, kill
    assert sum(kill.inside for kill in outcome.kills) >= 3
    assert [kill.committed for kill in outcome.kills][:2] == [False, True]
    assert outcome.replayed > 0
    assert outcome.restores >= 6


@pytest.fixture
def run(golden: Golden, tmp_path: Path) -> Path:
    """A copy of the run left alone, to be damaged."""
    copied = tmp_path / "run"
    shutil.copytree(golden.setting.config.parents[1] / "plain-alone", copied)
    return copied


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def append(root: Path, **record: object) -> None:
    journal = Journal(root / "journal.jsonl")
    journal.append(record)
    journal.close()


def drop_step(root: Path, number: int) -> None:
    lines = (root / "journal.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not (b'"kind":"step"' in line and b'"n":%d,' % number in line)]
    assert len(kept) == len(lines) - 1
    (root / "journal.jsonl").write_bytes(b"".join(kept))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of the model": (lambda root: flip(root / "model" / "model.safetensors"), "different: model: 1 of"),
    "a bit of the optimizer": (
        lambda root: flip(root / "checkpoints" / "00000030" / "optimizer.safetensors"),
        "lost: .*optimizer.safetensors",
    ),
    "a missing step": (lambda root: drop_step(root, 12), "lost: step 13 is on record after step 11"),
    "a step twice": (lambda root: append(root, kind="step", n=30, ids=""), "lost: step 30 is on record after step 30"),
    "other examples": (lambda root: append(root, kind="step", n=30, ids="00"), "step 30 .* other examples"),
    "a lost commit": (lambda root: append(root, kind="segment", segment=2, step=27), "30 was acknowledged; 27 was"),
    "a torn line": (lambda root: flip(root / "journal.jsonl"), "lost: .*damaged"),
    "a leftover": (lambda root: (root / "checkpoints" / ".tmp-x").mkdir(), "untidy: checkpoints/.tmp-x"),
    "one checkpoint": (lambda root: shutil.rmtree(root / "checkpoints" / "00000027"), "lost: only 1 checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_oracles_find(damage: str, golden: Golden, run: Path) -> None:
    assert oracles.compare(oracles.facts(run), golden.facts) + oracles.examine(run, 0) == []
    do, expected = DAMAGES[damage]
    do(run)
    problems = "\n".join(oracles.compare(oracles.facts(run), golden.facts) + oracles.examine(run, 0))
    assert re.search(expected, problems), problems


def test_plans_of_kills_are_stratified() -> None:
    aims = [aim for number in range(300) for aim in plan_kills(random.Random(number))]
    counts = {name: sum(aim.stratum == name for aim in aims) for name in STRATA}
    turns = {name for name in STRATA if STRATA[name].when == "turn"}
    assert min(counts[name] for name in STRATA if name not in turns) > 20, counts
    assert not any(counts[name] for name in turns), "there is one phase"
    assert 0.05 < sum(not aim.stratum for aim in aims) / len(aims) < 0.15
    assert sum(STRATA[aim.stratum].when == "first" for aim in aims if aim.stratum) < 0.1 * len(aims)


def test_half_of_the_kills_are_for_the_second_phase_if_there_is_one() -> None:
    aims = [aim.stratum for number in range(400) for aim in plan_kills(random.Random(number), two_phases=True)]
    counts = {name: aims.count(name) for name in STRATA}
    assert min(counts.values()) > 20, counts
    assert 0.3 < sum(counts[name] for name in STRATA if STRATA[name].when == "turn") / len(aims) < 0.5


# The boundary comes once in a process; what follows it is still to come when the one before has struck.
TURNS = [
    (Aim("boundary", "+", hold=True), "at the boundary, and in the step after it"),
    (Aim("boundary", "-", hold=True, share=0.5), "at the boundary, and in the step after it"),
    (Aim("features", "+", hold=True), "at the boundary, and in the step after it"),
    (Aim("fit", "-", hold=True), "at the boundary, and in the step after it"),
    (Aim("export", "+", 2, hold=True), "after the first step of the head"),
]


@pytest.mark.slow
def test_killed_around_the_boundary_of_two_phases(tmp_path: Path) -> None:
    settings = {setting.name: setting for setting in write_settings(tmp_path, ("classify",))}
    fitted = make_golden(settings["fitted head"], tmp_path)
    outcome = carry(fitted, 0, tmp_path / "run", [aim for aim, _ in TURNS])
    assert outcome.problems == []
    assert [(kill.aimed, kill.side) for kill in outcome.kills] == [(aim.stratum, side) for aim, side in TURNS]
    assert all("head" in kill.phases for kill in outcome.kills[2:4])
    assert outcome.restores >= 4


# Of an adapter's run, in which a step goes through its chunks one by one: a forward and a backward pass each.
ADAPTER_AIMS = [Aim("backward", count=9, hold=True), Aim("fsync", count=3, hold=True), Aim("replay", hold=True)]


@pytest.mark.parametrize(
    "setting",
    [
        "adapters, extraction",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("adapters, packed", "every weight")),
    ],
)
def test_killed_while_a_language_model_is_taught(setting: str, tmp_path: Path) -> None:
    settings = {each.name: each for each in write_settings(tmp_path, ("adapt",))}
    taught = make_golden(settings[setting], tmp_path)
    alone = tmp_path / f"{taught.setting.config.stem}-alone"
    assert ((alone / "model" / "adapter_config.json").exists()) == (setting != "every weight")
    outcome = carry(taught, 0, tmp_path / "run", ADAPTER_AIMS)
    assert outcome.problems == []
    assert [kill.aimed for kill in outcome.kills] == [aim.stratum for aim in ADAPTER_AIMS]
    assert outcome.replayed > 0
    append(alone, kind="step", n=len(taught.facts.steps), ids="", learning_rate=1.0)
    assert re.search("other examples.*another learning rate", " ".join(oracles.plan_problems(alone)))
    flip(tmp_path / "inputs" / "tiny-causal" / "model.safetensors")
    assert "base model is not what it was" in " ".join(oracles.plan_problems(alone))


@pytest.mark.parametrize(
    ("path", "phase"),
    [
        ("commit/write/fsync", "fsync"),
        ("commit/retire/rename", "retire"),
        ("replay/forward/backward", "backward"),
        ("evaluation/write/fsync", "evaluation"),
        ("create/write", "create run"),
        ("replay", "between"),
        ("head/fit", "fit"),
        ("restore/boundary", "restore"),
        ("", "between"),
    ],
)
def test_what_a_path_is_called(path: str, phase: str) -> None:
    assert phase_of(path) == phase
