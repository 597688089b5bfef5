"""The benchmark of LoRA training: its arithmetic, its rows, that it compares the same work. No timing is asserted."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import pytest
from bench.adapt import cases, compare, limit, same
from bench.adapt.__main__ import mixed, plan, snips
from bench.adapt.rows import (
    LONGEST,
    NO_LOSS,
    SHORTEST,
    Lengths,
    instruction_rows,
    num_tokens,
    sort_tokens,
    write_tokens,
)
from bench.harness import Context, Run
from tests.tiny_causal import make_causal_folder, make_labelled

from unbroken.models.chat import ChatFormat

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in make_labelled(600):
            print(json.dumps(row), file=file)
    return path


def test_maps_have_the_shapes_of_a_decoder_with_shared_heads() -> None:
    assert limit.linear_shapes(CONFIG) == [(32, 64, 1), (32, 32, 2), (64, 32, 1), (32, 48, 2), (48, 32, 1)]
    assert limit.linear_shapes({**CONFIG, "head_dim": None})[0] == (32, 32, 1)


def test_operations_follow_from_the_shapes() -> None:
    maps = 32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48
    ranks = 4 * (96 + 2 * 64 + 96 + 3 * 80)
    attention = 2 * 64 * (1 * 2 + 5 * 6)
    expected = 2 * (6 * (2 * 2 * maps + 3 * 2 * ranks) + 3 * attention) + 2 * 2 * 32 * 100 * 3
    assert limit.training_flops(CONFIG, Lengths((1, 5), (0, 3)), rank=4) == expected


def test_rows_are_spread_over_the_lengths_and_repeat(folder: Path, texts: Path) -> None:
    chat = ChatFormat.of(folder, cases.TEMPLATE)
    rows = instruction_rows(texts, chat, 5)
    lengths = sorted(num_tokens(row, chat) for row in rows)
    wanted = [SHORTEST + place * (LONGEST - SHORTEST) / 4 for place in range(5)]
    assert all(0 <= want - found < 20 for want, found in zip(wanted[1:], lengths[1:], strict=True))
    assert all(row["instruction"] and row["output"] for row in rows)
    assert rows == instruction_rows(texts, chat, 5)
    assert rows != instruction_rows(texts, chat, 5, seed=1)


def test_labels_are_the_ids_that_are_learned(folder: Path, tmp_path: Path) -> None:
    row = {"instruction": "river stone", "output": "cloud"}
    values = {"model": str(folder), "output_dir": str(tmp_path), "train_data": [row]}
    lengths = write_tokens(tmp_path / "tokens", values, 1)
    found = json.loads((tmp_path / "tokens").read_text())
    learned = [i for i, label in zip(found["input_ids"], found["labels"], strict=True) if label != NO_LOSS]
    assert learned == [label for label in found["labels"] if label != NO_LOSS]
    assert ChatFormat.of(folder).decode(learned).strip() == "cloud"
    assert lengths == Lengths((len(found["input_ids"]),), (len(learned),))


def test_sorted_rows_are_the_same_rows_the_longest_first(tmp_path: Path) -> None:
    lines = [json.dumps({"input_ids": [0] * n}) + "\n" for n in (2, 9, 4)]
    (tmp_path / "rows").write_text("".join(lines))
    sort_tokens(tmp_path / "rows", tmp_path / "sorted")
    assert (tmp_path / "sorted").read_text() == lines[1] + lines[2] + lines[0]


def a_run() -> Run:
    steps = [
        {"event": "step", "n": n, "at": 10.0 * n, "cpu": 20.0 * n, "loss": 1.0, "tokens": 40 * n, "padded": 50 * n}
        for n in (1, 2, 3)
    ]
    return Run("ours", spawned_at=0.0, wall_seconds=9.0, cpu_seconds=9.0, others_share=0.0, events=steps)


def test_speed_counts_tokens_of_the_counted_steps_without_padding() -> None:
    assert compare.per_second(a_run(), warm=1) == (200 / 40, 200 / 20)
    assert compare.padding(a_run(), warm=1) == pytest.approx(0.2)


def test_losses_that_differ_are_found() -> None:
    assert same.disagreement([1.0, 2.0], [1.0, 2.5]) == 0.5
    with pytest.raises(ValueError, match="no loss"):
        same.disagreement([], [])
    with pytest.raises(ValueError, match="shorter"):
        same.disagreement([1.0, 2.0], [1.0])


def given(texts: Path) -> argparse.Namespace:
    return argparse.Namespace(
        texts=texts, snips=texts, quick=True, steps=2, gpu=None, check=False, unchecked=False, threads=[1]
    )


def test_that_both_do_the_same_is_checked_before_anything_is_timed(folder: Path, texts: Path, tmp_path: Path) -> None:
    context, told = Context(folder, texts, runs=1, quick=True, scale=1.0, out=tmp_path), given(texts)
    found = [(name, threads) for name, _, _, threads in plan(told, context, [mixed(told), snips(told)])]
    assert found == [("mixed-same", None), ("snips-same", None), ("mixed-1", 1), ("snips-1", 1)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_sides_do_the_same_work(
    folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(folder, texts, runs=1, quick=True, scale=1.0, out=tmp_path)
    monkeypatch.setattr(same, "TOLERANCE", 2e-6)  # so small a model hardly tells two adapters apart in three steps
    assert "largest difference" in same.compare(context, snips(given(texts))).text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_round_has_every_arm_and_a_table(folder: Path, texts: Path, tmp_path: Path) -> None:
    context = Context(folder, texts, runs=1, quick=True, scale=1.0, out=tmp_path)
    timed = compare.compare(context, mixed(given(texts)), 1)
    assert "tokens a CPU second" in timed.text
    assert {arm: len(timed.data[arm]) for arm in compare.ARMS} == dict.fromkeys(compare.ARMS, 1)
