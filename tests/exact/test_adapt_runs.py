"""What is done with a run that teaches a language model: verified, compared, forked, stopped in time, mirrored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, final_state, train
from tests.exact.test_adapt import flip_a_bit_of_the_adapter
from tests.exact.test_deadline import Clock
from tests.exact.test_verify import renew
from tests.tiny_causal import make_causal_folder, make_instructions
from unbroken.base.errors import CannotContinueError, VerificationError
from unbroken.run.deadline import Deadline
from unbroken.run.stop import StopRequest
from unbroken.tasks.diff import diff
from unbroken.tasks.fork import fork
from unbroken.tasks.train import Request, carry_out
from unbroken.tasks.verify import verify

STEPS = 8


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    model = make_causal_folder(folder / "tiny")
    for name, rows in (("rows.jsonl", make_instructions(18)), ("held-out.jsonl", make_instructions(22)[18:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "task": "adapt",
        "model": str(model),
        "train_data": str(folder / "rows.jsonl"),
        "eval_data": str(folder / "held-out.jsonl"),
        "batch_size": 4,
        "micro_batch_size": 3,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        "save_steps": 2,
        "save_total_limit": 9,
        "max_new_tokens": 8,
        "threads": 1,
        "seed": 7,
    }


@pytest.fixture(scope="module")
def whole(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "whole"
    train(asked, root)
    return root


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def test_every_step_can_be_made_again_and_the_base_model_is_at_hand_for_it(run: Path) -> None:
    found = verify(run, everything=True)
    assert found.failure is None
    assert (found.identical_steps, any(replay.model for replay in found.replays)) == (STEPS, True)
    renew(run / "checkpoints" / "00000006", flip_a_bit_of_the_adapter)
    failure = verify(run, everything=True).failure
    assert isinstance(failure, VerificationError)
    assert "lora_A" in str(failure)


def test_a_changed_base_model_is_found_by_verifying(asked: dict[str, Any], run: Path, tmp_path: Path) -> None:
    shutil.copytree(asked["model"], tmp_path / "other")
    weights = (tmp_path / "other" / "model.safetensors").read_bytes()
    (tmp_path / "other" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    failure = verify(run, inputs={"model": str(tmp_path / "other")}).failure
    assert failure is not None
    assert "model is not what the run was started with" in str(failure)


def test_two_runs_differ_where_one_bit_was_changed(run: Path, whole: Path, tmp_path: Path) -> None:
    assert diff((whole, None), (run, None)).same
    renew(run / "checkpoints" / "00000008", flip_a_bit_of_the_adapter)
    found = diff((whole, None), (run, None))
    assert not found.same
    (difference,) = found.tensors["checkpoint 8"].different
    assert "lora_A" in difference.name


@pytest.mark.parametrize(
    "changes", [{"lora": {"dropout": 0.0}}, {"learning_rate": 1e-3}, {"max_steps": STEPS + 2}], ids=str
)
def test_a_fork_with_other_values_goes_on_from_the_adapter(changes: dict[str, Any], run: Path, tmp_path: Path) -> None:
    made = fork(f"{run}@4", tmp_path / "fork", changes)
    assert (made.step, [*made.changed]) == (4, ["lora.dropout" if "lora" in changes else next(iter(changes))])
    recorded = json.loads((tmp_path / "fork" / "run.json").read_bytes())["config"]
    assert train(recorded, tmp_path / "fork").finished
    assert final_state(tmp_path / "fork") != final_state(run)


def test_a_fork_with_nothing_changed_is_the_run(asked: dict[str, Any], run: Path, tmp_path: Path) -> None:
    fork(f"{run}@4", tmp_path / "fork")
    assert train(asked, tmp_path / "fork").finished
    assert final_state(tmp_path / "fork") == final_state(run)


@pytest.mark.parametrize(
    "changes",
    [{"lora": {"r": 8}}, {"lora": {"alpha": 16}}, {"lora": {"target_modules": ["q_proj"]}}, {"tuning": "full"}],
    ids=str,
)
def test_a_fork_keeps_what_the_adapter_is(changes: dict[str, Any], run: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotContinueError, match=r"^(lora\.|tuning).* a fork keeps it; the trained weights"):
        fork(f"{run}@4", tmp_path / "fork", changes)
    assert not (tmp_path / "fork").exists()


def test_a_fork_keeps_the_adapter_it_began_with(asked: dict[str, Any], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "peft")
    train(asked | {"model": str(tmp_path / "peft")}, tmp_path / "second", stop_after=2)
    with pytest.raises(CannotContinueError, match=r"adapter: content .* -> none: a fork keeps it"):
        fork(tmp_path / "second", tmp_path / "fork", {"model": asked["model"]})


def test_a_deadline_stops_it_with_all_committed(asked: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    request, clock = Request(asked | {"output_dir": str(root)}), Clock()
    stopped = carry_out(request, clock.report, StopRequest(Deadline(300, "17:30", clock)))
    assert (stopped.finished, stopped.reason) == (False, "stop-at 17:30")
    assert 0 < stopped.step < STEPS
    assert clock.now < 300
    assert train(asked, root).finished
    assert_same_run(root, whole)


def test_a_lost_run_comes_back_from_its_mirror(asked: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    root, mirror = tmp_path / "run", {"mirror": str(tmp_path / "mirror")}
    train(asked | mirror, root, stop_after=5)
    shutil.rmtree(root)
    assert train(asked | mirror, root).finished
    assert_same_run(root, whole)
