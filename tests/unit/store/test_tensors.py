from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import Tensor

from unbroken.store.files import DamagedError
from unbroken.store.tensors import DTYPES, METADATA, arrange, bytes_of, header, parse_header, read_file

PLACE = Path("x.safetensors")


def encode(tensors: dict[str, Tensor]) -> bytes:
    slots = arrange(tensors)
    return header(slots) + b"".join(bytes(bytes_of(tensors[slot.key].contiguous())) for slot in slots)


def make(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return raw.view(-1).view(dtype).view(shape) if raw.numel() else torch.empty(shape, dtype=dtype)


tensor_sets = st.dictionaries(
    st.text(max_size=12).filter(lambda key: key != "__metadata__"),
    st.builds(
        make,
        st.sampled_from(list(DTYPES.values())),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.integers(0, 1000),
    ),
    max_size=8,
)


@given(tensor_sets)
@settings(max_examples=150, deadline=None)
def test_the_bytes_are_those_of_the_library(tensors: dict[str, Tensor]) -> None:
    assert encode(tensors) == save({key: t.contiguous() for key, t in tensors.items()}, metadata=METADATA)


@given(tensors=tensor_sets)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> None:
    folder = tmp_path_factory.mktemp("tensors")
    (folder / PLACE).write_bytes(encode(tensors))
    content = read_file(folder, str(PLACE))
    assert content.tensors.keys() == tensors.keys() == load_file(folder / PLACE).keys()
    for key, tensor in tensors.items():
        found = content.tensors[key]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert bytes(bytes_of(found)) == bytes(bytes_of(tensor.contiguous()))
        assert found.data_ptr() % 64 == 0


def test_every_tensor_has_storage_of_its_own(tmp_path: Path) -> None:
    (tmp_path / PLACE).write_bytes(encode({"a": torch.ones(3), "b": torch.ones(3)}))
    found = read_file(tmp_path, str(PLACE)).tensors
    found["a"].zero_()
    assert found["b"].sum() == 3


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="complex64"):
        arrange({"a": torch.ones(2, dtype=torch.complex64)})


def entry(shape: Any = (2,), begin: Any = 0, end: Any = 8, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, Any] = {
    "not JSON": b"{",
    "not UTF-8": b'{"\xff": 1}',
    "not an object": [1],
    "no object inside": {"a": 1},
    "missing shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "one key more": {"a": {**entry(), "more": 1}},
    "unknown type": {"a": entry(dtype="F33")},
    "type of no kind": {"a": entry(dtype=["F32"])},
    "negative": {"a": entry(shape=(-2,), end=-8)},
    "fraction": {"a": entry(shape=(2.0,))},
    "truth": {"a": entry(shape=(2, True))},
    "shape of no kind": {"a": entry(shape=5)},
    "three offsets": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}},
    "size and shape differ": {"a": entry(shape=(3,))},
    "huge and empty": {"a": entry(), "b": entry(shape=(1 << 62, 0), begin=8)},
    "huge number": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}',
    "overlap": {"a": entry(), "b": entry(begin=4, end=12)},
    "the same bytes twice": {"a": entry(), "b": entry()},
    "hole": {"a": entry(shape=(1,), end=4), "b": entry(shape=(1,), begin=8, end=12)},
    "starts late": {"a": entry(shape=(1,), begin=4, end=8)},
    "too little": {"a": entry(shape=(1,), end=4)},
    "too much": {"a": entry(shape=(4,), end=16)},
    "a name twice": b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2),
    "deep": b"[" * 100_000 + b"]" * 100_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused(kind: str) -> None:
    text = HOSTILE[kind] if isinstance(HOSTILE[kind], bytes) else json.dumps(HOSTILE[kind]).encode()
    with pytest.raises(DamagedError):
        parse_header(text, 8, PLACE)


def test_a_sound_header_is_accepted() -> None:
    [slot] = parse_header(json.dumps({"a": entry()}).encode(), 8, PLACE)
    assert (slot.key, slot.shape, slot.begin, slot.end) == ("a", (2,), 0, 8)


@pytest.mark.parametrize("length", [1 << 63, 1 << 40, 200_000_000, 17])
def test_a_header_longer_than_the_file_is_never_read(tmp_path: Path, length: int) -> None:
    (tmp_path / PLACE).write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 14)
    with pytest.raises(DamagedError, match="claims"):
        read_file(tmp_path, str(PLACE))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = encode({"a": torch.arange(4), "b": torch.ones(2, 2)})
    for size in range(len(whole)):
        (tmp_path / PLACE).write_bytes(whole[:size])
        with pytest.raises(DamagedError):
            read_file(tmp_path, str(PLACE))


@given(data=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_do_no_harm(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / PLACE).write_bytes(data)
    with suppress(DamagedError):
        assert encode(read_file(folder, str(PLACE)).tensors)
