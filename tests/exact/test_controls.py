"""Controls: each breaks exactness on purpose, and the proof must notice. A check that cannot fail proves nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.exact.runs import assert_same_run, final_state, step_records, train
from tests.exact.test_embed import values
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import CannotContinueError
from unbroken.plan.plan import Draw, Plan
from unbroken.store.checkpoints import Checkpoints, Image, Placed, read_checkpoint
from unbroken.store.commit import Pending, Staging, write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def tamper(output: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change tensors of the only checkpoint and renew every digest, so that it verifies."""
    (folder,) = (output / "checkpoints").glob("[0-9]*")
    run_id = json.loads((output / "run.json").read_bytes())["run_id"]
    places = json.loads((folder / "MANIFEST.json").read_bytes())["tensors"]
    restored = read_checkpoint(folder, run_id)
    change(restored.tensors)
    placed = {name: Placed(places[name]["file"], places[name]["key"], t) for name, t in restored.tensors.items()}
    folder.rename(output / "checkpoints" / ".broken-original")
    image = Image(restored.step, placed, restored.documents, restored.state)
    write_checkpoint(output / "checkpoints", Staging().take(image, restored.mark), run_id, lambda: None)


def zero_a_moment(tensors: dict[str, Tensor]) -> None:
    name = next(name for name in sorted(tensors) if name.endswith("query.weight/exp_avg"))
    assert tensors[name].abs().max() > 0
    tensors[name].zero_()


def flip_a_bit(tensors: dict[str, Tensor]) -> None:
    name = next(name for name in sorted(tensors) if name.endswith("query.weight"))
    tensors[name].view(torch.int32).view(-1)[0] ^= 1


def forget_the_journal(output: Path) -> None:
    """Keep only what came before the commit, so that nothing is left to compare with."""
    (folder,) = (output / "checkpoints").glob("[0-9]*")
    offset = json.loads((folder / "MANIFEST.json").read_bytes())["journal"]["offset"]
    journal = output / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:offset])


@pytest.mark.parametrize("change", [zero_a_moment, flip_a_bit])
def test_a_changed_checkpoint_gives_another_model(change: Any, model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "whole")
    train(values(model), tmp_path / "changed", stop_after=9)
    tamper(tmp_path / "changed", change)
    forget_the_journal(tmp_path / "changed")
    assert train(values(model), tmp_path / "changed").finished
    assert final_state(tmp_path / "changed") != final_state(tmp_path / "whole")
    assert step_records(tmp_path / "changed") != step_records(tmp_path / "whole")


@pytest.mark.parametrize("change", [flip_a_bit])
def test_the_canary_notices_a_changed_checkpoint(change: Any, model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "run", stop_after=9)
    tamper(tmp_path / "run", change)
    with pytest.raises(CannotContinueError, match=r"step 10 does not repeat: (loss|grad_norm)"):
        train(values(model), tmp_path / "run")


def test_the_replay_notices_a_zeroed_moment(model: Path, tmp_path: Path) -> None:
    """The moment acts on the update of step 10, so step 11 shows it: the steps after a commit must be on record."""
    asked = values(model, save_steps=9)
    whole = tmp_path / "whole"
    train(asked, whole)
    killed = tmp_path / "killed"
    train(asked, killed, stop_after=9)
    tamper(killed, zero_a_moment)
    lines = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    later = [line for line in lines if json.loads(line)["kind"] == "step" and json.loads(line)["n"] in (10, 11, 12)]
    with (killed / "journal.jsonl").open("ab") as journal:
        journal.writelines(later)
    with pytest.raises(CannotContinueError, match="step 11 does not repeat: loss"):
        train(asked, killed)
    assert not (killed / "checkpoints" / "00000018").exists(), "nothing may be committed after a difference"


def test_a_swapped_example_is_noticed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(values(model), tmp_path / "run", stop_after=9)
    whole = tmp_path / "whole"
    train(values(model), whole)
    lines = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    with (tmp_path / "run" / "journal.jsonl").open("ab") as journal:
        journal.writelines(line for line in lines if json.loads(line)["kind"] == "step" and json.loads(line)["n"] == 10)
    original = Plan.draw

    def swapped(plan: Plan, step: int) -> Draw:
        draw = original(plan, step)
        return Draw(draw.epoch, draw.ids[::-1].copy())

    monkeypatch.setattr(Plan, "draw", swapped)
    with pytest.raises(CannotContinueError, match=r"step 10 does not repeat: ids .* other examples were drawn"):
        train(values(model), tmp_path / "run")


def test_another_order_is_another_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(values(model), tmp_path / "run", stop_after=3)
    monkeypatch.setattr("unbroken.tasks.common.ORDER", "another")
    with pytest.raises(CannotContinueError, match=r"order: 'feistel-8' \(this run\) -> 'another'"):
        train(values(model), tmp_path / "run")


def test_drift_is_accepted_only_when_asked_for_and_then_said(model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "run", stop_after=9)
    tamper(tmp_path / "run", flip_a_bit)
    ended = train(values(model), tmp_path / "run", accept_drift=True)
    assert ended.finished
    assert ended.proof["drift_from"] == 10
    assert "inexact from there" in ended.proof["verdict"]


def test_checkpoints_put_aside_by_drift_are_named_where_none_is_left(model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "run", stop_after=9)
    home = tmp_path / "run" / "checkpoints"
    for checkpoint in home.glob("[0-9]*"):
        checkpoint.rename(home / f".drifted-{checkpoint.name}-0")
    with pytest.raises(CannotContinueError, match=r"checkpoints are gone.*put aside: .*\.drifted-00000009-0"):
        train(values(model), tmp_path / "run")


def test_dropout_is_drawn_anew_each_step(model: Path, tmp_path: Path) -> None:
    """With dropout off the run differs: the exact tests do exercise random draws."""
    still = make_model_folder(tmp_path / "still", dropout=0.0)
    train(values(model), tmp_path / "one")
    train(values(still), tmp_path / "other")
    mine, theirs = step_records(tmp_path / "one"), step_records(tmp_path / "other")
    assert mine[0][1] == theirs[0][1], "the same examples"
    assert mine[0][2] != theirs[0][2], "another loss"


def test_other_data_are_another_run(model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "run", stop_after=3)
    rows = make_rows(58)
    rows[41] = {**rows[41], "positive": "castle castle"}
    with pytest.raises(CannotContinueError, match="the first row that differs is row 42"):
        train(values(model, train_data=rows), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"batch_size": 5}, r"batch_size: 4 \(this run\) -> 5"),
        ({"learning_rate": 2e-3}, r"learning_rate: 0.001 \(this run\) -> 0.002"),
        ({"seed": 8}, r"seed: 7 \(this run\) -> 8"),
        ({"micro_batch_size": 2}, r"micro_batch_size: null \(this run\) -> 2"),
        ({"num_train_epochs": 3.0}, r"num_train_epochs: 2.0 \(this run\) -> 3.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_identity_is_refused(change: dict[str, Any], line: str, model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "run", stop_after=3)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run" / "checkpoints").rglob("*"))
    with pytest.raises(CannotContinueError, match=line):
        train(values(model, **change), tmp_path / "run")
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run" / "checkpoints").rglob("*"))


@pytest.mark.parametrize(
    "change",
    [
        {"save_steps": 4},
        {"save_seconds": 0.05},
        {"save_strategy": "epoch"},
        {"save_total_limit": 5},
        {"eval_data": make_rows(12, seed=3), "eval_steps": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_operational_changes_no_bit(change: dict[str, Any], model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "whole")
    train(values(model), tmp_path / "run", stop_after=7)
    train(values(model, **change), tmp_path / "run", stop_after=19)
    assert train(values(model), tmp_path / "run").finished
    assert step_records(tmp_path / "run") == step_records(tmp_path / "whole")
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def slow_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit then copies for longer than the passes of a step take, so that the update has to wait for it."""
    copy = Pending.copy
    monkeypatch.setattr(Pending, "copy", lambda pending: time.sleep(0.004) or copy(pending))


def test_an_update_waits_for_a_commit_that_still_copies(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = values(model, save_steps=2)
    train(asked, tmp_path / "whole")
    slow_copies(monkeypatch)
    train(asked, tmp_path / "slow", stop_after=9)
    train(asked, tmp_path / "slow")
    assert_same_run(tmp_path / "slow", tmp_path / "whole")


def test_an_update_that_does_not_wait_is_found_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_copies(monkeypatch)
    monkeypatch.setattr(Checkpoints, "settle", lambda checkpoints: None)
    with pytest.raises(RuntimeError, match="was changed while a commit was copying it"):
        train(values(model, save_steps=2), tmp_path / "run")
