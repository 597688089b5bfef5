"""Stable digests of bytes, files and JSON values, for finding out whether something changed.

XXH3-128 runs at about 10 GB/s, so verifying a checkpoint costs less than reading it. It guards against accidents,
not against forgers; where an identity leaves the machine (the finished model) SHA-256 is given as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from unbroken.base.reading import open_regular
from unbroken.base.stopping import poll

BLOCK_BYTES = 1 << 20


def canonical(value: Any) -> bytes:
    """Encode a JSON value so that equal values have equal bytes: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def json_number(value: float) -> float | str:
    """Return a float as JSON can hold it: NaN and infinities as words (`float` reads them back), all others exactly."""
    return value if math.isfinite(value) else str(value)


def digest(data: bytes | memoryview) -> str:
    """Return the XXH3-128 digest of `data` as 32 hexadecimal digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def digest_blocks(blocks: Iterable[bytes | memoryview]) -> str:
    """Return the digest of the concatenation of `blocks`."""
    state = xxhash.xxh3_128()
    for block in blocks:
        poll()
        state.update(block)
    return str(state.hexdigest())


def digest_file(path: Path) -> str:
    """Return the digest of a file's content. Raises `OSError` as `open_regular` and `read` do."""
    with open_regular(path) as file:
        return digest_blocks(iter(lambda: file.read(BLOCK_BYTES), b""))


def short_digest(data: bytes) -> int:
    """Return the 64-bit XXH3 digest of `data`: 8 bytes, for one row of a dataset."""
    return int(xxhash.xxh3_64_intdigest(data))
