"""Bins of tokens and the batches made of them, pinned to the bit: what `test_order.py` says of orders holds here.

New bins or draws need a new `packing.ORDER`. Never paste new values in to make a test pass.
"""

from __future__ import annotations

import numpy as np
import pytest

from unbroken.plan import packing
from unbroken.plan.packing import Packed, fill_bins

LENGTHS = np.array([7, 3, 9, 4, 4, 1, 12, 6, 5, 2, 8, 3])
MEMBERS = [6, 1, 2, 3, 10, 0, 8, 4, 7, 9, 5, 11]
STARTS = [0, 1, 3, 5, 7, 10, 12]
BATCHES = {
    0: (0, [5, 11, 0, 8]),
    1: (0, [1, 2, 4, 7, 9]),
    2: (0, [6, 3, 10]),
    3: (1, [5, 11, 3, 10]),
    10**9: (333333333, [1, 2, 5, 11]),
}


def test_the_name_of_the_order() -> None:
    assert packing.ORDER == "bins-1"


def test_bins() -> None:
    bins = fill_bins(LENGTHS, 12)
    assert (bins.members.tolist(), bins.starts.tolist()) == (MEMBERS, STARTS)


@pytest.mark.parametrize("step", BATCHES)
def test_batches(step: int) -> None:
    bins = fill_bins(LENGTHS, 12)
    drawn = Packed(len(bins), 2, seed=5, bins=bins).draw(step)
    assert (drawn.epoch, drawn.ids.tolist()) == BATCHES[step]
