"""What a fork says a change means, against numbers worked out by hand or counted from the plans."""

from __future__ import annotations

from typing import Any

import pytest

from unbroken.run.contract import fork_command
from unbroken.tasks.embed.config import EmbedConfig
from unbroken.tasks.fork import changed_keys
from unbroken.tasks.meaning import Side, meaning

BASE: dict[str, Any] = {"model": "m", "output_dir": "o", "train_data": "t", "batch_size": 10, "max_steps": 100}


def side(rows: int = 100, **changes: Any) -> Side:
    config = EmbedConfig.from_values({**BASE, "learning_rate": 1e-3, **changes})
    return Side(config, {"config": config.resolved_identity(), "data": {"digest": f"{rows:032}", "examples": rows}})


def told(step: int, *, rows: int = 100, base: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    old, new = side(**(base or {})), side(rows, **{**(base or {}), **changes})
    return meaning("RUN", step, old, new, changed_keys(old.contract, new.contract))


def test_nothing() -> None:
    assert told(50) == ["nothing is changed: from step 50 it goes on as RUN would, to the bit"]


def test_longer() -> None:
    assert told(50, max_steps=200)[1:] == [
        "200 steps instead of 100, 150 of them to come",
        "learning rate: step 51 was 0.0005, is now 0.00075; it falls to 0 after step 200 (linear)",
        "exact by itself from step 50 on; neither what RUN would have been nor a run begun with these values",
    ]


def test_longer_than_the_end() -> None:
    assert "step 101 had none, the old schedule ended there, is now 0.0005" in told(100, max_steps=200)[2]
    assert "100 steps: nothing is left to train" in told(100, seed=1)


def test_longer_at_a_constant_rate_shares_the_steps() -> None:
    lines = told(50, base={"lr_scheduler_type": "constant"}, max_steps=200)
    assert lines[-1] == "exact: the same bits as a run begun with these values, and up to step 100 those of RUN"
    assert "is now 0.001; it stays at 0.001" in lines[2]
    warm = told(50, base={"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1}, max_steps=200)
    assert warm[-1].startswith("exact by itself"), "the share of the steps that warm up is another one"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"learning_rate": 2e-3}, "step 51 was 0.0005, is now 0.001; it falls to 0 after step 100 (linear)"),
        ({"lr_scheduler_type": "cosine"}, "step 51 was 0.0005, is now 0.0005; it falls to 0 after step 100 (cosine)"),
        (
            {"warmup_steps": 80},
            "is now 0.000625; it rises to 0.001 at step 81, then falls to 0 after step 100 (linear)",
        ),
    ],
)
def test_another_rate(changes: dict[str, Any], line: str) -> None:
    assert any(line in text for text in told(50, **changes))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"batch_size": 5},
            "example 61 of 100 in epoch 1; RUN stood at example 21 of epoch 2: 60 examples come",
        ),
        (
            {"batch_size": 20},
            "example 41 of 100 in epoch 3; RUN stood at example 21 of epoch 2: 120 examples are",
        ),
        ({"drop_last": True}, "begins at example 21 of 100 in epoch 2, as in RUN"),
        ({"rows": 50}, "begins at example 21 of 50 in epoch 3; their order follows from these rows alone"),
        ({"seed": 1, "batch_size": 5}, "in another order: of this epoch, examples may come again and others be passed"),
    ],
)
def test_the_examples(changes: dict[str, Any], line: str) -> None:
    assert any(line in text for text in told(12, **changes)), told(12, **changes)


def test_what_another_order_repeats_is_counted() -> None:
    """In the file's order 20 were seen; the shuffled rest of the epoch holds some of them."""
    new = side(shuffle=True).course.plan
    rest = {int(number) for step in range(12, 20) for number in new.draw(step).ids}
    again, passed = len(rest & set(range(20))), len(set(range(20, 100)) - rest)
    assert again > 0
    line = f"in another order: {again} examples come again in this epoch, {passed} are passed over"
    assert any(line in text for text in told(12, base={"shuffle": False}, shuffle=True))


def test_the_command_reads_back_as_it_was_meant() -> None:
    import shlex

    from unbroken.base.config import parse_overrides

    changes = {
        "learning_rate": 1e-5,
        "loss": "triplet",
        "max_steps": None,
        "shuffle": False,
        "train_data": "a b:1.jsonl",
    }
    changes |= {"metric_for_best_model": "1", "columns": {"anchor": ["x", "it's"]}}
    verb, name, run, new, *settings = shlex.split(fork_command("my runs/a", changes))
    assert (verb, name, run, new) == ("unbroken", "fork", "my runs/a", "NEW")
    assert parse_overrides(settings[1::2]) == changes
