"""The safetensors format, written and read by hand: always the same bytes, and nothing read that was not written.

    8 bytes   length of the header, little endian
    header    JSON {"__metadata__": {"format": "pt"}, name: {"dtype", "shape", "data_offsets"}, ...}, padded
    data      the tensors, without gaps, widest types first, so that each is aligned to its own type

The order is the one the safetensors library writes. Reading puts each tensor into fresh torch storage: results of
matrix products depend on the address modulo 64, which a memory-mapped file does not give.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from unbroken.base.errors import CannotContinueError
from unbroken.store.files import DamagedError, FileRecord, opened, read_blocks, read_into

# Narrow to wide, in the order of the library's own enumeration: it decides where a tensor lies in the file.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
RANK = {name: rank for rank, name in enumerate(DTYPES)}
METADATA = {"format": "pt"}  # more than one key would be written in random order by the library
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_NUMBER = 1 << 48  # no real shape or file comes near; larger ones overflow the strides of an empty tensor
ALIGNMENT = 64


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in the data of its file: bytes `begin` to `end`, and what they mean."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class TensorFile:
    """What a file held: tensors by key in fresh aligned storage, and digests of the bytes they were read from."""

    tensors: dict[str, Tensor]
    digests: dict[str, str]
    record: FileRecord


def arrange(tensors: Mapping[str, Tensor]) -> list[Slot]:
    """Return the place of each tensor in a file that holds exactly these, in the order they lie there.

    Raises `TypeError` for a type the format has no word for.
    """
    named = [(key, dtype_name(tensor.dtype), tensor) for key, tensor in tensors.items()]
    slots, end = [], 0
    for key, dtype, tensor in sorted(named, key=lambda entry: (-RANK[entry[1]], entry[0])):
        begin, end = end, end + tensor.numel() * tensor.element_size()
        slots.append(Slot(key, dtype, tuple(tensor.shape), begin, end))
    return slots


def dtype_name(dtype: torch.dtype) -> str:
    """Return the format's word for a torch type. Raises `TypeError` if it has none."""
    if dtype not in DTYPE_NAMES:
        raise TypeError(f"tensors of {dtype} cannot be stored in the safetensors format")
    return DTYPE_NAMES[dtype]


def header(slots: Sequence[Slot]) -> bytes:
    """Return all that precedes the data: the length and the padded header, a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": METADATA}
    for slot in slots:
        assert slot.key not in entries, f"two tensors are named {slot.key!r}"
        entries[slot.key] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": (slot.begin, slot.end)}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_file(root: Path, relative: str) -> TensorFile:
    """Read a whole safetensors file, each tensor into storage of its own at an address divisible by 64.

    Raises `DamagedError` if the file is missing, cut, or does not describe each of its bytes exactly once.
    """
    path = root / relative
    whole = xxhash.xxh3_128()
    with opened(root, relative) as (handle, size):
        start = _read_header(handle, size, path)
        whole.update(start)
        tensors, digests = {}, {}
        for slot in parse_header(start[LENGTH_BYTES:], size - len(start), path):
            tensor, own = fresh(slot), xxhash.xxh3_128()
            for piece in read_into(handle, bytes_of(tensor), path):
                own.update(piece)
                whole.update(piece)
            tensors[slot.key], digests[slot.key] = tensor, own.hexdigest()
    return TensorFile(tensors, digests, FileRecord(size, whole.hexdigest()))


def fresh(slot: Slot) -> Tensor:
    """Return an uninitialised tensor of the slot's type and shape in its own storage, aligned to 64 bytes.

    Raises `CannotContinueError` where memory is short.
    """
    try:
        tensor = torch.empty(slot.shape, dtype=DTYPES[slot.dtype], device="cpu")
    except (RuntimeError, MemoryError):  # no damage: on a larger machine it may be read
        raise CannotContinueError(
            f"there is no memory for tensor {slot.key!r} of {slot.end - slot.begin:,} bytes",
            next_step="free some memory, or go on where there is more",
        ) from None
    assert tensor.data_ptr() % ALIGNMENT == 0, "torch no longer aligns its storage to 64 bytes"
    return tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU, writable, as bytes."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def parse_header(text: bytes, data_size: int, path: Path) -> list[Slot]:
    """Return the slots a header describes, in the order they lie in the file.

    They cover the `data_size` bytes exactly: no overlap, no gap, nothing outside. Raises `DamagedError` otherwise.
    """
    try:
        entries = json.loads(text, object_pairs_hook=_without_repeats)
        if not isinstance(entries, dict):
            raise ValueError("it is not an object")
        entries.pop("__metadata__", None)
        slots = sorted((_slot(key, entry) for key, entry in entries.items()), key=lambda slot: (slot.begin, slot.end))
    except (ValueError, TypeError, KeyError, RecursionError) as failure:
        raise DamagedError(f"{path}: the header is not that of a safetensors file: {failure}") from None
    reached = 0
    for slot in slots:
        if slot.begin != reached:
            raise DamagedError(f"{path}: tensor {slot.key!r} begins at byte {slot.begin} of the data, not {reached}")
        reached = slot.end
    if reached != data_size:
        raise DamagedError(f"{path}: the header describes {reached} bytes of data, the file holds {data_size}")
    return slots


def _read_header(handle: int, size: int, path: Path) -> bytes:
    """Return the length and the header, once the length is one this file can have."""
    if size < LENGTH_BYTES:
        raise DamagedError(f"{path} has {size} bytes: too short for a safetensors file")
    prefix = b"".join(map(bytes, read_blocks(handle, LENGTH_BYTES, path)))
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
        raise DamagedError(f"{path}: the header claims {length} bytes in a file of {size}")
    return prefix + b"".join(map(bytes, read_blocks(handle, length, path)))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _slot(key: str, entry: Any) -> Slot:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {key!r} is not described by dtype, shape and data_offsets")
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"tensor {key!r} has the type {dtype!r}, which is not supported")
    if any(type(number) is not int or not 0 <= number < MAX_NUMBER for number in (*shape, begin, end)):
        raise ValueError(f"tensor {key!r} has a shape or place that is no sensible number")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"tensor {key!r} of shape {shape} does not fit bytes {begin} to {end}")
    return Slot(key, dtype, tuple(shape), begin, end)
