"""The learning rate at the landmarks of a run; the whole curve is compared with transformers in tests/pairs."""

from __future__ import annotations

import pytest

from unbroken.step.schedule import DESCENTS, learning_rate, warmup


@pytest.mark.parametrize("kind", DESCENTS)
def test_the_rate_rises_to_the_peak(kind):
    rate = learning_rate(kind, 2e-5, warmup_steps=4, total_steps=20)
    assert [rate(step) for step in range(5)] == [0.0, 2e-5 * 0.25, 2e-5 * 0.5, 2e-5 * 0.75, 2e-5]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_last_step_still_moves_and_the_end_is_zero(kind):
    rate = learning_rate(kind, 1.0, warmup_steps=2, total_steps=10)
    assert rate(9) > 0
    assert rate(10) == rate(11) == 0 if kind == "linear" else rate(10) == pytest.approx(0, abs=1e-16)


def test_a_constant_rate_ignores_the_warmup():
    rate = learning_rate("constant", 3e-4, warmup_steps=5, total_steps=10)
    assert {rate(step) for step in range(10)} == {3e-4}


def test_nothing_is_kept_between_calls():
    rate = learning_rate("cosine", 1.0, warmup_steps=3, total_steps=30)
    forwards = [rate(step) for step in range(30)]
    assert [rate(step) for step in reversed(range(30))] == forwards[::-1]


def test_a_run_shorter_than_its_warmup_only_rises():
    rate = learning_rate("linear", 1.0, warmup_steps=10, total_steps=5)
    assert [rate(step) for step in range(5)] == [0.0, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("steps", "ratio", "expected"),
    [
        (None, None, 0),
        (None, 0.1, 11),  # of 101, rounded up
        (7, None, 7),
        (7, 0.5, 7),
        (0, 0.1, 11),
        (0.1, None, 11),
        (1, None, 1),
        (None, 1.0, 101),
    ],
)
def test_warmup_is_counted_as_hugging_face_does(steps, ratio, expected):
    assert warmup(101, steps, ratio) == expected
