"""The places a mirror may lie at, without a run: addresses, and a journal in pieces that no loss leaves torn."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from unbroken.base.errors import CannotContinueError, ConfigError, StorageError
from unbroken.store import place, url_place
from unbroken.store.mirror import belongs
from unbroken.store.place import FolderPlace, open_place


def test_a_long_journal_goes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent once is not sent again, but for the last piece."""
    for module in (place, url_place):
        monkeypatch.setattr(module, "PIECE_BYTES", 100)
    source, there = tmp_path / "journal.jsonl", url_place.UrlPlace(f"local://{tmp_path}/objects")
    content = b"".join(b"%08d\n" % number for number in range(200))
    written: list[str] = []
    real = url_place.UrlPlace._write
    monkeypatch.setattr(
        url_place.UrlPlace, "_write", lambda self, path, blocks: (written.append(path), real(self, path, blocks))[1]
    )
    for end in (9, 90, 126, 900, 1800):
        source.write_bytes(content[:end])
        there.extend_journal(source, there.journal_end(source), end)
        assert b"".join(map(bytes, there.journal_blocks())) == content[:end]
    assert len(written) <= 1800 // 100 + 5
    source.write_bytes(content[9:])  # another journal: all of it is replaced
    assert there.journal_end(source) == 0
    aside = there.extend_journal(source, 0, len(content) - 9)
    assert b"".join(map(bytes, there.journal_blocks())) == content[9:]
    kept = sorted((tmp_path / "objects" / aside).iterdir())
    assert b"".join(path.read_bytes() for path in kept) == content


def test_a_machine_lost_in_a_write_of_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every system writes a file whole or not at all: half of a piece never costs what was there before it."""
    monkeypatch.setattr(url_place, "PIECE_BYTES", 100)
    source, there = tmp_path / "journal.jsonl", url_place.UrlPlace(f"local://{tmp_path}/objects")
    content = b"".join(b"%08d\n" % number for number in range(60))
    source.write_bytes(content)
    real, held = url_place.UrlPlace._write, 0
    for end in (9, 90, 126, 450, 540):
        for share in (0, 1, 8):  # bytes of the first piece that were written when the machine went

            def torn(self: url_place.UrlPlace, path: str, blocks: Iterable[bytes], share: int = share) -> None:
                real(self, path, [b"".join(blocks)[:share]])
                raise StorageError("the machine is gone")

            monkeypatch.setattr(url_place.UrlPlace, "_write", torn)
            with pytest.raises(StorageError, match="gone"):
                there.extend_journal(source, there.journal_end(source), end)
            assert b"".join(map(bytes, there.journal_blocks())) == content[:held]
            assert there.journal_end(source) == held
        monkeypatch.setattr(url_place.UrlPlace, "_write", real)
        assert there.extend_journal(source, there.journal_end(source), end) == ""
        assert b"".join(map(bytes, there.journal_blocks())) == content[:end]
        held = end
    assert len(there._pieces()) == len(there._chain())


def test_a_machine_lost_while_the_mirror_became_a_run(tmp_path: Path) -> None:
    """Half of run.json beside the mark that says it may be half: no run yet, and free for a new one."""
    there = url_place.UrlPlace(f"local://{tmp_path}/objects")
    there.put("run.json", b'{"run_id": "ab')
    with pytest.raises(CannotContinueError, match=r"run\.json"):
        there.document()
    there.put(".mirroring", b"ab")
    assert there.document() is None
    assert not belongs(there, "ab")


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    """Written with all the care a folder gets, and without fsspec."""
    there = open_place(f"file://{tmp_path}/mirror")
    assert isinstance(there, FolderPlace)
    assert there.root == tmp_path / "mirror"


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(
        ConfigError, match=r"s3://bucket/run needs the package fsspec; pip install 'unbroken\[mirror\]'"
    ):
        open_place("s3://bucket/run")
