"""Randomness as a function of where it is used, never of what was drawn before."""

from __future__ import annotations

import hashlib

MASK_32 = 0xFFFF_FFFF


def derive(seed: int, *path: str | int) -> int:
    """Return a 64-bit seed that depends on every part of `path` and on their order.

    Parts are hashed (BLAKE2b), never added: with `seed + epoch`, run 1 in epoch 1 would repeat run 2 in epoch 0.
    Each part is tagged with its type and length, so `("a", "b")` and `("ab",)` differ, and so do `1` and `"1"`.
    """
    state = hashlib.blake2b(digest_size=8, person=b"unbroken-seed")
    for part in (seed, *path):
        data = str(part).encode()
        state.update(b"%c%d:" % (b"s" if isinstance(part, str) else b"i", len(data)))
        state.update(data)
    return int.from_bytes(state.digest(), "little")


def chunk_seed(key: int, counter: int) -> int:
    """Return a 32-bit seed for draw number `counter` under `key`; counters below 2**32 never share one.

    torch's CPU generator keeps 32 bits of a seed. Hashing counters into so few bits would collide after some
    65,000 draws (birthday bound); this is a bijection of the counter instead: xor and add key bits around the
    invertible 32-bit mixer of Chris Wellons' hash-prospector ("lowbias32").
    """
    x = (counter ^ key) & MASK_32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK_32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK_32
    x ^= x >> 16
    return (x + (key >> 32)) & MASK_32
