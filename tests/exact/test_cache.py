"""The cache of a stopped run damaged in every way: the run must end bit for bit as if it had never been stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import UnbrokenError
from unbroken.tasks.embed import task


def flip(position: float, bit: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(position * (len(content) - 1))] ^= bit
        path.write_bytes(content)

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_one_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "first byte": flip(0, 1),
    "a byte in the middle": flip(0.5, 1),
    "a byte near the end": flip(0.9, 4),
    "last byte": flip(1, 1),
    "cut": cut,
    "cut by one": cut_one_byte,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 3),
    "a list": lambda path: path.write_bytes(b"[]"),
    "a number": lambda path: path.write_bytes(b"7"),
    "deleted": Path.unlink,
}
ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "cosent": ({"loss": "cosent"}, make_rows(20)),
    "lists of negatives": (
        {},
        [
            {"anchor": row["anchor"], "positive": row["positive"], "negative": row["negative"].split()[: 1 + i % 3]}
            for i, row in enumerate(make_rows(20))
        ],
    ),
}


@pytest.fixture(scope="module", params=ROWS)
def stopped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, Path]:
    """What was asked for, a run stopped after two of four steps, and the same run not stopped."""
    root = tmp_path_factory.mktemp("cache")
    changes, rows = ROWS[request.param]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = {
        "task": "embed",
        "model": str(make_model_folder(root / "model")),
        "train_data": str(root / "train.jsonl"),
        "batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "threads": 1,
        **changes,
    }
    train(asked, root / "whole")
    train(asked, root / "stopped", stop_after=2)
    return asked, root / "stopped", root / "whole"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(damage: str, stopped: tuple[dict[str, Any], Path, Path], tmp_path: Path) -> None:
    asked, run, whole = stopped
    kept = sorted(path.relative_to(run) for path in (run / "cache").rglob("*") if path.is_file())
    assert {name.name.partition("-")[0] for name in kept} >= {"data", "rows", "ids.npy", "offsets.npy", "arena.json"}
    assert any(name.name.startswith(("scores-", "bounds-")) for name in kept)
    for number, name in enumerate([*kept, None]):  # None: all of them
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        for one in kept if name is None else [name]:
            DAMAGE[damage](copy / one)
        assert train(asked, copy).finished
        assert_same_run(copy, whole)
        assert [(copy / one).read_bytes() for one in kept] == [(run / one).read_bytes() for one in kept], name


def test_an_array_of_another_name_or_other_data_is_not_taken(
    stopped: tuple[dict[str, Any], Path, Path], tmp_path: Path
) -> None:
    """Every file is whole, but stands where another belongs."""
    asked, run, whole = stopped
    shutil.copytree(run, tmp_path / "copy")
    arrays = sorted((tmp_path / "copy" / "cache").glob("*-*.npy"))
    contents = [path.read_bytes() for path in arrays]
    for path, content in zip(arrays, reversed(contents), strict=True):
        path.write_bytes(content)
    folders = sorted((tmp_path / "copy" / "cache").glob("tokens-*"))
    folders[0].rename(tmp_path / "first")
    folders[1].rename(folders[0])
    (tmp_path / "first").rename(folders[1])
    assert train(asked, tmp_path / "copy").finished
    assert_same_run(tmp_path / "copy", whole)


def test_a_file_that_changes_while_a_run_starts_is_not_taken_for_the_old_one(
    stopped: tuple[dict[str, Any], Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests come from the cache, the tokens are to be made again, and the file is edited in between."""
    asked, run, whole = stopped
    shutil.copytree(run, tmp_path / "copy")
    shutil.copy(asked["train_data"], tmp_path / "train.jsonl")
    asked = asked | {"train_data": str(tmp_path / "train.jsonl")}
    before = (tmp_path / "train.jsonl").read_text(encoding="utf-8")
    for folder in (tmp_path / "copy" / "cache").glob("tokens-*"):
        shutil.rmtree(folder)
    load = task.load

    def edit_and_load(*arguments: Any) -> Any:
        (tmp_path / "train.jsonl").write_text(before.replace("river", "stone"), encoding="utf-8")
        return load(*arguments)

    monkeypatch.setattr(task, "load", edit_and_load)
    with pytest.raises(UnbrokenError, match="was changed just now"):
        train(asked, tmp_path / "copy")
    monkeypatch.setattr(task, "load", load)
    (tmp_path / "train.jsonl").write_text(before, encoding="utf-8")
    train(asked, tmp_path / "copy")
    assert_same_run(tmp_path / "copy", whole)
