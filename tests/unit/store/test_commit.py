from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unbroken.base.errors import StorageError
from unbroken.store import files
from unbroken.store.checkpoints import Image, Placed, publish_model
from unbroken.store.commit import Pending, Staging
from unbroken.store.files import DamagedError
from unbroken.store.journal import START

from .conftest import Run, assert_restores, make_image


def test_a_commit_comes_back_to_the_bit(run: Run) -> None:
    run.commit(1, 2)
    assert_restores(run, 2)
    assert_restores(run.again(), 2)
    assert run.checkpoints.steps() == [1, 2]
    assert run.names() == ["00000001", "00000002"]


def test_the_model_of_a_checkpoint_loads_with_the_library(run: Run) -> None:
    run.commit(3)
    found = load_file(run.folder(3) / "model" / "model.safetensors")
    assert torch.equal(found["turned"], make_image(3).tensors["encoder.turned"].tensor)


def test_equal_images_make_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name)
        run.commit(1)
        contents.append({str(p.relative_to(run.root)): p.read_bytes() for p in run.folder(1).rglob("*") if p.is_file()})
    assert contents[0] == contents[1]


def test_the_snapshot_is_taken_before_commit_returns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    go, sync = threading.Event(), run.journal.sync
    monkeypatch.setattr(run.journal, "sync", lambda: go.wait(10) and sync())
    weight = torch.ones(1000)
    run.checkpoints.commit(Image(1, {"w": Placed("extra.safetensors", "w", weight)}, {}, {}))
    weight.zero_()
    assert run.checkpoints.busy
    assert run.checkpoints.poll() == []
    go.set()
    [done] = run.checkpoints.wait()
    assert (done.step, done.removed, done.notes) == (1, (), ())
    assert done.num_bytes > 4000
    restored = run.checkpoints.restore()
    assert restored is not None
    assert restored.tensors["w"].sum() == 1000


def test_an_interrupted_wait_leaves_the_commit_under_way(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its staging buffer is in use: the next commit must not take it for free."""

    def interrupted(flights: list[Any]) -> None:
        raise KeyboardInterrupt

    run.checkpoints.commit(make_image(1))
    with monkeypatch.context() as patch:
        patch.setattr(futures, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.checkpoints.commit(make_image(2))
    run.checkpoints.commit(make_image(3))
    assert [done.step for done in run.checkpoints.wait()] == [1, 3]


def test_gradients_and_odd_strides_do_not_matter() -> None:
    weight = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    views = {"whole": weight, "column": weight[:, 1], "turned": weight.t(), "wide": weight[:1].expand(5, 4)}
    staging = Staging()
    for _ in range(2):
        snapshot = staging.take(Image(1, {k: Placed("x", k, v) for k, v in views.items()}, {}, {}), START)
        [file] = snapshot.tensor_files
        for slot in file.slots:
            found = torch.frombuffer(file.data[slot.begin : slot.end], dtype=torch.float32).view(slot.shape)
            assert torch.equal(found, views[slot.key])


def test_the_buffer_is_kept_and_grows() -> None:
    staging, places = Staging(), []
    for size in (1000, 10, 1000, 5000):
        image = Image(1, {"w": Placed("x", "w", torch.ones(size))}, {}, {})
        places.append(torch.frombuffer(staging.take(image, START).tensor_files[0].data, dtype=torch.uint8).data_ptr())
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize(
    ("placed", "documents"),
    [
        ({"a": "x", "b": "x"}, {}),
        ({"a": "../x"}, {}),
        ({"a": "MANIFEST.json"}, {}),
        ({"a": "x"}, {"x": b""}),
        ({}, {"/x": b""}),
    ],
)
def test_an_image_that_could_not_be_restored_is_a_defect(
    run: Run, placed: dict[str, str], documents: dict[str, bytes]
) -> None:
    tensors = {name: Placed(file, "key", torch.ones(1)) for name, file in placed.items()}
    with pytest.raises(AssertionError):
        run.checkpoints.commit(Image(1, tensors, documents, {}))


def fail_once(monkeypatch: pytest.MonkeyPatch, call: str, nth: int) -> list[int]:
    """Make use number `nth` of a system call fail with an I/O error; the list grows with each use."""
    original: Callable[..., Any] = getattr(os, call)
    used: list[int] = []

    def fail(*arguments: Any) -> Any:
        used.append(1)
        if len(used) != nth + 1:
            return original(*arguments)
        if call == "close":
            original(*arguments)  # Linux closes the descriptor even then
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    return used


def commit_failure(run: Run, step: int) -> str:
    run.checkpoints.commit(make_image(step))
    try:
        run.checkpoints.wait()
    except StorageError as failure:
        return str(failure)
    return ""


@pytest.mark.parametrize("call", ["mkdir", "posix_fallocate", "write", "fsync", "close"])
def test_whatever_call_fails_the_old_checkpoint_or_the_new_one_stands(
    run: Run, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Fail the first, second, third, ... use of one system call, until a commit needs no more of them."""
    run.commit(1)
    for nth in range(200):
        with monkeypatch.context() as patch:
            used = fail_once(patch, call, nth)
            failure = commit_failure(run, 2)
        if len(used) <= nth:
            break
        present = run.folder(2).exists()
        assert present or "Input/output error" in failure  # acknowledged means there, whatever else went wrong
        assert run.names() == ["00000001", "00000002"][: 1 + present]
        assert_restores(run.again(), 1 + present)
        if present:
            files.remove_tree(run.folder(2))
    assert nth > 2
    assert not failure
    assert_restores(run, 2)


def test_a_failure_says_what_stands_and_the_next_commit_may_succeed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.commit(1)

    def full(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        run.checkpoints.commit(make_image(2))
        with pytest.raises(StorageError) as caught:
            run.checkpoints.commit(make_image(3))
    text = str(caught.value)
    assert "the checkpoint of step 2 was not made" in text
    assert "No space left on device" in text
    assert "that of step 1 stands" in text
    assert "free some space" in text
    assert run.checkpoints.poll() == []
    assert run.names() == ["00000001"]
    run.checkpoints.commit(make_image(3))
    assert [done.step for done in run.checkpoints.wait()] == [3]


def test_a_disk_without_room_is_refused_before_anything_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, text in (("free_bytes", "MB are free"), ("free_inodes", "more files fit")):
        with monkeypatch.context() as patch:
            patch.setattr(files, limit, lambda path: 3)
            run.checkpoints.commit(make_image(1))
            with pytest.raises(StorageError, match=text):
                run.checkpoints.wait()
        assert run.names() == []


def test_a_step_committed_again_with_the_same_bytes_is_kept(run: Run) -> None:
    run.commit(1)
    before = run.folder(1).stat().st_ino
    run.commit(1)
    assert run.folder(1).stat().st_ino == before
    assert run.names() == ["00000001"]


def test_a_broken_checkpoint_in_the_way_is_set_aside(run: Run) -> None:
    run.commit(1)
    (run.folder(1) / "optimizer.safetensors").write_bytes(b"")
    run.checkpoints.commit(make_image(1))
    [done] = run.checkpoints.wait()
    assert "00000001" in done.notes[0]
    assert run.names() == [".broken-00000001-0", "00000001"]
    assert_restores(run, 1)


def test_a_different_checkpoint_in_the_way_is_set_aside(run: Run) -> None:
    run.commit(1)
    image = make_image(1)
    run.checkpoints.commit(Image(1, image.tensors, image.documents, {"step": 1, "best": None}))
    [done] = run.checkpoints.wait()
    assert "came out differently" in done.notes[0]
    assert run.names() == [".broken-00000001-0", "00000001"]


def test_publishing_places_the_whole_model(run: Run) -> None:
    run.commit(1, 2)
    for step in (1, 2, 2):
        sums = publish_model(run.folder(step), run.root)
        source, model = run.folder(step) / "model", run.root / "model"
        assert list(sums) == ["model.safetensors"]
        for path in source.rglob("*"):
            if path.is_file():
                assert (model / path.relative_to(source)).read_bytes() == path.read_bytes()
    inode = (run.root / "model").stat().st_ino
    assert publish_model(run.folder(2), run.root) == sums
    assert (run.root / "model").stat().st_ino == inode
    assert not list(run.root.glob(".t*"))


def test_publishing_repairs_a_damaged_model(run: Run) -> None:
    run.commit(1)
    sums = publish_model(run.folder(1), run.root)
    (run.root / "model" / "config.json").unlink()
    (run.root / ".tmp-model-dead").mkdir()
    assert publish_model(run.folder(1), run.root) == sums
    assert (run.root / "model" / "config.json").exists()
    assert not list(run.root.glob(".t*"))


def test_publishing_what_is_damaged_is_refused(run: Run) -> None:
    run.commit(1, 2)
    publish_model(run.folder(1), run.root)
    weights = run.folder(2) / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        publish_model(run.folder(2), run.root)
    assert load_file(run.root / "model" / "model.safetensors")
    assert not list(run.root.glob(".t*"))


def test_publishing_on_a_full_disk_leaves_the_old_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.commit(1, 2)
    publish_model(run.folder(1), run.root)
    before = (run.root / "model" / "model.safetensors").read_bytes()

    def full(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        publish_model(run.folder(2), run.root)
    assert (run.root / "model" / "model.safetensors").read_bytes() == before
    assert not list(run.root.glob(".t*"))


def test_steady_tensors_are_copied_later_and_not_after_a_change() -> None:
    weight, buffer = torch.nn.Parameter(torch.ones(10)), torch.ones(10)
    placed = {"w": Placed("x", "w", weight, steady=True), "b": Placed("x", "b", buffer)}
    staging = Staging()
    snapshot = staging.take(Image(1, placed, {}, {}), START)
    buffer.zero_()
    snapshot.complete()
    with torch.no_grad():
        weight.zero_()
    [file] = snapshot.tensor_files
    found = torch.frombuffer(file.data, dtype=torch.float32)
    assert found.sum() == 20, "both were copied as they were"
    late = staging.take(Image(2, placed, {}, {}), START)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="w was changed while a commit was copying it"):
        late.complete()


def test_settling_waits_for_the_copy_and_counts_as_waiting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Pending.copy
    monkeypatch.setattr(Pending, "copy", lambda pending: time.sleep(0.2) or copy(pending))
    weight = torch.nn.Parameter(torch.ones(1000))
    run.checkpoints.commit(Image(1, {"w": Placed("x.safetensors", "w", weight, steady=True)}, {}, {}))
    run.checkpoints.settle()
    with torch.no_grad():
        weight.zero_()
    [done] = run.checkpoints.wait()
    assert done.snapshot_seconds >= 0.19
    restored = run.checkpoints.restore()
    assert restored is not None
    assert restored.tensors["w"].sum() == 1000
