"""A user's own loop stopped after every step: modules, optimizer, scheduler and generators come back to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from tests.exact.runs import assert_same_run, final_state, moments, step_records
from tests.tiny import make_model_folder, make_rows
from unbroken import Encoder, Loop
from unbroken.base.errors import CannotContinueError, ConfigError
from unbroken.run.report import Event, Notice, Replayed, silent
from unbroken.store.tensors import read_file

STEPS = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


class Head(nn.Module):
    """A user's module: dropout, running statistics, a layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(width, 8)

    def forward(self, vectors_BD: Tensor) -> Tensor:
        out: Tensor = self.linear(self.dropout(self.norm(vectors_BD)))
        return out


class Loss(nn.Module):
    """A contrastive loss that owns a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        scores_BB = nn.functional.cosine_similarity(a_BD[:, None], b_BD[None], dim=-1) * self.log_scale.exp()
        return nn.functional.cross_entropy(scores_BB, torch.arange(len(a_BD)))


Make = Callable[[Iterable[Any]], Optimizer]


@dataclass
class Script:
    """What a user's file does each time it is run: everything is made anew, the head from whatever chance gives."""

    model: Path
    make: Make = field(default=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    schedule: Callable[[Optimizer], lr_scheduler.LRScheduler] | None = None
    chunks: int = 1
    head_seed: int = 0
    own_generator: str = ""  # "kept": in extras, "lost": forgotten and seeded by the clock
    options: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def run(self, output: Path, *, stop_after: int = 0, leave_after: int = 0, leave_before: int = 0) -> Loop:
        encoder = Encoder.from_pretrained(self.model).train()
        torch.manual_seed(self.head_seed)
        head, loss_module = Head(encoder.dimension), Loss()
        optimizer = self.make([*encoder.parameters(), *head.parameters(), *loss_module.parameters()])
        extras: dict[str, Any] = {}
        scheduler = self.schedule(optimizer) if self.schedule else None
        if scheduler:
            extras["scheduler"] = scheduler
        generator = torch.Generator()
        if self.own_generator == "kept":
            extras["generator"] = generator
        if self.own_generator == "lost":
            generator.seed()
        arguments: dict[str, Any] = {
            "modules": {"encoder": encoder, "head": head, "loss": loss_module},
            "optimizer": optimizer,
            "data": make_rows(58),
            "batch_size": 4,
            "num_epochs": 2,
            "seed": 7,
            "threads": 1,
            "extras": extras,
            "save_steps": 1000,
            "report": self.events.append,
        }
        self.modules = arguments["modules"]
        loop = self.loop = Loop(output, **(arguments | self.options))
        for rows in loop.batches():
            if loop.step_number == leave_before - 1:
                break
            total: Tensor | float = 0.0
            for chunk in chunked(rows, self.chunks):
                noise = 0.01 * random.random() * float(np.random.rand())
                anchors, positives = (
                    head(encoder.embed(encoder.tokenize([row[key] for row in chunk]))) for key in ("anchor", "positive")
                )
                anchors = anchors + noise * torch.randn_like(anchors)
                if self.own_generator:
                    anchors = anchors + torch.randn(anchors.shape, generator=generator) * 0.01
                loss = loss_module(anchors, positives)
                if self.chunks > 1:
                    (loss * len(chunk) / len(rows)).backward()
                    loss = loss.detach() * len(chunk) / len(rows)
                total = total + loss
            loop.step(total)
            if loop.step_number == leave_after:
                break
            if scheduler:
                scheduler.step()
            if loop.step_number == stop_after:
                loop.stop("the test")
        return loop


def chunked(rows: list[Any], count: int) -> list[list[Any]]:
    if count == 1 or len(rows) < 4:  # BatchNorm needs two
        return [rows]
    return [rows[: len(rows) // count], rows[len(rows) // count :]]


def one_cycle(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS + 1)


def milestones(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    """Its state is a Counter with whole numbers as keys, which JSON would turn into texts."""
    return lr_scheduler.MultiStepLR(optimizer, [5, 12, 20], gamma=0.5)


def in_sequence(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    warmup = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 8)
    return lr_scheduler.SequentialLR(optimizer, [warmup, lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 8)], [8])


VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "fused adamw": {"make": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True)},
    "sgd with momentum": {"make": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)},
    "amsgrad, one cycle": {"make": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True), "schedule": one_cycle},
    "milestones": {"schedule": milestones},
    "schedulers in sequence": {"schedule": in_sequence},
    "nadam": {"make": lambda p: torch.optim.NAdam(p, lr=1e-3)},
    "rate by step, clipped": {"options": {"learning_rate": lambda step: 1e-3 / (step + 1), "max_grad_norm": 0.5}},
    "accumulation": {"chunks": 2},
    "a generator in extras": {"own_generator": "kept"},
    "in order": {"options": {"shuffle": False}},
}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_in_pieces(variant: str, model: Path, tmp_path: Path) -> None:
    """Segments of one step and of several, every one with another fresh head that the commits must replace."""
    Script(model, **VARIANTS[variant]).run(tmp_path / "whole")
    for last in range(1, STEPS + 1) if variant == "adamw" else (1, 2, 3, 5, 6, 13, 15, 16, 29, 30):
        Script(model, **VARIANTS[variant], head_seed=last - 1).run(tmp_path / "pieces", stop_after=last)
    assert Script(model, **VARIANTS[variant]).run(tmp_path / "pieces").ended.finished
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")


def test_stopped_after_every_step(model: Path, tmp_path: Path) -> None:
    variant: dict[str, Any] = {"schedule": in_sequence, "own_generator": "kept", "chunks": 2}
    Script(model, **variant).run(tmp_path / "whole")
    for last in range(1, STEPS):
        stopped = tmp_path / f"stopped-after-{last}"
        assert not Script(model, **variant).run(stopped, stop_after=last).ended.finished
        assert Script(model, **variant, head_seed=99).run(stopped).ended.finished
        assert_same_run(stopped, tmp_path / "whole")


def test_a_damaged_run_file_is_put_back(model: Path, tmp_path: Path) -> None:
    Script(model).run(tmp_path / "whole")
    Script(model).run(tmp_path / "run", stop_after=3)
    path = tmp_path / "run" / "run.json"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    again = Script(model)
    assert again.run(tmp_path / "run").ended.finished
    said = [event.text for event in again.events if isinstance(event, Notice) and "run.json was" in event.text]
    assert len(said) == 1
    assert path.read_bytes() == content
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("where", ["leave_after", "leave_before"])
def test_left_by_break(where: str, model: Path, tmp_path: Path) -> None:
    """A break skips what follows in the body (here the scheduler): nothing may be committed of such a step."""
    variant: dict[str, Any] = {"schedule": milestones, "options": {"save_steps": 4}}
    Script(model, **variant).run(tmp_path / "whole")
    for last in (1, 4, 5, 13):
        left, script = tmp_path / f"left-{last}", Script(model, **variant)
        loop = script.run(left, **{where: last})
        assert not loop.ended.finished
        again = Script(model, **variant, head_seed=5)
        assert again.run(left).ended.finished
        assert_same_run(left, tmp_path / "whole")
        replayed = [event for event in again.events if isinstance(event, Replayed)]
        recorded = last if where == "leave_after" else last - 1
        committed = (last - 1) // 4 * 4
        assert [(event.first, event.last) for event in replayed] == (
            [(committed + 1, recorded)] if recorded > committed else []
        )


def test_an_exception_in_the_body_leaves_a_run_that_goes_on(model: Path, tmp_path: Path) -> None:
    Script(model).run(tmp_path / "whole")
    failed = Script(model)
    failed.make = lambda parameters: Failing(parameters, fail_at=9)
    with pytest.raises(RuntimeError, match="out of memory"):
        failed.run(tmp_path / "failed")
    assert not failed.loop.ended.finished
    failed.make = lambda parameters: Failing(parameters, fail_at=10**9)
    assert failed.run(tmp_path / "failed").ended.finished
    assert final_state(tmp_path / "failed") == final_state(tmp_path / "whole")


class Failing(torch.optim.AdamW):
    def __init__(self, parameters: Iterable[Any], fail_at: int) -> None:
        super().__init__(parameters, lr=1e-3)
        self.left = fail_at

    def step(self, closure: Any = None) -> Any:
        self.left -= 1
        if not self.left:
            raise RuntimeError("out of memory")
        return super().step(closure)


def test_the_first_commit_keeps_a_head_nobody_seeded(model: Path, tmp_path: Path) -> None:
    first, second = Script(model, head_seed=1), Script(model, head_seed=2)
    first.run(tmp_path / "run", leave_before=1)
    before = first.modules["head"].linear.weight.clone()
    second.run(tmp_path / "run", leave_before=1)
    assert torch.equal(second.modules["head"].linear.weight, before)
    Script(model, head_seed=1).run(tmp_path / "one")
    Script(model, head_seed=2).run(tmp_path / "other")
    assert final_state(tmp_path / "one") != final_state(tmp_path / "other")


def test_a_finished_run_started_again_gives_its_tensors(model: Path, tmp_path: Path) -> None:
    first = Script(model, schedule=milestones)
    first.run(tmp_path / "run")
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    again = Script(model, schedule=milestones, head_seed=3)
    loop = again.run(tmp_path / "run")
    assert loop.ended.finished
    assert loop.step_number == loop.num_steps == STEPS
    for name, module in first.modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, again.modules[name].state_dict()[key]), f"{name}.{key}"
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal
    published = read_file(loop.model_path, "head.safetensors").tensors
    assert torch.equal(published["norm.running_var"], again.modules["head"].norm.running_var)
    folder = Encoder.from_pretrained(loop.model_path / "encoder")
    assert folder.state_dict().keys() == first.modules["encoder"].state_dict().keys()


def test_evaluation_disturbs_nothing(model: Path, tmp_path: Path) -> None:
    Script(model).run(tmp_path / "whole")
    for stop in (0, 7, 8):
        output = tmp_path / f"evaluated-{stop}"
        script = Script(model, options={"evaluate": lambda: {"random": torch.rand(3).sum()}, "eval_steps": 7})
        script.run(output, stop_after=stop)
        script.run(output)
        assert_same_run(output, tmp_path / "whole")
        assert sorted(int(path.stem) for path in (output / "eval").iterdir()) == [0, 7, 14, 21, 28, 30]


def test_modules_frozen_midway_stay_frozen(tmp_path: Path) -> None:
    """A switch thrown once, in the body, is state too."""

    def run(output: Path, stop_after: int = 0) -> None:
        torch.manual_seed(0)
        body, head = nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
        data = [[float(i), 1.0, 2.0, 3.0] for i in range(12)]
        loop = Loop(
            output,
            modules={"body": body, "head": head},
            optimizer=optimizer,
            data=data,
            batch_size=2,
            num_epochs=2,
            collate=torch.tensor,
            report=silent,
        )
        for batch in loop.batches():
            if loop.step_number == 4:
                body.requires_grad_(False)
                head.eval()
            loop.step(head(body(batch)).square().mean() * 0.01)
            if loop.step_number == stop_after:
                loop.stop()

    run(tmp_path / "whole")
    run(tmp_path / "stopped", stop_after=6)
    run(tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_frozen_part_in_the_optimizer_and_a_moving_part_outside_it(tmp_path: Path) -> None:
    """Neither may be refused, and gradients outside the optimizer must not leak into the recorded norm."""

    def run(output: Path, stop_after: int = 0) -> None:
        torch.manual_seed(0)
        frozen, outside, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        frozen.requires_grad_(False)
        loop = Loop(
            output,
            modules={"frozen": frozen, "outside": outside, "head": head},
            optimizer=torch.optim.Adam([*frozen.parameters(), *head.parameters()], lr=0.01),
            data=[[float(i), 1.0, 2.0, 3.0] for i in range(12)],
            batch_size=2,
            num_epochs=1,
            collate=torch.tensor,
            report=silent,
        )
        for batch in loop.batches():
            loop.step(head(outside(frozen(batch))).square().mean() * 0.01)
            if loop.step_number == stop_after:
                loop.stop()

    run(tmp_path / "whole")
    run(tmp_path / "stopped", stop_after=3)
    run(tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_moments_of_another_type_than_the_parameter(tmp_path: Path) -> None:
    """torch's load_state_dict would cast NAdam's float32 product to bfloat16."""

    def run(output: Path, stop_after: int = 0) -> None:
        torch.manual_seed(0)
        head = nn.Linear(4, 1).to(torch.bfloat16)
        loop = Loop(
            output,
            modules={"head": head},
            optimizer=torch.optim.NAdam(head.parameters(), lr=0.01),
            data=[[float(i), 1.0, 2.0, 3.0] for i in range(12)],
            batch_size=2,
            num_epochs=2,
            collate=lambda rows: torch.tensor(rows, dtype=torch.bfloat16),
            report=silent,
        )
        for batch in loop.batches():
            loop.step(head(batch).square().mean())
            if loop.step_number == stop_after:
                loop.stop()

    run(tmp_path / "whole")
    run(tmp_path / "stopped", stop_after=3)
    run(tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


# Controls: what is broken on purpose must be found.


def test_a_generator_left_out_is_found_by_the_replay(model: Path, tmp_path: Path) -> None:
    Script(model, own_generator="lost").run(tmp_path / "run", leave_after=6)
    with pytest.raises(CannotContinueError) as refusal:
        Script(model, own_generator="lost").run(tmp_path / "run")
    assert "step 1 does not repeat: loss" in str(refusal.value)
    assert "generator of its own" in str(refusal.value)
    assert "extras" in refusal.value.next_step


def test_drift_can_be_accepted(model: Path, tmp_path: Path) -> None:
    Script(model, own_generator="lost").run(tmp_path / "run", leave_after=6)
    loop = Script(model, own_generator="lost", options={"accept_drift": True}).run(tmp_path / "run")
    assert loop.ended.finished
    assert loop.ended.proof["drift_from"] == 1


def test_a_module_left_out_is_refused(model: Path, tmp_path: Path) -> None:
    script = Script(model)
    script.options = {"modules": {"encoder": Encoder.from_pretrained(model)}}
    with pytest.raises(ConfigError, match="belong to none of the modules"):
        script.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_moment_set_to_zero_differs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unbroken.run.state import State

    Script(model).run(tmp_path / "whole")
    Script(model).run(tmp_path / "damaged", stop_after=10)
    restore = State.restore

    def damaged(state: State, restored: Any) -> None:
        restore(state, restored)
        state.optimizer.state[state.trained["head.linear.weight"]]["exp_avg"].zero_()

    monkeypatch.setattr(State, "restore", damaged)
    Script(model).run(tmp_path / "damaged")
    assert step_records(tmp_path / "damaged") != step_records(tmp_path / "whole")
    assert moments(tmp_path / "damaged").keys() == moments(tmp_path / "whole").keys()
