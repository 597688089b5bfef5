"""What `Loop` refuses, and how; what its body may and may not do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from unbroken import Loop
from unbroken.base.errors import BusyError, CannotContinueError, ConfigError, DataError, TrainingError
from unbroken.run.preflight import Demand
from unbroken.run.report import silent

ROWS = [[float(i), 1.0] for i in range(10)]


class Mine:
    """A user's script: make everything, then loop."""

    def __init__(self, output: Path, **changes: Any) -> None:
        torch.manual_seed(0)
        self.head = nn.Linear(changes.pop("width", 2), 1)
        make: Callable[..., Any] = changes.pop("make", lambda p: torch.optim.Adam(p, lr=0.01))
        self.optimizer = make(self.head.parameters())
        schedule = changes.pop("schedule", None)
        if schedule:
            changes["extras"] = {"scheduler": schedule(self.optimizer)}
        arguments: dict[str, Any] = {
            "modules": {"head": self.head},
            "optimizer": self.optimizer,
            "data": ROWS,
            "batch_size": 2,
            "num_epochs": 1,
            "collate": torch.tensor,
            "report": silent,
        }
        self.loop = Loop(output, **(arguments | changes))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(batch).square().mean() * 0.01

    def run(self, *, leave_after: int = 0) -> Loop:
        for batch in self.loop.batches():
            self.loop.step(self.loss(batch))
            if self.loop.step_number == leave_after:
                break
        return self.loop


# What must not change between two starts.

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "batch size": ({"batch_size": 5}, "batch_size: 2 (this run) -> 5 (now)"),
    "steps": ({"num_epochs": 2}, "steps: 5 (this run) -> 10 (now)"),
    "seed": ({"seed": 43}, "seed: 42 (this run) -> 43 (now)"),
    "clipping": ({"max_grad_norm": 1.0}, "max_grad_norm: None (this run) -> 1.0 (now)"),
    "rate": (
        {"make": lambda p: torch.optim.Adam(p, lr=0.02)},
        "optimizer.groups.0.lr: 0.01 (this run) -> 0.02 (now)",
    ),
    "option": (
        {"make": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.999))},
        "optimizer.groups.0.betas: [0.9, 0.999] (this run) -> [0.8, 0.999] (now)",
    ),
    "optimizer": ({"make": lambda p: torch.optim.Adamax(p, lr=0.01)}, "optimizer.class: 'Adam' (this run) -> 'Adamax'"),
    "function": ({"learning_rate": lambda step: 0.1}, "learning_rate: None (this run) -> {"),
    "shape": (
        {"width": 3, "data": [[*row, 1.0] for row in ROWS], "fingerprint": "same"},
        "modules.head.weight: '1x2 float32' (this run) -> '1x3 float32' (now)",
    ),
    "row": ({"data": [*ROWS[:6], [7.0, 7.0], *ROWS[7:]]}, "the first row that differs is row 7"),
    "rows": ({"data": ROWS[:8]}, "10 rows then, 8 now; the first row that differs is row 9"),
    "scheduler": ({"schedule": lambda o: lr_scheduler.StepLR(o, 3)}, "extras.scheduler: None (this run) -> "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_with_both_values(change: str, tmp_path: Path) -> None:
    asked, message = CHANGES[change]
    Mine(tmp_path / "run", fingerprint=asked.get("fingerprint")).run(leave_after=2)
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    with pytest.raises(CannotContinueError) as refusal:
        Mine(tmp_path / "run", **asked)
    assert message in str(refusal.value)
    assert "restart=True" in refusal.value.next_step
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_a_scheduler_with_other_options_is_refused(tmp_path: Path) -> None:
    """Restoring its state would put the old options back without a word."""
    Mine(tmp_path / "run", schedule=lambda o: lr_scheduler.StepLR(o, 3)).run(leave_after=2)
    with pytest.raises(CannotContinueError, match=r"extras.scheduler.begins with.step_size: 3 \(this run\) -> 4"):
        Mine(tmp_path / "run", schedule=lambda o: lr_scheduler.StepLR(o, 4))


def test_saving_evaluating_and_reporting_may_change(tmp_path: Path) -> None:
    Mine(tmp_path / "run").run(leave_after=2)
    changed = Mine(tmp_path / "run", save_steps=1, evaluate=lambda: {"one": 1}, eval_steps=2, save_total_limit=5)
    assert changed.run().ended.finished


def test_restart_moves_the_run_aside(tmp_path: Path) -> None:
    Mine(tmp_path / "run").run()
    loop = Mine(tmp_path / "run", batch_size=5, restart=True).run()
    assert (loop.ended.step, loop.ended.finished) == (2, True)
    assert len(list(tmp_path.glob("before-restart-*"))) == 1


def test_the_threads_of_the_run_are_taken_again(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        Mine(tmp_path / "run", threads=2).run(leave_after=2)
        torch.set_num_threads(1)
        assert Mine(tmp_path / "run").run().ended.finished
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_loop_left_by_break_says_so_in_the_journal(tmp_path: Path) -> None:
    loop = Mine(tmp_path / "run").run(leave_after=2)
    assert (loop.ended.step, loop.ended.finished) == (2, False)
    last = json.loads((tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()[-1])
    assert (last["kind"], last["n"], last["reason"]) == ("stop", 2, "the loop was left by break or an exception")


def test_two_loops_cannot_hold_one_run(tmp_path: Path) -> None:
    held = Mine(tmp_path / "run").loop.batches()
    next(held)
    with pytest.raises(BusyError):
        Mine(tmp_path / "run").run()
    held.close()
    assert Mine(tmp_path / "run").run().ended.finished


def test_a_run_is_looked_over_before_the_loop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mine(tmp_path / "run").run(leave_after=2)
    with monkeypatch.context() as patched:
        patched.setattr("unbroken.run.preflight.files.free_bytes", lambda path: 1000)
        with pytest.raises(ConfigError, match=r"has 0\.0 MB left, the run's checkpoints need"):
            Mine(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr("unbroken.run.preflight.measured_demand", lambda root: Demand(1, 1, 2, 1 << 60, 0))
        with pytest.raises(CannotContinueError, match="machine or container has"):
            Mine(tmp_path / "run")
        patched.undo()
        assert Mine(tmp_path / "run").run().ended.finished
        patched.setattr("unbroken.run.preflight.files.free_bytes", lambda path: 1000)
        Mine(tmp_path / "run")  # a finished run needs nothing


# What a loop cannot be made from.

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no rows": ({"data": []}, DataError, "the data are empty"),
    "an iterator": ({"data": iter(ROWS)}, DataError, "not a sequence of rows"),
    "a loader": ({"data": torch.utils.data.DataLoader(ROWS)}, DataError, "data is a DataLoader"),
    "an odd row": ({"data": [object()]}, DataError, "rows with a object cannot be told apart"),
    "no end": ({"num_epochs": None}, ConfigError, "num_epochs or max_steps"),
    "no batch": ({"batch_size": 0}, ConfigError, "batch_size must be above 0"),
    "no steps": ({"max_steps": 0}, ConfigError, "max_steps must be above 0"),
    "a module alone": ({"modules": nn.Linear(2, 1)}, ConfigError, "modules must be given by name"),
    "a name with a dot": ({"modules": {"a.b": nn.Linear(2, 1)}}, ConfigError, "cannot name a file"),
    "a number as module": ({"modules": {"a": 1}}, ConfigError, "'a' is a int"),
    "an extra without a state": ({"extras": {"list": []}}, ConfigError, "'list' is a list without state_dict"),
    "a module as extra": ({"extras": {"ema": nn.Linear(2, 1)}}, ConfigError, "'ema' is a module"),
    "a rate in a tensor": (
        {"make": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01))},
        ConfigError,
        "optimizer option 'lr' is a Tensor",
    ),
    "a parameter outside": (
        {"make": lambda p: torch.optim.Adam([*p, nn.Parameter(torch.ones(3))])},
        ConfigError,
        r"1 parameters \(\(3,\)\) that belong to none",
    ),
    "two masters of the rate": (
        {"learning_rate": lambda step: 0.1, "schedule": lambda o: lr_scheduler.StepLR(o, 3)},
        ConfigError,
        "given twice",
    ),
    "one rate for groups that differ": (
        {
            "learning_rate": lambda step: 0.1,
            "make": lambda p: torch.optim.SGD([{"params": [q], "lr": 0.1 + i} for i, q in enumerate(p)]),
        },
        ConfigError,
        "the optimizer's differ",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_exact_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    changes, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        Mine(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_scheduler_that_no_commit_would_hold_is_refused(tmp_path: Path) -> None:
    head = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(ConfigError, match="a learning rate scheduler that is not among the extras"):
        Mine(tmp_path / "run", modules={"head": head}, optimizer=optimizer)


def test_rows_that_read_differently_each_time_need_a_fingerprint(tmp_path: Path) -> None:
    class Noisy(torch.utils.data.Dataset[list[float]]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> list[float]:
            return [random.random(), float(index)]

    with pytest.raises(DataError, match="reads differently each time"):
        Mine(tmp_path / "run", data=Noisy())
    Mine(tmp_path / "one", data=Noisy(), fingerprint="v1").run()
    Mine(tmp_path / "two", data=Noisy(), fingerprint="v1").run(leave_after=3)
    assert Mine(tmp_path / "two", data=Noisy(), fingerprint="v1").run().ended.proof["replayed_steps"] == 3


# What the body may not do.


def test_a_body_without_step_is_refused(tmp_path: Path) -> None:
    mine = Mine(tmp_path / "run")
    with pytest.raises(ConfigError, match="the loop body ended without"):
        for _ in mine.loop.batches():
            pass


def test_a_second_step_for_one_batch_is_refused_before_it_moves_anything(tmp_path: Path) -> None:
    mine = Mine(tmp_path / "run")
    batch = next(batches := mine.loop.batches())
    mine.loop.step(mine.loss(batch))
    before = mine.head.weight.clone()
    with pytest.raises(ConfigError, match="called twice for one batch"):
        mine.loop.step(mine.loss(batch))
    assert torch.equal(mine.head.weight, before)
    batches.close()
    with pytest.raises(ConfigError, match="outside the loop"):
        mine.loop.step(1.0)


def test_an_optimizer_step_of_ones_own_is_refused(tmp_path: Path) -> None:
    mine = Mine(tmp_path / "run")
    batches = mine.loop.batches()
    mine.loss(next(batches)).backward()
    with pytest.raises(ConfigError, match="was called in the loop body"):
        mine.optimizer.step()
    batches.close()
    mine.optimizer.step()  # after the loop it is the user's again


def test_backward_twice_is_explained(tmp_path: Path) -> None:
    mine = Mine(tmp_path / "run")
    loss = mine.loss(next(batches := mine.loop.batches()))
    loss.backward()
    with pytest.raises(ConfigError, match="was called already"):
        mine.loop.step(loss)
    batches.close()


def test_backward_in_the_body_and_a_number_for_the_record(tmp_path: Path) -> None:
    Mine(tmp_path / "one").run()
    mine = Mine(tmp_path / "two")
    for batch in mine.loop.batches():
        loss = mine.loss(batch)
        loss.backward()
        assert mine.loop.step(loss.item()) == loss.item()
    names = [(folder / "model" / "head.safetensors").read_bytes() for folder in (tmp_path / "one", tmp_path / "two")]
    assert names[0] == names[1]


def test_no_gradient_at_all_is_explained(tmp_path: Path) -> None:
    mine = Mine(tmp_path / "run")
    loss = mine.loss(next(batches := mine.loop.batches()))
    with pytest.raises(ConfigError, match="no trained parameter has a gradient"):
        mine.loop.step(loss.detach())
    batches.close()


def test_a_gradient_that_is_not_finite_moves_nothing(tmp_path: Path) -> None:
    mine = Mine(tmp_path / "run")
    loss = mine.loss(next(batches := mine.loop.batches()))
    before = mine.head.weight.clone()
    with pytest.raises(TrainingError):
        mine.loop.step(loss * float("nan"))
    assert torch.equal(mine.head.weight, before)
    batches.close()
    assert Mine(tmp_path / "run").run().ended.finished


def test_gradients_from_before_the_loop_do_not_enter(tmp_path: Path) -> None:
    Mine(tmp_path / "one").run()
    mine = Mine(tmp_path / "two")
    mine.loss(torch.ones(1, 2)).backward()
    mine.run()
    names = [(folder / "model" / "head.safetensors").read_bytes() for folder in (tmp_path / "one", tmp_path / "two")]
    assert names[0] == names[1]


def test_a_changing_buffer_that_is_not_persistent_is_refused(tmp_path: Path) -> None:
    head = nn.Linear(2, 1)
    head.register_buffer("seen", torch.zeros(1), persistent=False)
    mine = Mine(tmp_path / "run", modules={"head": head}, optimizer=torch.optim.SGD(head.parameters(), lr=0.1))
    batches = mine.loop.batches()
    mine.loop.step(head(next(batches)).mean())
    head.seen += 1  # type: ignore[operator]
    mine.loop.stop()
    with pytest.raises(ConfigError, match=r"'head.seen' changes in training, but is not persistent"):
        next(batches)


def test_bare_parameters_and_progress(tmp_path: Path) -> None:
    scale = nn.Parameter(torch.ones(()))
    mine = Mine(tmp_path / "run", modules={"scale": scale}, optimizer=torch.optim.SGD([scale], lr=0.1), num_epochs=2)
    assert (mine.loop.step_number, mine.loop.num_steps, mine.loop.ended.finished) == (0, 10, False)
    epochs = []
    for batch in mine.loop.batches():
        epochs.append(mine.loop.epoch)
        mine.loop.step((batch * scale).mean())
    assert epochs == [0] * 5 + [1] * 5
    assert (mine.loop.model_path / "scale.safetensors").exists()
