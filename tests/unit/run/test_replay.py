from __future__ import annotations

from typing import Any

import pytest

from unbroken.base.errors import CannotContinueError
from unbroken.run.proof import proof
from unbroken.run.replay import Replay
from unbroken.store.journal import Mark


def step(n: int, **changes: Any) -> dict[str, Any]:
    return {"kind": "step", "n": n, "ids": "a", "loss": 0.5, "grad_norm": 1.5, "learning_rate": 1e-5} | changes


def replay_of(*records: dict[str, Any], after: int = 0) -> Replay:
    return Replay([(record, Mark(10 * i, "")) for i, record in enumerate(records)], after)


def test_identical_steps_are_counted_and_not_recorded_again() -> None:
    replay = replay_of(step(4), step(5), {"kind": "commit", "n": 5}, after=3)
    assert len(replay) == 2
    assert replay.end == 5
    assert replay.matches(step(4))
    assert replay.matches(step(5))
    assert not replay.matches(step(6))
    assert replay.compared == [4, 5]
    assert replay.marks[4] == Mark(0, "")


@pytest.mark.parametrize(
    ("key", "cause"),
    [
        ("ids", "other examples were drawn"),
        ("learning_rate", "the schedule changed"),
        ("loss", "the forward pass gives other bits"),
        ("grad_norm", "the backward pass gives other bits"),
    ],
)
def test_the_first_difference_names_its_cause(key: str, cause: str) -> None:
    later = {"ids": "b", "learning_rate": 2e-5, "loss": 0.6, "grad_norm": 1.6}
    keys = ["ids", "learning_rate", "loss", "grad_norm"]
    changed = {name: later[name] for name in keys[keys.index(key) :]}
    with pytest.raises(CannotContinueError, match=f"step 4 does not repeat: {key} was .*{cause}"):
        replay_of(step(4), after=3).matches(step(4, **changed))


def test_the_last_bit_counts() -> None:
    with pytest.raises(CannotContinueError):
        replay_of(step(1, loss=0.1)).matches(step(1, loss=0.1 + 2**-56))


def test_a_canary_is_compared_but_is_no_step() -> None:
    replay = replay_of({"kind": "canary", "n": 4, "loss": 0.5, "grad_norm": 1.5}, after=3)
    assert not replay.matches(step(4)), "it must still be recorded"
    assert replay.compared == [4]


def test_steps_before_the_checkpoint_do_not_count() -> None:
    assert len(replay_of(step(2), step(3), after=3)) == 0


@pytest.mark.parametrize(
    ("records", "verdict"),
    [
        ([{"kind": "segment", "step": 0}, step(1)], "uninterrupted"),
        ([{"kind": "segment", "step": 0}, step(1), {"kind": "segment", "step": 1}, step(2)], "not disproved"),
        (
            [
                {"kind": "segment", "step": 0},
                step(1),
                {"kind": "segment", "step": 0},
                {"kind": "replay", "first": 1, "last": 1, "count": 1},
            ],
            "1 replayed step identical to the bit",
        ),
        ([{"kind": "segment", "step": 0}, step(1), step(3)], "1 step has no record"),
        ([{"kind": "segment", "step": 0}, step(1), {"kind": "drift", "n": 2}, step(2)], "exact up to step 1, inexact"),
    ],
)
def test_the_verdict_claims_no_more_than_was_checked(records: list[dict[str, Any]], verdict: str) -> None:
    assert verdict in proof(records)["verdict"]
