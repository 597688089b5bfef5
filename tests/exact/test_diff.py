"""`diff`: two runs of one configuration are the same to the bit; of others, the first difference is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import train
from tests.exact.test_controls import flip_a_bit
from tests.exact.test_verify import asked, change_record, renew, write_rows
from tests.tiny import make_model_folder, make_rows
from tests.unit.cli.bad_input import listing
from unbroken.base.errors import CannotContinueError, ConfigError
from unbroken.tasks.diff import Diff, diff


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diff")
    make_model_folder(root / "model")
    rows = make_rows(58)
    write_rows(root / "train.json", rows)
    train(asked(root), root / "whole")
    train(asked(root), root / "stopped", stop_after=16)
    train(asked(root, learning_rate=2e-3, save_steps=10), root / "faster")
    rows[41] = {**rows[41], "positive": "castle castle"}
    write_rows(root / "other.json", rows)
    train(asked(root, train_data=str(root / "other.json")), root / "other", stop_after=16)
    return root


@pytest.fixture
def twins(place: Path, tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        shutil.copytree(place / "whole", tmp_path / name)
    return tmp_path / "one", tmp_path / "two"


def of(one: Path, other: Path, first: int | None = None, second: int | None = None) -> Diff:
    before = listing(one), listing(other)
    found = diff((one, first), (other, second))
    assert (listing(one), listing(other)) == before, "something was written"
    assert json.loads(json.dumps(found.flat()))["same"] is found.same
    return found


def test_a_stopped_run_is_the_beginning_of_the_whole_one(place: Path) -> None:
    found = of(place / "whole", place / "stopped")
    assert found.same
    assert (found.equal_steps, found.first_step, found.last_steps) == (16, None, (30, 16))
    assert [(what, one.identical == one.total) for what, one in found.tensors.items()] == [("checkpoint 14", True)]
    assert [(one.key, one.kind) for one in found.config] == [("output_dir", "operational")]
    assert "goes on to step 30: no record to compare with" in found.notes[0]
    assert not found.environment


def test_another_learning_rate(place: Path) -> None:
    found = of(place / "whole", place / "faster")
    assert not found.same
    assert (found.equal_steps, found.first_step, found.differs) == (1, 2, "learning_rate"), "the first step warms up"
    assert found.records is not None
    assert found.records[1]["learning_rate"] == 2 * found.records[0]["learning_rate"]
    kinds = {one.key: one.kind for one in found.config}
    assert kinds == {"output_dir": "operational", "learning_rate": "identity", "save_steps": "operational"}
    assert list(found.tensors) == ["checkpoint 30", "the finished model"]
    assert found.tensors["the finished model"].identical == 0
    only = of(place / "whole", place / "faster", 28, 30).tensors
    assert list(only) == ["checkpoints 28 and 30"]


def test_another_row(place: Path) -> None:
    found = of(place / "whole", place / "other")
    assert found.first_changed_row == 42
    assert {one.key: one.kind for one in found.inputs} == {"data.digest": "content"}
    assert {one.key: one.kind for one in found.config}["train_data"] == "content"
    assert found.differs == "loss", "the same examples by number, with another text"
    (place / "other" / "data.digests").rename(place / "other" / "away")
    try:
        assert "which row differs first cannot be told" in of(place / "whole", place / "other").notes[0]
    finally:
        (place / "other" / "away").rename(place / "other" / "data.digests")


def test_one_bit_in_one_tensor(twins: tuple[Path, Path]) -> None:
    one, two = twins
    assert of(one, two).same
    renew(two / "checkpoints" / "00000030", flip_a_bit)
    found = of(one, two)
    assert not found.same
    compared = found.tensors["checkpoint 30"]
    (difference,) = compared.different
    assert (compared.total - compared.identical, difference.elements) == (1, 1)
    assert difference.name.endswith("query.weight")
    assert found.tensors["the finished model"].different == []
    assert of(one, two, 28, 28).same
    assert of(one, two, 28).same, "one step for both"


def test_one_digit_in_one_record(twins: tuple[Path, Path]) -> None:
    one, two = twins
    change_record(two, "step", 17, grad_norm=1.0)
    found = of(one, two)
    assert (found.equal_steps, found.first_step, found.differs) == (16, 17, "grad_norm")
    assert "the backward pass" in found.likely_cause
    assert not found.same
    assert all(not compared.different for compared in found.tensors.values())


def test_another_environment(twins: tuple[Path, Path]) -> None:
    one, two = twins
    record: dict[str, Any] = json.loads((two / "journal.jsonl").read_bytes().splitlines()[0])
    change_record(two, "segment", 1, environment=record["environment"] | {"cpu": "another", "threads": 8})
    found = of(one, two)
    cpu = record["environment"]["cpu"]
    assert found.environment == [f"{two} segment 1: cpu: {cpu} -> another", f"{two} segment 1: threads: 1 -> 8"]
    assert found.same, "what was made is the same"


def test_a_broken_checkpoint_is_passed_over_and_named(twins: tuple[Path, Path]) -> None:
    one, two = twins
    (two / "checkpoints" / "00000030" / "optimizer.safetensors").write_bytes(b"cut")
    found = of(one, two)
    assert list(found.tensors) == ["checkpoint 28", "the finished model"]
    assert "optimizer.safetensors" in found.notes[0]
    with pytest.raises(CannotContinueError, match=r"optimizer\.safetensors"):
        diff((one, 30), (two, 30))


def test_what_cannot_be_compared(twins: tuple[Path, Path]) -> None:
    one, two = twins
    with pytest.raises(CannotContinueError, match="has no checkpoint of step 9; there are: 7, 14, 21, 28, 30"):
        diff((one, 9), (two, None))
    with pytest.raises(ConfigError, match="is no run"):
        diff((one, None), (two / "cache", None))
    shutil.rmtree(two / "checkpoints")
    (two / "journal.jsonl").unlink()
    with pytest.raises(CannotContinueError, match="hold nothing that could be compared"):
        diff((one, None), (two, None))
