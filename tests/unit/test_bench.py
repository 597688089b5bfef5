"""The arithmetic of the benchmarks. No timing is asserted anywhere."""

from __future__ import annotations

import gzip
import json
import statistics
from pathlib import Path

import pytest
from bench import figures, roofline, rows
from bench.cases.commits import costs
from bench.harness import Run

MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}


def steps(times: list[float], cpu: list[float]) -> list[figures.Event]:
    return [
        {"event": "step", "n": n, "at": at, "cpu": used, "loss": 1.0}
        for n, (at, used) in enumerate(zip(times, cpu, strict=True), 1)
    ]


def a_run(events: list[figures.Event]) -> Run:
    return Run("ours", spawned_at=0.0, wall_seconds=9.0, cpu_seconds=9.0, others_share=0.0, events=events)


def test_ratios_are_paired() -> None:
    assert figures.ratios([1.0, 2.0], [3.0, 3.0]) == [3.0, 1.5]
    with pytest.raises(ValueError, match="shorter"):
        figures.ratios([1.0, 2.0], [3.0])


def test_the_spread_of_few_values_is_their_range() -> None:
    found = figures.spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.kind) == (2.0, 1.0, 3.0, "min..max")
    assert found.text(1, "x") == "2.0x [1.0..3.0]"


def test_the_bootstrap_lies_within_the_range_about_the_median_and_repeats() -> None:
    values = [float(n) for n in range(20)]
    low, high = figures.bootstrap(values)
    assert min(values) < low < statistics.median(values) < high < max(values)
    assert figures.bootstrap(values) == (low, high)
    assert figures.spread(values).kind == "95 % bootstrap"


def test_the_bootstrap_of_equal_values_is_that_value() -> None:
    assert figures.bootstrap([2.0] * 8) == (2.0, 2.0)


def test_the_half_line_of_a_killed_process_is_left_out() -> None:
    assert figures.parse_events('{"event": "a"}\n{"event": "b"}\n{"eve') == [{"event": "a"}, {"event": "b"}]
    assert figures.parse_events("") == []


def test_a_broken_line_in_the_middle_is_not_passed_over() -> None:
    with pytest.raises(json.JSONDecodeError):
        figures.parse_events('{"eve\n{"event": "b"}\n')


def test_a_window_leaves_out_the_first_steps() -> None:
    events = steps([100.0, 105.0, 106.0, 108.0], [0.0, 7.0, 9.0, 13.0])
    found = figures.window([*events, {"event": "ended", "at": 200.0}], warm=2)
    assert (found.num_steps, found.wall_per_step, found.cpu_per_step) == (2, 1.5, 3.0)


@pytest.mark.parametrize(("warm", "last"), [(0, 3), (3, 3), (1, 9)])
def test_a_window_that_was_not_recorded_is_refused(warm: int, last: int) -> None:
    with pytest.raises(ValueError, match="not recorded"):
        figures.window(steps([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), warm, last)


def test_commits_count_that_fall_between_two_steps_of_the_window() -> None:
    assert figures.commits_within(warm=5, last=27, every=10) == [10, 20]
    assert figures.commits_within(warm=3, last=9, every=3) == [3, 6]
    assert figures.commits_within(warm=4, last=9, every=3) == [6]


def test_a_commit_costs_what_the_steps_around_it_took_longer() -> None:
    plain = steps([0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 4.0, 6.0])
    slower = steps([0.0, 1.0, 2.5, 3.5], [0.0, 2.0, 4.25, 6.25])
    saved = {"event": "saved", "n": 2, "stall": 0.125, "at": 9.0, "cpu": 9.0, "write": 0.75}
    rounds = [{"ours none": a_run(plain), "ours saving": a_run([*slower, saved])}]
    found = costs(rounds, "ours", 1, 4, [2])
    assert found["ms added to the wall clock by a commit"] == [500.0]
    assert found["ms of CPU added by a commit"] == [250.0]
    assert found["ms of stall a commit"] == [125.0]
    assert found["ms of slowed steps a commit"] == [375.0]
    assert found["ms from the copy to the disk"] == [750.0]


def test_the_first_step_is_counted_from_before_the_process() -> None:
    run = Run("st", spawned_at=40.0, wall_seconds=9.0, cpu_seconds=9.0, others_share=0.0, events=steps([47.5], [6.0]))
    assert (run.first_step_seconds, run.first_step_cpu) == (7.5, 6.0)


def test_operations_follow_from_the_shapes() -> None:
    per_token = 6 * 2 * (4 * 384**2 + 2 * 384 * 1536)
    assert roofline.training_flops(MINILM, [1]) == 3 * (per_token + 6 * 4 * 384)
    assert roofline.training_flops(MINILM, [10, 20]) == 3 * (30 * per_token + 6 * 4 * 384 * 500)


def test_tokens_are_counted_cut_and_padded_column_by_column() -> None:
    found = rows.count_tokens([[[2, 4], [5, 9]], [[3, 3], [1, 2]]], max_length=8)
    assert found.lengths == (2, 4, 5, 8, 3, 3, 1, 2)
    assert (found.real, found.padded, found.per_step) == (28, 8 + 16 + 6 + 4, 14.0)


def test_terms_and_glosses_occur_once(tmp_path: Path) -> None:
    source = tmp_path / "wordnet.jsonl.gz"
    found = [("cat", "a"), ("Cat", "b"), ("dog", "c"), ("cow", "c"), ("ant", "e")]
    with gzip.open(source, "wt", encoding="utf-8") as file:
        for term, gloss in found:
            print(json.dumps({"words": [term, "other"], "gloss": gloss}), file=file)
    pairs = rows.read_pairs(source)
    assert set(pairs) <= set(found)
    assert len(pairs) == 3
    assert pairs == rows.read_pairs(source)


@pytest.mark.minilm
def test_equal_texts_have_64_tokens(minilm: Path) -> None:
    pairs = rows.equal_pairs(minilm, 8)
    found = rows.tokens_of(minilm, pairs, batch=4, first=0, last=2, max_length=128)
    assert set(found.lengths) == {64}
    assert found.real == found.padded == 16 * 64


def test_a_table_is_markdown() -> None:
    assert figures.table(["", "a"], [["b", "1"]]) == "|  | a |\n| --- | --- |\n| b | 1 |"
