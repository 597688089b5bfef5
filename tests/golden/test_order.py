"""The order of examples and the digests of rows, pinned to the bit.

These values may change only together with the name that stands for them: a new order needs a new `plan.ORDER`, and
new row digests a new format version of the run directory; both make older runs refuse to continue instead of going
on with other examples. A test that fails for any other reason has found a defect: never paste the new values in.
"""

from __future__ import annotations

import numpy as np
import pytest

from unbroken.plan.permutation import permute
from unbroken.plan.plan import ORDER, Plan
from unbroken.plan.source import content_digest, read_rows

WHOLE_ORDERS = {
    (0, 1): [0],
    (0, 2): [0, 1],
    (0, 10): [4, 8, 0, 2, 3, 9, 7, 1, 5, 6],
    (1, 10): [1, 3, 2, 0, 9, 4, 7, 5, 8, 6],
    (2**64 - 1, 17): [5, 13, 7, 0, 4, 14, 8, 12, 16, 6, 10, 3, 15, 9, 2, 11, 1],
}
BEGINNINGS = {
    (7, 64): [50, 20, 55, 1, 48, 12],
    (0, 1_000_003): [351386, 214417, 139756, 324378, 464445, 28036],
    (2**63, 10**7): [2779866, 9945147, 5522638, 2038446, 1480880, 4913027],
    (1, 2**40): [265153727309, 384494303088, 770097365735, 154967497200, 1045630669651, 544378764315],
}
DRAWS = [(0, [3, 6, 9, 8]), (0, [0, 7, 1, 5]), (0, [4, 2]), (1, [0, 8, 3, 2]), (1, [6, 7, 4, 5]), (1, [1, 9])]


@pytest.mark.parametrize(("key", "size"), WHOLE_ORDERS)
def test_whole_orders(key: int, size: int) -> None:
    assert permute(key, np.arange(size), size).tolist() == WHOLE_ORDERS[key, size]


@pytest.mark.parametrize(("key", "size"), BEGINNINGS)
def test_beginnings_of_long_orders(key: int, size: int) -> None:
    assert permute(key, np.arange(6), size).tolist() == BEGINNINGS[key, size]


def test_draws_of_a_plan() -> None:
    draws = [Plan(10, 4, seed=42).draw(step) for step in range(6)]
    assert [(draw.epoch, draw.ids.tolist()) for draw in draws] == DRAWS


def test_a_draw_in_the_middle_of_a_long_run() -> None:
    ids = Plan(10_000_000, 8, seed=42).draw(3_000_000).ids.tolist()
    assert ids == [171828, 2536531, 6559835, 8281388, 5519342, 616389, 7338759, 9540158]


def test_the_name_of_the_order() -> None:
    assert ORDER == "feistel-8"


def test_digests_of_rows() -> None:
    table = read_rows(
        [
            {"text": 'Grüße, "Welt"', "n": 1},
            {"text": "日本語\n🎈", "n": None},
            {"text": "", "n": [0.5, {"b": True, "a": "x"}]},
        ]
    )
    digests = table.digests(["text", "n"])
    assert digests.tolist() == [4399612275376810882, 7995224048247563304, 17809749966249618287]
    assert content_digest(digests) == "4808cd4c1b39668e0b7079201b12a949"
