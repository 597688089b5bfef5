from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from unbroken.base.errors import CannotContinueError, ConfigError, StorageError
from unbroken.store import files
from unbroken.store.lock import RunLock
from unbroken.store.run import create_run, is_run, mend_run, prepare_folder, read_run, run_problems

DOCUMENT = {"run_id": "x", "contract": {"learning_rate": 2e-5, "name": "ü"}}


def test_a_run_is_created_and_read(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "name"
    assert read_run(root) is None
    create_run(root, DOCUMENT)
    assert is_run(root)
    assert read_run(root) == DOCUMENT
    prepare_folder(root)
    with pytest.raises(ConfigError, match="already"):
        create_run(root, DOCUMENT)


def test_a_folder_of_someone_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("task: embed")
    for call in (lambda: prepare_folder(tmp_path), lambda: create_run(tmp_path, DOCUMENT)):
        with pytest.raises(ConfigError, match=r"holds files \(config.yaml\) but is no run; choose another folder"):
            call()
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_a_creation_cut_short_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path)
    with RunLock(tmp_path):
        files.replace_file(tmp_path / "data.digests", b"")
        files.replace_file(tmp_path / "config.yaml", b"")
        (tmp_path / ".tmp-run.json-0a1b").write_text("{")
        prepare_folder(tmp_path)
        create_run(tmp_path, DOCUMENT)
        assert read_run(tmp_path) == DOCUMENT
        assert not list(tmp_path.glob(".tmp-*"))


def test_a_file_in_the_way_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="output_dir cannot be used"):
            prepare_folder(root)
        assert read_run(root) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for root in (tmp_path, tmp_path / "run"):
        with pytest.raises(ConfigError, match="Permission denied"):
            prepare_folder(root)


def test_a_full_disk_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="No space left"):
            create_run(tmp_path, DOCUMENT)
    assert not is_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("unbroken.store.run.replace_file", only_the_first(files.replace_file))
        with pytest.raises(StorageError, match="No space left"):
            create_run(tmp_path, DOCUMENT)
    assert not is_run(tmp_path), "its copy alone would be one"
    create_run(tmp_path, DOCUMENT)


def only_the_first(original: Callable[..., None]) -> Callable[..., None]:
    calls: list[Path] = []

    def call(path: Path, *blocks: bytes) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise StorageError("No space left")
        original(path, *blocks)

    return call


def damaged(content: bytes) -> list[bytes]:
    return [b"", b"{", b"[]", b"null", content.replace(b"2e-05", b"3e-05"), content[:-3]]


def test_a_changed_run_file_is_refused_without_its_copy(tmp_path: Path) -> None:
    create_run(tmp_path, DOCUMENT)
    path, copy = tmp_path / "run.json", tmp_path / ".run.json"
    content = path.read_bytes()
    for copied in (content[1:], None):
        copy.write_bytes(copied) if copied else copy.unlink()
        for changed in damaged(content):
            path.write_bytes(changed)
            with pytest.raises(CannotContinueError, match=r"/run\.json is damaged or was edited; what this run is"):
                read_run(tmp_path)
    copy.write_bytes(content[1:])
    path.unlink()
    with pytest.raises(CannotContinueError, match=r"run\.json is missing, and its copy \.run\.json is damaged"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["run.json", ".run.json"])
def test_one_of_the_two_is_enough_and_mended(name: str, tmp_path: Path) -> None:
    create_run(tmp_path, DOCUMENT)
    path = tmp_path / name
    content = (tmp_path / "run.json").read_bytes()
    assert content == (tmp_path / ".run.json").read_bytes()
    assert run_problems(tmp_path) == mend_run(tmp_path) == []
    for number, changed in enumerate(damaged(content)):
        path.write_bytes(changed)
        assert is_run(tmp_path)
        assert read_run(tmp_path) == DOCUMENT
        assert [f"/{name} is" in text for text in run_problems(tmp_path)] == [True]
        assert path.read_bytes() == changed, "looking changes nothing"
        [note] = mend_run(tmp_path)
        assert note.startswith(f"{name} was")
        assert note.endswith(f"what was there is in .broken-run.json-{number}")
        assert (tmp_path / f".broken-run.json-{number}").read_bytes() == changed, "evidence was deleted"
        assert path.read_bytes() == content
        assert run_problems(tmp_path) == mend_run(tmp_path) == []


def test_one_that_is_missing_is_written_again(tmp_path: Path) -> None:
    create_run(tmp_path, DOCUMENT)
    path, copy = tmp_path / "run.json", tmp_path / ".run.json"
    content = path.read_bytes()
    path.unlink()
    assert is_run(tmp_path)
    assert read_run(tmp_path) == DOCUMENT
    assert "run.json is missing" in run_problems(tmp_path)[0]
    assert mend_run(tmp_path) == ["run.json was missing: put back from its copy"]
    copy.unlink()
    assert run_problems(tmp_path) == mend_run(tmp_path) == [], "an older run has none"
    assert path.read_bytes() == copy.read_bytes() == content
    assert not list(tmp_path.glob(".broken-*"))


@pytest.mark.parametrize("what", ["folder", "pipe", "link to itself", "link to nothing"])
def test_something_else_in_its_place(what: str, tmp_path: Path) -> None:
    create_run(tmp_path, DOCUMENT)
    path = tmp_path / "run.json"
    path.unlink()
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.symlink_to(path if what == "link to itself" else "nothing")
    assert read_run(tmp_path) == DOCUMENT
    [note] = mend_run(tmp_path)
    assert os.path.lexists(tmp_path / ".broken-run.json-0"), note
    assert read_run(tmp_path) == DOCUMENT
    assert path.is_file()


def test_the_document_counts_where_its_copy_is_another(tmp_path: Path) -> None:
    create_run(tmp_path / "run", DOCUMENT)
    create_run(tmp_path / "other", {**DOCUMENT, "run_id": "y"})
    strange = (tmp_path / "other" / "run.json").read_bytes()
    (tmp_path / "run" / ".run.json").write_bytes(strange)
    assert read_run(tmp_path / "run") == DOCUMENT
    assert len(mend_run(tmp_path / "run")) == 1
    (tmp_path / "run" / "run.json").unlink()
    assert read_run(tmp_path / "run") == DOCUMENT
    assert (tmp_path / "run" / ".broken-run.json-0").read_bytes() == strange


def test_a_copy_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_run(tmp_path, DOCUMENT)
    (tmp_path / ".run.json").unlink()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    [note] = mend_run(tmp_path)
    assert "could not be written" in note
    assert "No space left" in note
    (tmp_path / "run.json").rename(tmp_path / ".run.json")
    with pytest.raises(StorageError, match="No space left"):
        mend_run(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_run_file_that_may_not_be_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    create_run(tmp_path, DOCUMENT)
    (tmp_path / "run.json").chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        read_run(tmp_path)


def test_a_run_of_the_future_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("unbroken.store.run.FORMAT_VERSION", 2)
        create_run(tmp_path, DOCUMENT)
    for _ in range(2):
        with pytest.raises(CannotContinueError, match="format version 2"):
            read_run(tmp_path)
        (tmp_path / "run.json").unlink(missing_ok=True)  # its copy says the same


def test_people_can_read_it(tmp_path: Path) -> None:
    create_run(tmp_path, DOCUMENT)
    assert '"name": "ü"' in (tmp_path / "run.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run.json").read_text())["format"] == 1
