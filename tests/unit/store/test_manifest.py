from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.base.errors import CannotContinueError
from unbroken.base.fingerprint import canonical, digest
from unbroken.store.files import DamagedError, FileRecord
from unbroken.store.journal import Mark
from unbroken.store.manifest import Manifest, TensorRecord, decode, stays_inside

MANIFEST = Manifest(
    "a-run",
    7,
    {"model/model.safetensors": FileRecord(64, "a" * 32), "state.json": FileRecord(2, "b" * 32)},
    {
        "w": TensorRecord("model/model.safetensors", "w", "F32", (2, 3), "c" * 32),
        "s": TensorRecord("state.json", "s", "F32", (), "d" * 32),
    },
    Mark(10, "e" * 32),
)


def forged(**changes: Any) -> bytes:
    """A manifest that is changed and then signed anew, as only a person would."""
    body = json.loads(MANIFEST.encode())
    del body["digest"]
    body.update(changes)
    return canonical({**body, "digest": digest(canonical(body))}) + b"\n"


def test_a_manifest_comes_back() -> None:
    assert decode(MANIFEST.encode(), "M") == MANIFEST


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_no_byte_of_it_may_change(data: st.DataObject) -> None:
    content = bytearray(MANIFEST.encode())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedError):
        decode(bytes(content), "M")


def test_cut_anywhere_it_is_damaged() -> None:
    content = MANIFEST.encode()
    for size in range(len(content)):
        with pytest.raises(DamagedError):
            decode(content[:size], "M")


def test_a_format_of_the_future_is_not_damage() -> None:
    with pytest.raises(CannotContinueError, match="format version 2") as caught:
        decode(forged(format=2), "M")
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "7"},
        {"step": None},
        {"files": []},
        {"files": {"state.json": {"size": "2", "digest": ""}}},
        {"files": {"../state.json": {"size": 2, "digest": ""}}, "tensors": {}},
        {"files": {"/etc/passwd": {"size": 2, "digest": ""}}, "tensors": {}},
        {"files": {}},
        {"more": 1},
        {"journal": {"offset": 1}},
    ],
)
def test_forgeries_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DamagedError):
        decode(forged(**changes), "M")


@pytest.mark.parametrize("path", ["a", "model/a.json", "a b/ü.json", "..a/b.."])
def test_paths_that_stay_inside(path: str) -> None:
    assert stays_inside(path)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../a", "a/../b", "/a", "//a", "a//b", "a/", "./a", "a\0b", "MANIFEST.json"]
)
def test_paths_that_do_not(path: str) -> None:
    assert not stays_inside(path)


def test_content_is_the_same_whenever_it_was_made() -> None:
    assert MANIFEST.same_content(replace(MANIFEST, journal=Mark(0, "")))
    assert not MANIFEST.same_content(replace(MANIFEST, step=8))
