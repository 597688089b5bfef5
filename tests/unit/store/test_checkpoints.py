from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unbroken.base.errors import CannotContinueError, StorageError
from unbroken.base.fingerprint import canonical, digest
from unbroken.store import files, manifest
from unbroken.store.checkpoints import Checkpoints, read_checkpoint
from unbroken.store.files import DamagedError
from unbroken.store.journal import Journal

from .conftest import RUN_ID, Run, assert_restores, make_image

FILES = [
    "MANIFEST.json",
    "state.json",
    "optimizer.safetensors",
    "extra.safetensors",
    "model/model.safetensors",
    "model/config.json",
    "model/1_Pooling/config.json",
]


def flip(path: Path, place: int, bits: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= bits
    path.write_bytes(content)


def sign_anew(folder: Path, **changes: Any) -> None:
    body = json.loads((folder / "MANIFEST.json").read_bytes())
    del body["digest"]
    body.update(changes)
    (folder / "MANIFEST.json").write_bytes(canonical({**body, "digest": digest(canonical(body))}) + b"\n")


def test_a_run_without_checkpoints_has_nothing_to_restore(run: Run) -> None:
    assert run.checkpoints.restore() is None
    assert run.checkpoints.steps() == []
    assert not run.home.exists()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing", "link", "folder"])
def test_any_damage_makes_restore_fall_back(run: Run, file: str, damage: str) -> None:
    run.commit(1, 2)
    path = run.folder(2) / file
    whole = path.read_bytes()
    if damage == "flip":
        flip(path, len(whole) // 2)
    elif damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.rename(run.root / "elsewhere")
        if damage == "link":
            path.symlink_to(run.root / "elsewhere")
        elif damage == "folder":
            path.mkdir()
    assert run.checkpoints.verify(2)
    run = run.again()
    restored = run.checkpoints.restore()
    assert restored is not None
    [note] = restored.set_aside
    assert "step 2" in note
    assert Path(file).name in note
    assert "moved to .broken-00000002-0" in note
    assert run.names() == [".broken-00000002-0", "00000001"]
    assert_restores(run.again(), 1)


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_flipped_bit_is_found(run: Run, data: st.DataObject) -> None:
    if not run.home.exists():
        run.commit(1)
    path = run.folder(1) / data.draw(st.sampled_from(FILES))
    whole = path.read_bytes()
    flip(path, data.draw(st.integers(0, len(whole) - 1)), 1 << data.draw(st.integers(0, 7)))
    try:
        assert run.checkpoints.verify(1)
        with pytest.raises(CannotContinueError):
            read_checkpoint(run.folder(1), RUN_ID)
    finally:
        path.write_bytes(whole)
    assert run.checkpoints.verify(1) == []


def test_the_damaged_tensor_is_named(run: Run) -> None:
    run.commit(1)
    flip(run.folder(1) / "optimizer.safetensors", -1)
    with pytest.raises(DamagedError, match=r"optimizer\.encoder\.weight\.step"):
        read_checkpoint(run.folder(1))


def test_extra_files_are_nobodys_business(run: Run) -> None:
    run.commit(1)
    (run.folder(1) / "notes.txt").write_text("mine")
    (run.home / "README").write_text("mine")
    assert_restores(run, 1)
    run.commit(2, 3, 4)
    assert (run.home / "README").exists()


def test_if_none_verifies_the_run_is_refused_again_and_again(run: Run) -> None:
    run.commit(1, 2)
    for step in (1, 2):
        flip(run.folder(step) / "state.json", 0)
    for _ in range(2):
        with pytest.raises(CannotContinueError, match=r"no checkpoint of .* verifies") as caught:
            run.again().checkpoints.restore()
        assert caught.value.exit_code == 4
        assert "--restart" in caught.value.next_step
    assert run.names() == [".broken-00000001-0", ".broken-00000002-0"]


def test_files_swapped_between_checkpoints_are_found(run: Run) -> None:
    run.commit(1, 2)
    one, two = (run.folder(step) / "optimizer.safetensors" for step in (1, 2))
    content = one.read_bytes(), two.read_bytes()
    one.write_bytes(content[1])
    two.write_bytes(content[0])
    with pytest.raises(CannotContinueError):
        run.checkpoints.restore()


def test_a_checkpoint_under_another_name_is_broken(run: Run) -> None:
    run.commit(1)
    shutil.copytree(run.folder(1), run.folder(9))
    restored = run.checkpoints.restore()
    assert restored is not None
    assert restored.step == 1
    assert "holds the checkpoint of step 1" in restored.set_aside[0]


def test_another_runs_checkpoint_is_named_and_left_alone(run: Run) -> None:
    run.commit(1)
    shutil.copytree(run.folder(1), run.folder(9))
    sign_anew(run.folder(9), run_id="other", step=9)
    assert run.checkpoints.steps() == [1]
    assert "another run (other)" in run.checkpoints.verify(9)[0]
    restored = run.checkpoints.restore()
    assert restored is not None
    assert restored.step == 1
    assert "another run (other); it was left alone" in restored.set_aside[0]
    run.commit(2, 3, 4)
    assert run.names() == ["00000003", "00000004", "00000009"]
    run.checkpoints.commit(make_image(9))
    [done] = run.checkpoints.wait()
    assert "another run" in done.notes[0]
    assert ".foreign-00000009-0" in run.names()


def test_only_another_runs_checkpoints_are_none(run: Run) -> None:
    run.commit(1)
    sign_anew(run.folder(1), run_id="other")
    assert run.checkpoints.restore() is None
    assert "another run" in run.checkpoints.notes[0]
    assert run.names() == ["00000001"]


@pytest.mark.parametrize("path", ["../../secret", "/etc/hostname"])
def test_a_forged_path_is_not_followed(run: Run, path: str) -> None:
    run.commit(1)
    (run.root / "secret").write_text("x")
    body = json.loads((run.folder(1) / "MANIFEST.json").read_bytes())
    sign_anew(run.folder(1), files={**body["files"], path: {"size": 1, "digest": digest(b"x")}})
    with pytest.raises(CannotContinueError, match="not a plain path"):
        run.checkpoints.restore()


def test_a_forged_tensor_table_is_refused(run: Run) -> None:
    run.commit(1)
    body = json.loads((run.folder(1) / "MANIFEST.json").read_bytes())
    weight = body["tensors"]["encoder.weight"]
    forgeries: list[dict[str, Any]] = [
        {**weight, "key": "nothing"},
        {**weight, "shape": [24]},
        {**weight, "dtype": "I32"},
        {**weight, "digest": "0" * 32},
        {**weight, "key": "half"},
    ]
    for forged in forgeries:
        sign_anew(run.folder(1), tensors={**body["tensors"], "encoder.weight": forged})
        with pytest.raises(DamagedError):
            read_checkpoint(run.folder(1))
    fewer = {name: record for name, record in body["tensors"].items() if name != "encoder.weight"}
    sign_anew(run.folder(1), tensors=fewer)
    with pytest.raises(DamagedError, match="weight"):
        read_checkpoint(run.folder(1))


def test_a_format_of_the_future_is_refused_and_stays(run: Run) -> None:
    run.commit(1, 2)
    sign_anew(run.folder(2), format=2)
    with pytest.raises(CannotContinueError, match="format version 2"):
        run.checkpoints.restore()
    assert run.names() == ["00000001", "00000002"]


def test_a_bad_moment_moves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.commit(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "readv", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        with pytest.raises(StorageError, match="Too many open files"):
            run.checkpoints.restore()
    assert_restores(run, 1)


def test_a_linked_checkpoint_is_not_followed(run: Run) -> None:
    run.commit(1, 2)
    run.folder(2).rename(run.root / "elsewhere")
    run.folder(2).symlink_to(run.root / "elsewhere")
    assert_restores(run, 1)
    assert (run.root / "elsewhere" / "MANIFEST.json").exists()


def test_one_step_can_be_asked_for(run: Run) -> None:
    run.commit(1, 2)
    restored = run.checkpoints.restore(step=1)
    assert restored is not None
    assert restored.step == 1
    with pytest.raises(CannotContinueError, match="no checkpoint of step 5; steps there are: 1, 2"):
        run.checkpoints.restore(step=5)
    flip(run.folder(1) / "state.json", 0)
    with pytest.raises(CannotContinueError, match="step 1 is broken"):
        run.checkpoints.restore(step=1)
    assert run.names() == ["00000001", "00000002"]


def test_looking_changes_nothing(run: Run) -> None:
    run.commit(1)
    (run.home / ".tmp-00000002-1-a").mkdir()
    reader = Checkpoints(run.root, RUN_ID, run.journal)
    reader.steps()
    reader.verify(1)
    reader.restore(step=1)
    assert ".tmp-00000002-1-a" in run.names()
    reader.restore()
    assert run.names() == ["00000001"]


def test_the_mark_leads_to_what_followed_the_commit(run: Run) -> None:
    run.commit(1)
    run.journal.append({"kind": "step", "n": 2})
    run.journal.append({"kind": "step", "n": 3})
    run = run.again()
    restored = run.checkpoints.restore()
    assert restored is not None
    assert [record["n"] for record in run.journal.records(restored.mark)] == [2, 3]
    assert run.journal.proves(restored.mark)


def test_a_mark_may_be_given(run: Run) -> None:
    run.journal.append({"n": 1})
    mark = run.journal.mark()
    run.journal.append({"n": 2})
    run.checkpoints.commit(make_image(1), mark, spare=())
    run.checkpoints.wait()
    restored = run.checkpoints.restore()
    assert restored is not None
    assert restored.mark == mark


def test_the_journal_is_durable_before_the_name_appears(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    sync = run.journal.sync
    monkeypatch.setattr(run.journal, "sync", lambda: seen.append(run.folder(1).exists()) or sync())
    run.commit(1)
    assert seen == [False]


def test_as_many_as_asked_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=3)
    run.commit(1, 2, 3, 4, 5)
    assert run.checkpoints.steps() == [3, 4, 5]


@pytest.mark.parametrize("keep", [-1, 0, 1, 2])
def test_never_fewer_than_two(tmp_path: Path, keep: int) -> None:
    run = Run(tmp_path, keep=keep)
    run.commit(1, 2, 3)
    assert run.checkpoints.steps() == [2, 3]


def test_spared_steps_stay(run: Run) -> None:
    for step in range(1, 6):
        run.checkpoints.commit(make_image(step), spare={2})
    done = run.checkpoints.wait()
    assert [removed for commit in done for removed in commit.removed] == [1, 3]
    assert run.checkpoints.steps() == [2, 4, 5]


def test_old_ones_stay_until_two_newer_ones_verify(run: Run) -> None:
    run.commit(1, 2)
    run = run.again()
    flip(run.folder(2) / "optimizer.safetensors", -1)
    run.commit(3)
    assert run.checkpoints.steps() == [1, 2, 3]  # 2 does not count, so 1 is still needed
    run.commit(4)
    assert run.checkpoints.steps() == [3, 4]


def test_a_lost_file_of_ones_own_is_noticed_before_the_old_ones_go(run: Run) -> None:
    run.commit(1, 2)
    (run.folder(2) / "state.json").unlink()
    run.commit(3)
    assert run.checkpoints.steps() == [1, 2, 3]


def test_digests_are_compared_once_per_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.commit(1, 2)
    run = run.again()
    read, digested = files.digest_file, []
    monkeypatch.setattr(
        manifest, "digest_file", lambda folder, path: digested.append(folder.name) or read(folder, path)
    )
    run.commit(3, 4, 5)
    assert set(digested) == {"00000002"}


def test_what_cannot_be_removed_does_not_undo_the_commit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.commit(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError(13, "Permission denied")))
        run.checkpoints.commit(make_image(3))
        [done] = run.checkpoints.wait()
    assert done.step == 3
    assert "Permission denied" in done.notes[0]
    run.commit(4)
    assert run.names() == ["00000003", "00000004"]


def test_a_run_may_be_moved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    run.commit(1, 2)
    target = tmp_path_factory.mktemp("moved") / "here"
    shutil.move(run.root, target)
    assert_restores(Run(target), 2)


def test_times_of_files_mean_nothing(run: Run) -> None:
    run.commit(1, 2)
    os.utime(run.folder(1), (2e9, 2e9))
    assert_restores(run, 2)


def test_a_lost_journal_does_not_stop_a_restore(run: Run) -> None:
    run.commit(1)
    (run.root / "journal.jsonl").unlink()
    run = run.again()
    restored = run.checkpoints.restore()
    assert restored is not None
    assert list(run.journal.records(restored.mark)) == []
    assert "no record begins" in run.journal.damaged[0]
    assert isinstance(run.journal, Journal)
    run.commit(2)
    assert_restores(run.again(), 2)


def test_later_ones_stay_while_their_steps_are_made_again(run: Run) -> None:
    """Going on from an older one must not cost it, or what is committed on the way, before `keep` are redone."""
    run = Run(run.root, keep=9)
    run.commit(20, 24, 25)
    run = run.again()
    run.checkpoints.keep = 2
    assert run.checkpoints.restore(20) is not None
    kept = []
    for step in (21, 22, 23):
        run.commit(step)
        kept.append(run.checkpoints.steps())
    assert kept == [[20, 21, 24, 25], [21, 22, 24, 25], [22, 23, 24, 25]]
    assert run.checkpoints.set_aside_from(24) == [".drifted-00000024-0", ".drifted-00000025-0"]
    assert run.checkpoints.drifted() == [".drifted-00000024-0", ".drifted-00000025-0"]
    assert_restores(run.again(), 23)


def test_before_a_step_the_newest_that_verifies_is_restored(run: Run) -> None:
    run = Run(run.root, keep=9)
    run.commit(1, 2, 3)
    flip(run.folder(2) / "state.json", 0)
    restored = run.checkpoints.restore_before(3)
    assert restored is not None
    assert restored.step == 1
    assert run.names() == [".broken-00000002-0", "00000001", "00000003"]
    assert run.checkpoints.restore_before(1) is None


def test_a_broken_one_is_put_aside_and_a_good_one_left(run: Run) -> None:
    run.commit(1, 2)
    flip(run.folder(1) / "state.json", 0)
    assert run.checkpoints.put_aside_if_broken(2) == ""
    assert "moved to .broken-00000001-0" in run.checkpoints.put_aside_if_broken(1)
    assert run.checkpoints.put_aside_if_broken(1) == "is gone"
    assert run.names() == [".broken-00000001-0", "00000002"]
