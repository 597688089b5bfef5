"""A checkpoint that is not what was written: cut, flipped, with a file missing, a foreign or empty one beside it.

The run was killed after step 14; its checkpoints are those of steps 8 and 12, and the damage is done to the newer one.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.faults.outcome import Outcome, conclude
from bench.faults.systems import System

OUTSIDE = ("run.json", ".run.json", "journal.jsonl", "data.digests")  # what a run of ours reads besides its checkpoint


def damaged(system: System, case: str, damage: Callable[[Path], None]) -> Outcome:
    """Damage the newest checkpoint of a copy of the stopped run and go on."""
    spec = system.stopped()
    damage(system.checkpoints(spec.output)[-1])
    outcome = conclude(system, spec, case)
    system.forget(spec)
    return outcome


def targets(system: System) -> list[str]:
    """Return the files a resume may read, relative to the checkpoint."""
    spec = system.stopped()
    found = system.files(system.checkpoints(spec.output)[-1])
    system.forget(spec)
    return [*found, *(f"../../{name}" for name in OUTSIDE if system.name == "ours")]


def cut_files(system: System) -> list[Outcome]:
    """Every file of the newest checkpoint: empty, half, one byte short."""
    found = []
    for name in targets(system):
        for length, keep in (("empty", lambda n: 0), ("half", lambda n: n // 2), ("one byte short", lambda n: n - 1)):

            def cut(checkpoint: Path, name: str = name, keep: Callable[[int], int] = keep) -> None:
                content = (checkpoint / name).read_bytes()
                (checkpoint / name).write_bytes(content[: max(0, keep(len(content)))])

            found.append(damaged(system, f"{shown(name)} {length}", cut))
    return found


def flipped_bits(system: System) -> list[Outcome]:
    """One bit of one file."""
    draw, found = random.Random(2), []
    for name in targets(system):
        for region, count in regions(name).items():
            for _ in range(count):
                place, bit = draw.random(), draw.randrange(8)

                def flip(
                    checkpoint: Path, name: str = name, region: str = region, place: float = place, bit: int = bit
                ) -> None:
                    content = bytearray((checkpoint / name).read_bytes())
                    first, end = bounds(content, region)
                    content[first + int(place * (end - first))] ^= 1 << bit
                    (checkpoint / name).write_bytes(content)

                found.append(damaged(system, f"{shown(name)} ({region})", flip))
    return found


def regions(name: str) -> dict[str, int]:
    """Return how many flips each region of a file gets; files that hold state get more than the others."""
    if name.endswith(".safetensors"):
        return {"header": 2, "tensor data": 4}
    state = name.endswith((".pt", ".pth")) or Path(name).name in ("trainer_state.json", "state.json", "MANIFEST.json")
    return {"anywhere": 4 if state else 1}


def bounds(content: bytearray, region: str) -> tuple[int, int]:
    if region == "anywhere":
        return 0, len(content)
    header = 8 + int.from_bytes(content[:8], "little")
    return (0, header) if region == "header" else (header, len(content))


def missing_files(system: System) -> list[Outcome]:
    """Every file of the newest checkpoint, deleted."""
    found = []
    for name in targets(system):

        def delete(checkpoint: Path, name: str = name) -> None:
            (checkpoint / name).unlink()

        found.append(damaged(system, f"without {shown(name)}", delete))
    return found


def foreign_things(system: System) -> list[Outcome]:
    """What does not belong there: another run's checkpoint, an empty one, the optimizer of the checkpoint before."""
    other = system.stopped(system.spec(seed=9), step=22)

    def foreign(run: Path) -> None:
        shutil.copytree(system.checkpoint(other.output, 20), system.checkpoint(run, 20))

    def empty(run: Path) -> None:
        system.checkpoint(run, 20).mkdir()

    def old_optimizer(run: Path) -> None:
        name = system.optimizer_file()
        shutil.copy2(system.checkpoint(run, 8) / name, system.checkpoint(run, 12) / name)

    def old_weights(run: Path) -> None:
        name = "model/model.safetensors" if system.name == "ours" else "model.safetensors"
        shutil.copy2(system.checkpoint(run, 8) / name, system.checkpoint(run, 12) / name)

    def renumbered(run: Path) -> None:
        shutil.copytree(system.checkpoint(run, 8), system.checkpoint(run, 20))

    cases = {
        "another run's checkpoint, of step 20, beside them": foreign,
        "an empty checkpoint folder of step 20": empty,
        "the optimizer of step 8 in the checkpoint of step 12": old_optimizer,
        "the weights of step 8 in the checkpoint of step 12": old_weights,
        "a copy of the checkpoint of step 8 named for step 20": renumbered,
    }
    found = []
    for case, damage in cases.items():
        spec = system.stopped()
        damage(Path(spec.output))
        found.append(conclude(system, spec, case))
        system.forget(spec)
    return found


def shown(name: str) -> str:
    return name.removeprefix("../../")


def missing_and_foreign(system: System) -> list[Outcome]:
    """A file missing, and things that do not belong there."""
    return missing_files(system) + foreign_things(system)
