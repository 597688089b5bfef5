"""seeded(): the same draws from the same seed, and no trace of them outside."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from unbroken.step.generators import seeded


def draws() -> tuple[list[float], list[float], list[float]]:
    """Draw from each generator; the odd counts leave half-used normal pairs behind in all three."""
    normals = np.random.standard_normal(3).tolist()
    return torch.randn(5).tolist(), [random.gauss(0, 1) for _ in range(3)], normals


def test_same_seed_same_draws_and_another_seed_others():
    with seeded(7):
        first = draws()
    draws()
    with seeded(7):
        again = draws()
    with seeded(8):
        other = draws()
    assert first == again
    assert all(mine != theirs for mine, theirs in zip(first, other, strict=True))


def test_the_caller_draws_as_if_nothing_had_happened():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    draws()
    expected = draws()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    draws()
    with seeded(7):
        draws()
    assert draws() == expected


def test_an_exception_restores_too():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = draws()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    with pytest.raises(ZeroDivisionError), seeded(7):
        draws()[0][0] / 0
    assert draws() == expected


def test_blocks_nest():
    with seeded(7):
        draws()
        expected = draws()
    with seeded(7):
        draws()
        with seeded(8):
            draws()
        assert draws() == expected


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_32_bit_seed_is_taken(seed):
    with seeded(seed):
        first = draws()
    with seeded(seed):
        assert draws() == first


def test_a_seed_that_is_too_large_is_refused_and_leaves_the_generators_alone():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="between 0 and"), seeded(2**32):
        pass
    assert torch.equal(torch.get_rng_state(), before)
