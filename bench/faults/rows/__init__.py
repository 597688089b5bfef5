"""The rows of the board; the numbers are those of the fault table of docs/exactness.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.faults.outcome import Outcome
from bench.faults.rows import changes, damage, exact, kills
from bench.faults.systems import System


@dataclass(frozen=True)
class Row:
    """One fault; `systems` are those it applies to."""

    name: str
    title: str
    run: Callable[[System], list[Outcome]]
    systems: tuple[str, ...] = ("ours", "st", "hf")


ROWS = {
    row.name: row
    for row in (
        Row("0", "no fault: two runs equal, another seed different", exact.controls),
        Row(
            "26", "resumed at 12 steps of 24 (epoch ends among them), at 4 steps for each other loss", exact.every_step
        ),
        Row("26a", "the same, two chunks a step (gradient accumulation)", exact.accumulated),
        Row("26p", "the same, a loss that owns parameters (SoftmaxLoss)", exact.loss_with_parameters, ("st",)),
        Row("1", "SIGKILL at random instants, half of them in a save", kills.random_instants),
        Row("2", "SIGKILL at system calls of one save, in order", kills.every_call_of_a_save),
        Row("5", "SIGTERM after step 10 of 24, saved every 4", kills.terminated),
        Row("6", "SIGINT after step 10 of 24, saved every 4", kills.interrupted),
        Row("8", "disk full in a save, then room again", kills.disk_full),
        Row("11", "each file of the newest checkpoint cut: empty, half, one byte short", damage.cut_files),
        Row("12", "one bit flipped in a file of the newest checkpoint", damage.flipped_bits),
        Row("13", "each file of the newest checkpoint missing", damage.missing_files),
        Row("13f", "a foreign, empty or mixed-up checkpoint", damage.foreign_things),
        Row("14", "two processes on one output folder", changes.two_processes),
        Row("16", "the data changed", changes.changed_data),
        Row("17", "a setting of identity changed", changes.changed_settings),
        Row("19", "begun on one core, gone on with on two", changes.changed_threads),
        Row("22", "the folder moved", changes.moved_folder),
        Row("24", "cadence of saving, evaluating, logging, loading changed", changes.other_cadence),
    )
}
