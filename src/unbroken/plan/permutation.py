"""A keyed shuffle that is a function of the position: any element of any order, without making the order.

All of it is our own arithmetic on uint64: numpy does not promise that its generators' streams stay as they are,
and an order that changed with a library update would break every run. `tests/golden/test_order.py` pins it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unbroken.base.seeds import MASK_32, derive

Words = NDArray[np.uint64]

ROUNDS = 8
# Narrower networks favour some orders of fewer than 8 examples (chi-squared over 20,000 keys, at 3 and 4 bits).
MIN_BITS = 6
# Up to here the whole network is evaluated at once and walked by look-up: small ranges are passed through many times.
TABLE_BITS = 8
# The multipliers of MurmurHash3's 64-bit finaliser (Appleby 2011): odd, so that no bit of the product is lost.
FIRST_MULTIPLIER = np.uint64(0xFF51AFD7ED558CCD)
SECOND_MULTIPLIER = np.uint64(0xC4CEB9FE1A85EC53)
# `seeds.chunk_seed`, for a whole array at once: shift and multiplier of each round, and the shift after them.
MIXER = ((np.uint32(16), np.uint32(0x7FEB352D)), (np.uint32(15), np.uint32(0x846CA68B)))
LAST_SHIFT = np.uint32(16)


def permute(key: int, positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return where a bijection of `range(size)` chosen by `key` sends each of `positions`.

    A Feistel network (Luby and Rackoff 1988) is a bijection of 2**bits values; a value outside the range is sent
    through again until it falls inside ("cycle walking", Black and Rogaway 2002), which makes a bijection of the
    range. Above 32 positions at most half of the values lie outside: two passes or fewer on average, at any
    size. Raises `ValueError` for a position outside the range.
    """
    if positions.size and not 0 <= positions.min() <= positions.max() < size:
        raise ValueError(f"positions must lie in range({size})")
    # bit_length, never ceil(log2(size)): floats round, and powers of two would lose or gain a bit.
    bits = max(MIN_BITS, (size - 1).bit_length())
    keys = [np.uint64(derive(key, "permutation", number)) for number in range(ROUNDS)]
    table = _feistel(np.arange(1 << bits, dtype=np.uint64), keys, bits) if bits <= TABLE_BITS else None
    values = _once(positions.astype(np.uint64), keys, bits, table)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        walked = _once(values[outside], keys, bits, table)
        values[outside] = walked
        outside = outside[walked >= size]
    return values.astype(np.int64)


def _once(values: Words, keys: list[np.uint64], bits: int, table: Words | None) -> Words:
    """Send each value through the network once, or look up where the network sends it."""
    return _feistel(values, keys, bits) if table is None else table[values]


def _feistel(values: Words, keys: list[np.uint64], bits: int) -> Words:
    """Permute `range(2**bits)`: each half in turn is xored with a hash of the other, which is its own inverse."""
    low = bits // 2
    left, right = values >> np.uint64(low), values & np.uint64((1 << low) - 1)
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        left ^= _hash(right, even, bits - low)
        right ^= _hash(left, odd, low)
    return left << np.uint64(low) | right


def _hash(half: Words, key: np.uint64, bits: int) -> Words:
    """Return `bits` well mixed bits of each value under `key`."""
    mixed = (half ^ key) * FIRST_MULTIPLIER
    mixed ^= mixed >> np.uint64(33)
    mixed *= SECOND_MULTIPLIER
    mixed >>= np.uint64(64 - bits)
    return mixed


def shuffled(key: int, size: int) -> list[int]:
    """Return `range(size)` in an order chosen by `key`: for a few dozen, several times faster than `permute`.

    Each place is sorted by its `chunk_seed`, which no other place of fewer than 2**32 shares, so no order is left to
    the sort.
    """
    places = np.arange(size, dtype=np.uint32)
    places ^= np.uint32(key & MASK_32)
    for shift, multiplier in MIXER:
        places ^= places >> shift
        places *= multiplier
    places ^= places >> LAST_SHIFT
    places += np.uint32(key >> 32 & MASK_32)
    order: list[int] = places.argsort(kind="stable").tolist()
    return order
