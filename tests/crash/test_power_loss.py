"""Power cuts: the model of a disk, and a run that survives every state the model allows."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.power_cuts import cut_everywhere, disk_after
from tests.crash.power_loss import PAGE, Disk, Op, Tree, read_tree, recording, replace_tree
from unbroken.store import files

OLD, NEW = b"o" * PAGE * 2, b"n" * PAGE * 2
CONTROLS: dict[str, Callable[[Op], bool]] = {
    "the run's folder is not synced": lambda op: op.path.endswith("/runs/new"),
    "the journal is not synced": lambda op: op.path.endswith("/journal.jsonl"),
    "the folder of checkpoints is not synced": lambda op: op.path.endswith("/checkpoints"),
    "a tensor file is not synced": lambda op: op.path.endswith("/optimizer.safetensors"),
    "the manifest is not synced": lambda op: op.path.endswith("/MANIFEST.json"),
    "the new folder is not synced": lambda op: "/checkpoints/.tmp-" in op.path and Path(op.path).name.startswith("."),
}


def survivors(disk: Disk, samples: int = 300) -> list[Tree]:
    draw = random.Random(0)
    return [*disk.corners(), *disk.single_changes(), *(disk.after_power_loss(draw.randrange) for _ in range(samples))]


def contents(trees: list[Tree], name: str) -> set[object]:
    return {tree.get(name) if not isinstance(tree.get(name), dict) else "a folder" for tree in trees}


def recorded(root: Path, act: Callable[[Path], None]) -> Disk:
    with recording(root) as recorder:
        act(root)
    disk = disk_after(recorder.log)
    assert disk.live() == read_tree(root)
    return disk


def write(path: Path, data: bytes, *, sync: bool = False) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(handle, data)
    if sync:
        os.fsync(handle)
    os.close(handle)


def test_what_is_not_synced_may_be_absent_zero_torn_or_there(tmp_path: Path) -> None:
    found = contents(survivors(recorded(tmp_path, lambda root: write(root / "a", NEW))), "a")
    assert {None, b"", NEW, bytes(2 * PAGE), NEW[:PAGE] + bytes(PAGE), bytes(PAGE) + NEW[:PAGE]} <= found
    assert any(isinstance(content, bytes) and len(content) % PAGE for content in found), "none is torn within a page"


def test_what_is_synced_stays_once_its_name_is(tmp_path: Path) -> None:
    trees = survivors(recorded(tmp_path, lambda root: write(root / "a", NEW, sync=True)))
    assert contents(trees, "a") == {None, NEW}

    def in_a_synced_folder(root: Path) -> None:
        write(root / "b", NEW, sync=True)
        files.sync_folder(root)

    assert contents(survivors(recorded(tmp_path, in_a_synced_folder)), "b") == {NEW}


def test_an_append_never_harms_what_was_durable(tmp_path: Path) -> None:
    write(tmp_path / "journal", OLD)

    def append(root: Path) -> None:
        handle = os.open(root / "journal", os.O_WRONLY | os.O_APPEND)
        os.write(handle, NEW)
        os.write(handle, b"end")
        os.close(handle)

    found = contents(survivors(recorded(tmp_path, append)), "journal")
    assert all(isinstance(content, bytes) and content.startswith(OLD) for content in found)
    assert {OLD, OLD + NEW, OLD + NEW + b"end", OLD + bytes(2 * PAGE) + b"end"} <= found


def test_a_change_of_names_happens_or_does_not(tmp_path: Path) -> None:
    write(tmp_path / "a", OLD)
    write(tmp_path / "b", NEW)
    write(tmp_path / "c", b"c")
    trees = survivors(recorded(tmp_path, lambda root: os.rename(root / "a", root / "b")))
    assert {(repr(tree.get("a")), repr(tree.get("b"))) for tree in trees} == {
        (repr(OLD), repr(NEW)),
        (repr(None), repr(OLD)),
    }
    trees = survivors(recorded(tmp_path, lambda root: void(files.exchange(root / "b", root / "c"))))
    assert {(repr(tree["b"]), repr(tree["c"])) for tree in trees} == {(repr(OLD), repr(b"c")), (repr(b"c"), repr(OLD))}
    trees = survivors(recorded(tmp_path, lambda root: os.unlink(root / "b")))
    assert contents(trees, "b") == {b"c", None}


def test_folders_that_are_removed_may_come_back_in_part(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write(tmp_path / "old" / "one", OLD)
    write(tmp_path / "old" / "two", NEW)
    trees = survivors(recorded(tmp_path, lambda root: files.remove_tree(root / "old")))
    assert all(tree.get("old") is None for tree in trees), "its name went durably, before its content"
    rests = {tuple(sorted(value)) for tree in trees for value in tree.values() if isinstance(value, dict)}
    assert {(), ("one",), ("two",), ("one", "two")} == rests


def void(_: object) -> None:
    """A callback that returns nothing."""


def test_a_tree_can_be_put_on_the_disk(tmp_path: Path) -> None:
    tree: Tree = {"a": b"1", "b": {"c": b"2", "d": {}}}
    replace_tree(tree, tmp_path / "x")
    assert read_tree(tmp_path / "x") == tree


def test_the_power_cut_after_each_operation_of_a_run(tmp_path: Path) -> None:
    count, failures = cut_everywhere(tmp_path, samples=0, every=5)
    assert not failures, failures
    assert count > 80


@pytest.mark.slow
def test_every_single_loss_and_random_ones(tmp_path: Path) -> None:
    count, failures = cut_everywhere(tmp_path, samples=20)
    assert not failures, failures
    assert count > 2500


@pytest.mark.parametrize(
    "control", [name if i < 3 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(CONTROLS)]
)
def test_a_missing_sync_is_found_out(control: str, tmp_path: Path) -> None:
    chosen = CONTROLS[control]
    _, failures = cut_everywhere(tmp_path, 0, lambda op: op.kind == "sync" and chosen(op))
    assert failures
