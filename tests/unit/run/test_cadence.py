from __future__ import annotations

import pytest

from unbroken.run.cadence import Cadence


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_auto_waits_ten_seconds_and_a_hundred_times_the_cost() -> None:
    clock = Clock()
    cadence = Cadence(clock=clock)
    clock.now += 9.9
    assert not cadence.due(1)
    clock.now += 0.1
    assert cadence.due(2)
    cadence.began()
    cadence.finished(0.5)
    clock.now += 49.9
    assert not cadence.due(3)
    clock.now += 0.2
    assert cadence.due(4)


@pytest.mark.parametrize(("fruitless", "seconds"), [(0, 10.0), (1, 5.0), (3, 1.25)])
def test_a_run_that_keeps_dying_commits_earlier(fruitless: int, seconds: float) -> None:
    clock = Clock()
    cadence = Cadence(fruitless=fruitless, clock=clock)
    clock.now += seconds - 0.01
    assert not cadence.due(1)
    clock.now += 0.02
    assert cadence.due(1)


def test_steps_epochs_and_seconds() -> None:
    clock = Clock()
    assert [step for step in range(1, 10) if Cadence("steps", steps=3).due(step)] == [3, 6, 9]
    assert not Cadence("epoch").due(7)
    timed = Cadence("time", seconds=2.0, clock=clock)
    clock.now += 1.9
    assert not timed.due(1)
    clock.now += 0.2
    assert timed.due(1)


@pytest.mark.parametrize("fruitless", [40, 1100, 100_000])
def test_any_number_of_segments_without_a_commit_can_be_counted(fruitless: int) -> None:
    clock = Clock()
    cadence = Cadence(fruitless=fruitless, clock=clock)
    assert 0 < cadence.interval < 1e-6
    clock.now += 0.001
    assert cadence.due(1)
