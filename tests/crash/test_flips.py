"""Flipped bits in every kind of file a run reads; ten thousand of them with the command in `flips`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.flips import HARMLESS, NOTICED, flip_everything, verdict_of


def check(work: Path, flips: int, seed: int) -> None:
    results = flip_everything(work, flips, seed)
    total, missed, control_missed = verdict_of(results)
    assert total > flips / 2
    assert not missed, results
    assert control_missed, "flips with renewed digests were noticed: the check proves nothing"
    mostly_harmless = {"training data", "config.yaml"}
    for name, counts in results.items():
        assert name in mostly_harmless or counts[HARMLESS] <= counts[NOTICED] / 10 or name == "control", (name, counts)


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    check(tmp_path / "work", 200, seed=0)


@pytest.mark.slow
def test_many_flipped_bits_are_noticed(tmp_path: Path) -> None:
    check(tmp_path / "work", 2000, seed=1)
