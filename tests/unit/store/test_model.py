"""A model folder outside a run: the files given, the library's own bytes, and never half of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unbroken.base.errors import StorageError
from unbroken.store import files
from unbroken.store.model import replace_model

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor(2.0)}


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_are_those_given(tmp_path: Path) -> None:
    replace_model(tmp_path / "new" / "model", {"x/config.json": b"{}"}, {"m.safetensors": TENSORS})
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    assert listing(tmp_path / "new") == {
        "model/x/config.json": b"{}",
        "model/m.safetensors": (tmp_path / "theirs").read_bytes(),
    }
    assert torch.equal(load_file(tmp_path / "new" / "model" / "m.safetensors")["a"], TENSORS["a"])


def test_a_tensor_that_is_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    replace_model(tmp_path / "model", {}, {"m.safetensors": {"a": TENSORS["a"].T}})
    assert torch.equal(load_file(tmp_path / "model" / "m.safetensors")["a"], TENSORS["a"].T)


def test_an_earlier_folder_is_replaced_whole(tmp_path: Path) -> None:
    replace_model(tmp_path / "model", {"old.json": b"1"}, {})
    replace_model(tmp_path / "model", {"new.json": b"2"}, {})
    assert listing(tmp_path) == {"model/new.json": b"2"}


@pytest.mark.parametrize("old", [False, True])
def test_a_disk_that_refuses_leaves_what_was_there(old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:
        replace_model(tmp_path / "model", {"old.json": b"1"}, {})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync_file", full)
    with pytest.raises(StorageError, match="No space left"):
        replace_model(tmp_path / "model", {"new.json": b"2"}, {})
    assert listing(tmp_path) == ({"model/old.json": b"1"} if old else {})
