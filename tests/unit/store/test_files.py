from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unbroken.base.errors import StorageError
from unbroken.base.fingerprint import digest
from unbroken.store import files
from unbroken.store.arrays import replace_array


def failing(number: int, after: int = 0) -> Callable[..., Any]:
    calls = iter(range(1_000_000))

    def fail(*arguments: Any) -> Any:
        if next(calls) < after:
            return None
        raise OSError(number, os.strerror(number))

    return fail


def test_a_created_file_holds_the_blocks_and_its_record_says_so(tmp_path: Path) -> None:
    record = files.create_file(tmp_path / "f", [b"ab", memoryview(b"cd")], size=4)
    assert (tmp_path / "f").read_bytes() == b"abcd"
    assert record == files.FileRecord(4, digest(b"abcd"))
    assert files.digest_file(tmp_path, "f") == record


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
    files.create_file(tmp_path / "f", [b"0123456789"])
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(StorageError, match="File exists"):
        files.create_file(tmp_path / "f", [b"new"])
    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize("call", ["write", "fsync", "close", "posix_fallocate"])
def test_every_refusal_is_one_line_with_place_cause_and_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(StorageError) as caught:
        files.create_file(tmp_path / "f", [b"x"], size=1)
    assert str(tmp_path / "f") in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "free some space" in caught.value.next_step
    assert caught.value.exit_code == 1


def test_a_failed_sync_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(handle: int) -> None:
        calls.append(handle)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError):
        files.create_file(tmp_path / "f", [b"x"])
    assert len(calls) == 1


def test_space_that_cannot_be_reserved_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    assert files.create_file(tmp_path / "f", [b"x"], size=1).size == 1


def test_a_file_system_that_cannot_sync_folders_is_tolerated_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    with pytest.warns(UserWarning, match="power loss"):
        files.sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(StorageError):
        files.sync_folder(tmp_path)


@pytest.mark.parametrize("native", [True, False])
def test_renaming_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    if not native:
        monkeypatch.setattr(files, "_rename_no_replace", lambda source, target: None)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert not files.rename_new(tmp_path / "a", tmp_path / "b")
    assert files.rename_new(tmp_path / "a", tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]
    with pytest.raises(StorageError, match="No such file"):
        files.rename_new(tmp_path / "a", tmp_path / "d")


def test_setting_aside_finds_a_free_name(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "x").mkdir()
        assert files.set_aside(tmp_path / "x", ".broken-") == tmp_path / f".broken-x-{number}"


def test_a_replaced_file_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    files.replace_file(path, b"old")
    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(errno.EIO))
            with pytest.raises(StorageError):
                files.replace_file(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["f"]
    files.replace_file(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype="<u8").reshape(2, 3), np.float32(2.5) * np.ones(()), np.empty((0, 3)), np.eye(3).T[::2]],
)
def test_a_replaced_array_is_what_numpy_reads(tmp_path: Path, array: Any) -> None:
    replace_array(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)


def test_missing_ancestors_are_made(tmp_path: Path) -> None:
    files.make_folders(tmp_path / "a" / "b" / "c")
    files.make_folders(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_sweeping_removes_leftovers_only(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1" / "deep").mkdir(parents=True)
    (tmp_path / ".trash-2").write_text("")
    (tmp_path / ".broken-3").mkdir()
    (tmp_path / "notes").mkdir()
    assert files.sweep(tmp_path, (".tmp-", ".trash-")) == []
    assert sorted(os.listdir(tmp_path)) == [".broken-3", "notes"]
    assert files.sweep(tmp_path / "nowhere", (".tmp-",)) == []


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".trash-2").mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", failing(errno.EACCES))
    assert ".trash-2: Permission denied" in files.sweep(tmp_path, (".trash-",))[0]


def test_reading_follows_no_link_and_waits_on_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_bytes(b"x")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "file").symlink_to("real/f")
    os.mkfifo(tmp_path / "pipe")
    for path in ("folder/f", "file", "pipe", "real", "nothing", "real/f/x"):
        with pytest.raises(files.DamagedError):
            files.read_whole(tmp_path, path)
    assert files.read_whole(tmp_path, "real/f") == b"x"


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, files.DamagedError), (errno.EMFILE, StorageError)])
def test_a_bad_file_is_told_from_a_bad_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setattr(os, "readv", failing(number))
    with pytest.raises(error):
        files.read_whole(tmp_path, "f")


def test_free_space_is_known(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path) > 0
    inodes = files.free_inodes(tmp_path)
    assert inodes is None or inodes > 0


@pytest.mark.parametrize("can_exchange", [True, False])
def test_taking_a_place_keeps_what_was_there(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    for name in ("new", "place", ".broken-place-0"):
        (tmp_path / name).write_text(name)
    aside = files.take_place(tmp_path / "new", tmp_path / "place", ".broken-")
    assert aside.name == ".broken-place-1"
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"place": "new", ".broken-place-0": ".broken-place-0", ".broken-place-1": "place"}


def test_a_place_that_cannot_be_taken_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(one: Path, other: Path) -> bool:
        raise StorageError("no luck")

    monkeypatch.setattr(files, "exchange", fail)
    for name in ("new", "place"):
        (tmp_path / name).write_text(name)
    with pytest.raises(StorageError, match="no luck"):
        files.take_place(tmp_path / "new", tmp_path / "place", ".broken-")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new": "new", "place": "place"}
