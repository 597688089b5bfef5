from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.base.seeds import chunk_seed, derive
from unbroken.plan.permutation import permute, shuffled

POWERS = [2**k + near for k in range(2, 18) for near in (-1, 0, 1)]


def order(key: int, size: int) -> list[int]:
    return [int(place) for place in permute(key, np.arange(size), size)]


def assert_bijection(key: int, size: int) -> None:
    assert np.array_equal(np.sort(permute(key, np.arange(size), size)), np.arange(size))


def plain_permute(key: int, position: int, size: int) -> int:
    """The same network on Python's integers, one position at a time."""
    bits = max(6, (size - 1).bit_length())
    low, value = bits // 2, position
    while True:
        left, right = value >> low, value % (1 << low)
        for number in range(8):
            half, width = (right, bits - low) if number % 2 == 0 else (left, low)
            mixed = (half ^ derive(key, "permutation", number)) * 0xFF51AFD7ED558CCD % 2**64
            mixed = (mixed ^ (mixed >> 33)) * 0xC4CEB9FE1A85EC53 % 2**64 >> (64 - width)
            left, right = (left ^ mixed, right) if number % 2 == 0 else (left, right ^ mixed)
        value = left << low | right
        if value < size:
            return value


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_numpy_and_plain_integers_agree(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 2**62))
    key, position = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, size - 1))
    assert permute(key, np.array([position]), size).tolist() == [plain_permute(key, position, size)]


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33, 64, 65, 129, 255, 256, 257])
def test_small_sizes_looked_up_in_a_table_agree_too(size: int) -> None:
    assert order(17, size) == [plain_permute(17, position, size) for position in range(size)]


@pytest.mark.parametrize("first", range(1, 601, 100))
def test_every_size_up_to_600_is_a_bijection(first: int) -> None:
    for size in range(first, first + 100):
        assert_bijection(size * 7919, size)


@pytest.mark.parametrize("size", POWERS)
def test_sizes_around_powers_of_two_are_bijections(size: int) -> None:
    assert_bijection(5, size)


@settings(max_examples=60, deadline=None)
@given(key=st.integers(0, 2**64 - 1), size=st.integers(1, 5000))
def test_every_key_is_a_bijection(key: int, size: int) -> None:
    assert_bijection(key, size)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_position_does_not_depend_on_the_others_asked_for(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 2**40))
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    together = permute(11, np.array(positions), size)
    alone = [int(permute(11, np.array([position]), size)[0]) for position in positions]
    assert together.tolist() == alone
    assert all(0 <= place < size for place in alone)


def test_huge_ranges_stay_inside_and_distinct() -> None:
    size = 2**61 - 1
    places = permute(3, np.arange(size - 2000, size), size)
    assert places.dtype == np.int64
    assert len(set(places.tolist())) == 2000
    assert 0 <= places.min() <= places.max() < size


def test_different_keys_give_different_orders() -> None:
    assert len({tuple(order(key, 50)) for key in range(300)}) == 300


@pytest.mark.parametrize("size", [2, 3, 5, 6, 7, 10, 33, 100])
def test_the_first_example_is_uniform_over_keys(size: int) -> None:
    num_keys = 1000
    firsts = [int(permute(key, np.array([0]), size)[0]) for key in range(num_keys)]
    expected = num_keys / size
    chi_squared = float(((np.bincount(firsts, minlength=size) - expected) ** 2 / expected).sum())
    freedom = size - 1
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.slow
def test_all_orders_of_five_examples_are_equally_likely() -> None:
    num_keys = 8000  # enough to see the bias that a network of 3 bits has here, the reason for MIN_BITS
    orders = Counter(tuple(order(key, 5)) for key in range(num_keys))
    expected = num_keys / 120
    assert len(orders) == 120
    assert sum((count - expected) ** 2 / expected for count in orders.values()) < 119 + 5 * math.sqrt(2 * 119)


def test_neighbours_do_not_stay_neighbours() -> None:
    places = permute(9, np.arange(100_000), 100_000)
    assert abs(float(np.corrcoef(places[:-1], places[1:])[0, 1])) < 0.02
    assert int((np.abs(np.diff(places)) == 1).sum()) < 20


def test_no_positions_give_no_places() -> None:
    assert permute(1, np.array([], dtype=np.int64), 10).tolist() == []


@pytest.mark.parametrize("position", [-1, 10])
def test_a_position_outside_the_range_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match=r"range\(10\)"):
        permute(1, np.array([0, position]), 10)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_a_small_order_is_that_of_chunk_seeds(key: int, size: int) -> None:
    assert shuffled(key, size) == sorted(range(size), key=lambda place: chunk_seed(key, place))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_small_order_is_favoured(size: int) -> None:
    keys = 12_000
    counts = Counter(tuple(shuffled(derive(number, "fair"), size)) for number in range(keys))
    orders = math.factorial(size)
    expected = keys / orders
    assert len(counts) == orders
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < orders - 1 + 5 * math.sqrt(2 * (orders - 1))  # five standard deviations above the mean
