from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from unbroken.base.errors import CannotContinueError, ConfigError, StorageError
from unbroken.store import files
from unbroken.store.lock import RunLock
from unbroken.store.run import create_run, is_run, prepare_folder, read_run

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
    create_run(tmp_path, DOCUMENT)


def test_a_changed_run_file_is_refused(tmp_path: Path) -> None:
    create_run(tmp_path, DOCUMENT)
    path = tmp_path / "run.json"
    content = path.read_bytes()
    for changed in (b"", b"{", b"[]", b"null", content.replace(b"2e-05", b"3e-05"), content[:-3]):
        path.write_bytes(changed)
        with pytest.raises(CannotContinueError, match="damaged or was edited"):
            read_run(tmp_path)


def test_a_run_of_the_future_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("unbroken.store.run.FORMAT_VERSION", 2)
        create_run(tmp_path, DOCUMENT)
    with pytest.raises(CannotContinueError, match="format version 2"):
        read_run(tmp_path)


def test_people_can_read_it(tmp_path: Path) -> None:
    create_run(tmp_path, DOCUMENT)
    assert '"name": "ü"' in (tmp_path / "run.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run.json").read_text())["format"] == 1
