"""Resumed at many steps of a run, epoch boundaries among them; and the controls of the comparison itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.faults.outcome import EXACT, SILENT, Outcome, conclude
from bench.faults.systems import System
from bench.faults.trainers import Spec

# An epoch is 11 steps of 4 rows.
RESUMED_AT = (1, 3, 6, 9, 10, 11, 12, 15, 18, 21, 22, 23)
FEW = (5, 11, 15, 22)
LOSSES = {"ours": ("multiple_negatives_ranking", "triplet", "cosent"), "st": ("", "triplet", "cosent"), "hf": ("",)}


def controls(system: System) -> list[Outcome]:
    """Two uninterrupted runs must be equal, and one with another seed must not."""
    spec = system.spec()
    again = replace(spec, output=str(system.new_output()))
    system.run(again)
    same = system.sha256(again.output) == system.sha256(system.golden(spec)) != ""
    losses = system.losses(again.output) == system.losses(system.golden(spec))
    other = system.sha256(system.golden(replace(spec, seed=spec.seed + 1)))
    differs = other != system.sha256(system.golden(spec))
    return [
        Outcome("two uninterrupted runs", EXACT if same and losses else SILENT, "weights and losses equal" * same),
        Outcome(
            "control: another seed", EXACT if differs else SILENT, "differs, as it must" if differs else "the same"
        ),
    ]


def every_step(system: System) -> list[Outcome]:
    """Resumed at steps all over the run, dropout on, with each loss that owns no parameters."""
    found = []
    for loss in LOSSES[system.name]:
        steps = RESUMED_AT if loss == LOSSES[system.name][0] else FEW
        found += resumed(system, system.spec(loss=loss), loss, steps)
    return found


def accumulated(system: System) -> list[Outcome]:
    """The same with two chunks a step, the last step of an epoch short."""
    return resumed(system, system.spec(batch_size=2, accumulation=2), "two chunks a step", FEW)


def loss_with_parameters(system: System) -> list[Outcome]:
    """The same with a loss that owns parameters: the softmax classifier over pairs."""
    return resumed(system, system.spec(loss="softmax"), "SoftmaxLoss", FEW)


def resumed(system: System, spec: Spec, name: str, steps: Sequence[int]) -> list[Outcome]:
    """Keep a checkpoint of every step; then, for some steps, go on from a copy that has none later."""
    spec = replace(spec, save_steps=1, keep=1000)
    golden, found = system.golden(spec), []
    for step in steps:
        output = system.new_output()
        shutil.copytree(golden, output, symlinks=True, ignore=shutil.ignore_patterns("final", "model-*"))
        for checkpoint in system.checkpoints(output):
            if int(checkpoint.name.rpartition("-")[2]) > step:
                shutil.rmtree(checkpoint)
        unfinish(system, output, step)
        command = replace(spec, output=str(output))
        found.append(conclude(system, command, f"{name} at step {step}".strip()))
        system.forget(command)
    return found


def unfinish(system: System, output: Path, step: int) -> None:
    """Take back what a run of ours knows of its own end: the record of it, and the finished model."""
    if system.name != "ours":
        return
    shutil.rmtree(output / "model", ignore_errors=True)
    journal = output / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"kind":"finish"' not in line]
    journal.write_bytes(b"".join(kept))
