from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.base.errors import StorageError
from unbroken.base.fingerprint import canonical
from unbroken.store.journal import START, Journal, Mark, decode_line, encode_record, read_records

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(st.text().filter(lambda key: key != "sum"), values, min_size=1, max_size=4)


def filled(path: Path, count: int = 5) -> list[dict[str, Any]]:
    journal = Journal(path)
    written = [{"kind": "step", "n": n, "loss": 0.1 * n} for n in range(count)]
    for record in written:
        journal.append(record)
    journal.close()
    return written


@given(records)
@settings(deadline=None)
def test_a_record_comes_back_to_the_bit(record: dict[str, Any]) -> None:
    line = encode_record(record)
    assert line.endswith(b'"}\n')
    assert line.count(b"\n") == 1
    found = decode_line(line)
    assert found is not None
    assert canonical(found) == canonical(record)


@pytest.mark.parametrize("record", [{}, {"sum": 1}, {"loss": float("nan")}, {"loss": float("inf")}])
def test_what_a_line_cannot_hold_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        encode_record(record)


@given(records, st.data())
@settings(deadline=None, max_examples=300)
def test_a_line_with_another_byte_is_no_record(record: dict[str, Any], data: st.DataObject) -> None:
    line = bytearray(encode_record(record))
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    assert decode_line(bytes(line)) is None


def test_an_append_is_one_write_of_a_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, writes, write = Journal(tmp_path / "j"), [], os.write
    monkeypatch.setattr(os, "write", lambda handle, data: writes.append(bytes(data)) or write(handle, data))
    journal.append({"n": 1})
    assert writes == [encode_record({"n": 1})]
    assert (tmp_path / "j").read_bytes() == writes[0]  # nothing waits in this process


@given(cut=st.integers(0, 400))
@settings(deadline=None, max_examples=100)
def test_cut_anywhere_the_whole_lines_before_it_stand(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "j"
    written = filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    journal = Journal(path)
    lines = whole[:cut].count(b"\n")
    assert list(journal.records()) == written[:lines]
    torn = whole[:cut][whole[:cut].rfind(b"\n") + 1 :]
    kept = list(path.parent.glob("journal.torn-*"))
    assert [file.read_bytes() for file in kept] == ([torn] if torn else [])
    assert len(journal.damaged) == len(kept)
    journal.append({"kind": "more"})
    assert list(journal.records()) == [*written[:lines], {"kind": "more"}]


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(deadline=None, max_examples=300)
def test_no_flipped_byte_makes_a_wrong_record(tmp_path_factory: pytest.TempPathFactory, place: int, flip: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "j"
    written = filled(path)
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place] ^= flip
    path.write_bytes(content)
    before = bytes(content[:place]).count(b"\n")
    journal = Journal(path)
    found = list(journal.records())
    assert found[:before] == written[:before]
    assert all(record in written for record in found)
    assert len(found) < len(written)
    assert journal.damaged


def test_torn_tails_are_kept_one_by_one(tmp_path: Path) -> None:
    filled(tmp_path / "j", 1)
    for text in (b"one", b"two"):
        with (tmp_path / "j").open("ab") as file:
            file.write(text)
        Journal(tmp_path / "j")
    assert (tmp_path / "journal.torn-0").read_bytes() == b"one"
    assert (tmp_path / "journal.torn-1").read_bytes() == b"two"


def test_a_tail_of_zeros_longer_than_a_block_is_cut(tmp_path: Path) -> None:
    written = filled(tmp_path / "j")
    with (tmp_path / "j").open("ab") as file:
        file.write(bytes(200_000))
    assert list(Journal(tmp_path / "j").records()) == written


def test_records_after_a_mark(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert journal.mark() == START
    journal.append({"n": 1})
    mark = journal.mark()
    journal.append({"n": 2})
    journal.append({"n": 3})
    assert list(journal.records(mark)) == [{"n": 2}, {"n": 3}]
    assert list(journal.records(journal.mark())) == []


def test_each_record_comes_with_the_mark_behind_it(tmp_path: Path) -> None:
    journal, marks = Journal(tmp_path / "j"), []
    for n in range(4):
        journal.append({"n": n})
        marks.append(journal.mark())
    assert [mark for _, mark in journal.marked_records()] == marks
    assert [mark for _, mark in Journal(tmp_path / "j").marked_records(marks[1])] == marks[2:]


@pytest.mark.parametrize("believed", [None, 0, 2])
def test_the_chain_is_the_same_however_it_was_reached(tmp_path: Path, believed: int | None) -> None:
    whole, marks = Journal(tmp_path / "whole"), []
    for n in range(5):
        whole.append({"n": n})
        marks.append(whole.mark())
    (tmp_path / "part").write_bytes((tmp_path / "whole").read_bytes()[: marks[3].offset])
    again = Journal(tmp_path / "part")
    if believed is not None:
        again.records(marks[believed])
    again.append({"n": 4})
    assert again.mark() == marks[4]


def test_the_tail_is_read_without_what_precedes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append({"n": 1, "text": "x" * 1_000_000})
    mark = journal.mark()
    journal.append({"n": 2})
    content = path.read_bytes()
    path.write_bytes(b"\0" * (mark.offset - 1) + content[mark.offset - 1 :])  # what precedes the mark is unreadable
    again = Journal(path)
    assert list(again.records(mark)) == [{"n": 2}]
    assert again.mark() == journal.mark()
    assert again.damaged == []


@pytest.mark.parametrize("offset", [5, 100_000])
def test_a_mark_that_is_no_place_here_is_named(tmp_path: Path, offset: int) -> None:
    written = filled(tmp_path / "j")
    journal = Journal(tmp_path / "j")
    found = list(journal.records(Mark(offset, "0" * 32)))
    assert found == (written[1:] if offset == 5 else [])
    assert f"byte {offset}" in journal.damaged[0]
    assert list(journal.records()) == written


def test_proof_covers_all_that_precedes_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal, marks = Journal(path), [START]
    for n in range(3):
        journal.append({"n": n})
        marks.append(journal.mark())
    assert all(journal.proves(mark) for mark in marks)
    assert not journal.proves(Mark(marks[1].offset, marks[2].chain))
    content = bytearray(path.read_bytes())
    content[marks[1].offset + 3] ^= 1
    path.write_bytes(content)
    assert [journal.proves(mark) for mark in marks] == [True, True, False, False]


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written = filled(path)
    with path.open("ab") as file:
        file.write(b'{"unfinished')
    content = path.read_bytes()
    assert list(read_records(path)) == written
    assert path.read_bytes() == content


def test_a_failed_append_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    journal, write = Journal(path), os.write
    journal.append({"n": 1})
    with monkeypatch.context() as patch:
        calls = iter([lambda handle, data: write(handle, data[:4])])

        def half(handle: int, data: memoryview) -> int:
            for call in calls:
                return call(handle, data)
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "write", half)
        with pytest.raises(StorageError, match="No space left"):
            journal.append({"n": 2})
    assert list(journal.records()) == [{"n": 1}]
    journal.append({"n": 3})
    assert list(journal.records()) == [{"n": 1}, {"n": 3}]
    assert journal.proves(journal.mark())


def test_after_a_failed_sync_the_records_move_to_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append({"n": 1})
    old = path.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(StorageError, match="Input/output error"):
            journal.sync()
    journal.append({"n": 2})
    journal.sync()
    assert path.stat().st_ino != old
    journal.append({"n": 3})
    journal.sync()
    assert list(journal.records()) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert journal.proves(journal.mark())
