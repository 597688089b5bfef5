"""An output that grows batch by batch: what stands after any cut, who may add to it, and on what terms."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from unbroken.base.errors import BusyError, CannotContinueError, ConfigError, StorageError
from unbroken.store import files, output
from unbroken.store.output import GrowingOutput

TERMS = {"model": "0123456789abcdef0123456789abcdef", "keep": False}
HERE = {"threads": 2}
BATCHES = [(f'{{"a":"Ü{n}"}}\n'.encode() * (n + 1), n + 1) for n in range(4)]
WHOLE = b"".join(lines for lines, _ in BATCHES)


def grow(path: Path, upto: int = len(BATCHES)) -> GrowingOutput:
    """Go on as a command does: what stands is not made again."""
    growing = GrowingOutput(path, TERMS, HERE)
    for lines, rows in BATCHES[growing.batches : upto]:
        growing.append(lines, rows)
    return growing


def test_the_file_is_there_whole_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with grow(out) as growing:
        assert not out.exists()
        assert (growing.batches, growing.rows) == (4, 10)
        growing.publish()
    assert out.read_bytes() == WHOLE
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_cut_at_every_byte_it_goes_on_to_the_same_file(tmp_path: Path) -> None:
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    grow(out).close()
    content = partial.read_bytes()
    stood = set()

    for size in range(len(content) + 1):
        partial.write_bytes(content[:size])
        with GrowingOutput(out, TERMS, HERE) as growing:
            assert growing.rows == sum(rows for _, rows in BATCHES[: growing.batches])
            stood.add(growing.batches)
        with grow(out) as growing:
            growing.publish()
        assert out.read_bytes() == WHOLE
        out.unlink()
    assert stood == {0, 1, 2, 3, 4}


def test_a_flipped_bit_costs_the_batches_from_there_on(tmp_path: Path) -> None:
    """Control: the damage is in what would have been published."""
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    grow(out).close()
    content = bytearray(partial.read_bytes())
    first = content.index(b"\n") + 1
    for place in range(first, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= 1
        partial.write_bytes(damaged)
        with GrowingOutput(out, TERMS, HERE) as growing:
            assert growing.batches == content[first:place].count(b"\n")
        with grow(out) as growing:
            growing.publish()
        assert out.read_bytes() == WHOLE


def test_a_lost_or_repeated_batch_does_not_count(tmp_path: Path) -> None:
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    grow(out).close()
    head, *lines = partial.read_bytes().splitlines(keepends=True)
    for kept, stands in (([0, 2, 3], 1), ([0, 0, 1, 2, 3], 1), ([1, 2, 3], 0), ([0, 1, 2, 3, 3], 4)):
        partial.write_bytes(b"".join([head, *(lines[n] for n in kept)]))
        with GrowingOutput(out, TERMS, HERE) as growing:
            assert growing.batches == stands


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        (TERMS | {"keep": True}, "keep False, not True"),
        (TERMS | {"model": "f" * 32}, "the model changed"),
        (TERMS | {"threads": 2}, "threads None, not 2"),
    ],
)
def test_other_terms_are_refused_and_nothing_changes(terms: dict[str, object], told: str, tmp_path: Path) -> None:
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    grow(out, 2).close()
    content = partial.read_bytes()
    with pytest.raises(CannotContinueError, match=told) as refusal:
        GrowingOutput(out, terms, HERE)
    assert f"delete {partial}" in str(refusal.value)
    assert partial.read_bytes() == content
    with grow(out) as growing:
        growing.publish()
    assert out.read_bytes() == WHOLE


def test_one_process_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with grow(out, 1), pytest.raises(BusyError, match="another process"):
        GrowingOutput(out, TERMS, HERE)
    with grow(out) as growing:
        assert growing.batches == 4


def test_what_was_removed_while_waiting_for_it_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process publishes between our opening the file and our locking it."""
    out, first, open_append = tmp_path / "out.jsonl", [], files.open_append

    def opened(path: Path) -> int:
        handle = open_append(path)
        if not first:
            first.append(handle)
            os.unlink(path)
        return handle

    monkeypatch.setattr(output.files, "open_append", opened)
    with grow(out) as growing:
        assert growing.path.exists()
        growing.publish()
    assert out.read_bytes() == WHOLE
    assert first


@pytest.mark.parametrize("content", [b"my notes\n", b'{"answer": "yes"}\n{"answer": "no"}\n'])
def test_a_file_that_is_not_ours_is_left_alone(content: bytes, tmp_path: Path) -> None:
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    partial.write_bytes(content)
    with pytest.raises(ConfigError, match="move or delete"):
        GrowingOutput(out, TERMS, HERE)
    assert partial.read_bytes() == content
    partial.unlink()
    partial.mkdir()
    with pytest.raises(ConfigError, match="is no file"):
        GrowingOutput(out, TERMS, HERE)


def test_a_full_disk_loses_nothing_that_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    growing = grow(out, 2)

    def full(handle: int, data: memoryview) -> None:
        os.write(handle, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(output.files, "write_fully", full)
        with pytest.raises(StorageError, match="free some space"):
            growing.append(*BATCHES[2])
    growing.close()
    with grow(out) as growing:
        growing.publish()
    assert out.read_bytes() == WHOLE


def test_an_older_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"older\n")
    with grow(out) as growing:
        assert out.read_bytes() == b"older\n"
        growing.publish()
    assert out.read_bytes() == WHOLE


def test_it_knows_where_it_was_begun_and_how_it_last_went_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    grow(out, 3).close()
    with GrowingOutput(out, TERMS, {"threads": 8}) as growing:
        assert (growing.surroundings, growing.last) == (HERE, BATCHES[2][0])
