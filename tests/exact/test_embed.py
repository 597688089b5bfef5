"""The embed task stopped after every single step: what is left must equal the uninterrupted run, bit for bit."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, final_state, step_records, train
from tests.tiny import make_model_folder, make_rows

STEPS = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    """Two epochs of fifteen steps over 58 rows: the last batch of each is short."""
    return {
        "task": "embed",
        "model": str(model),
        "train_data": make_rows(58),
        "batch_size": 4,
        "num_train_epochs": 2.0,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.1,
        "seed": 7,
        "threads": 1,
    } | changes


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"micro_batch_size": 2},
    "one-row chunks": {"micro_batch_size": 1},
    "uneven chunks": {"micro_batch_size": 3},
    "cosent": {"loss": "cosent"},
    "triplet": {"loss": "triplet", "margin": 1.0},
    "no negatives, symmetric": {
        "columns": {"anchor": "anchor", "positive": "positive", "negative": []},
        "symmetric": True,
    },
    "weight decay, cosine": {"weight_decay": 0.1, "lr_scheduler_type": "cosine"},
}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_stopped_after_every_step(variant: str, model: Path, tmp_path: Path) -> None:
    asked = values(model, **VARIANTS[variant])
    assert train(asked, tmp_path / "whole").step == STEPS
    for last in range(1, STEPS):
        stopped = tmp_path / f"stopped-after-{last}"
        assert train(asked, stopped, stop_after=last).step == last
        assert train(asked, stopped).finished
        assert_same_run(stopped, tmp_path / "whole")


def test_stopped_with_two_threads(model: Path, tmp_path: Path) -> None:
    asked = values(model, threads=2)
    train(asked, tmp_path / "whole")
    for last in range(3, STEPS, 6):
        stopped = tmp_path / f"stopped-after-{last}"
        train(asked, stopped, stop_after=last)
        train(asked, stopped)
        assert_same_run(stopped, tmp_path / "whole")


def test_one_token_in_a_chunk(tmp_path: Path) -> None:
    """Texts of a single token, without special ones, in chunks of one row: matrices with one row."""
    model = make_model_folder(tmp_path / "model", special=False)
    rows = [{"anchor": row["anchor"], "positive": row["positive"].split()[0]} for row in make_rows(58)]
    asked = values(model, train_data=rows, micro_batch_size=1)
    train(asked, tmp_path / "whole")
    for last in range(1, STEPS):
        stopped = tmp_path / f"stopped-after-{last}"
        train(asked, stopped, stop_after=last)
        train(asked, stopped)
        assert_same_run(stopped, tmp_path / "whole")


@pytest.mark.parametrize("padding", [0, 8, 24, 40])
def test_where_the_weights_lie_in_their_file_changes_nothing(padding: int, model: Path, tmp_path: Path) -> None:
    """Memory-mapped, the same weights begin at another address modulo 64 in each of these files."""
    moved = tmp_path / "model"
    shutil.copytree(model, moved)
    pad_header(moved / "model.safetensors", padding)
    train(values(model, max_steps=5), tmp_path / "one")
    train(values(moved, max_steps=5), tmp_path / "other")
    assert step_records(tmp_path / "one") == step_records(tmp_path / "other")
    assert final_state(tmp_path / "one") == final_state(tmp_path / "other")


def pad_header(path: Path, count: int) -> None:
    """Lengthen the header of a safetensors file by `count` spaces, which moves every tensor in it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    path.write_bytes(struct.pack("<Q", length + count) + header + b" " * count + data)


def test_stopped_after_each_step_of_one_run(model: Path, tmp_path: Path) -> None:
    """Thirty segments of one step each, several of them inside one epoch."""
    asked = values(model)
    train(asked, tmp_path / "whole")
    for last in range(1, STEPS + 1):
        train(asked, tmp_path / "in-pieces", stop_after=last)
    assert train(asked, tmp_path / "in-pieces").finished
    assert_same_run(tmp_path / "in-pieces", tmp_path / "whole")


def test_the_seed_matters(model: Path, tmp_path: Path) -> None:
    """A control: without it two runs could be equal because nothing depends on anything."""
    train(values(model), tmp_path / "one")
    train(values(model, seed=8), tmp_path / "other")
    assert step_records(tmp_path / "one") != step_records(tmp_path / "other")
    assert final_state(tmp_path / "one") != final_state(tmp_path / "other")
