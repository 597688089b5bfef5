"""Runs that train the embedding rows in use only: stopped, resumed, committed by a slow writer, verified, forked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.exact.runs import assert_same_run, final_state, moments, step_records, train
from tests.exact.test_controls import tamper
from tests.exact.test_embed import values
from tests.tiny import make_model_folder
from unbroken.base.errors import CannotContinueError
from unbroken.models.encoder import Encoder
from unbroken.models.vocabulary import ActiveTable, use_active_rows, used_ids
from unbroken.run.job import Job
from unbroken.store.commit import Pending
from unbroken.store.layout import EXTRA_FILE
from unbroken.store.tensors import read_file
from unbroken.tasks.embed import job as embed_job
from unbroken.tasks.fork import fork
from unbroken.tasks.verify import verify

STEPS = 10
TABLE = "embeddings.word_embeddings.weight"
ROWS = f"encoder.backbone.model.{TABLE.replace('.weight', '.active.weight')}"
# Of words in no training text: their letters' rows are not trained.
OTHERS = [{"anchor": f"zebra {word}", "positive": f"quick {word}", "negative": "vex"} for word in ("river", "jam")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


BUILD = embed_job.build_job
Change = Callable[[Job, ActiveTable], Job]


def active(monkeypatch: pytest.MonkeyPatch, change: Change = lambda job, table: job) -> None:
    """Have every run from here on train the rows in use only, and its job changed by `change`."""

    def layout(encoder: Encoder, name: str) -> tuple[str, str]:
        if encoder.is_extra(name.removeprefix("encoder.")):
            return EXTRA_FILE, name
        return embed_job.layout(encoder, name)

    def build_job(config: Any, encoder: Encoder, *rest: Any) -> Job:
        job = BUILD(config, encoder, *rest)
        arenas = [role.arena for role in job.encode.roles]  # type: ignore[attr-defined]
        rows = encoder.get_parameter(f"backbone.model.{TABLE}").shape[0]
        table = use_active_rows(encoder, used_ids(arenas, rows))
        assert len(table.ids) < rows / 2
        return change(replace(job, layout=partial(layout, encoder), write_back=encoder.write_back), table)

    monkeypatch.setattr(embed_job, "build_job", build_job)


def asked(model: Path, **changes: Any) -> dict[str, Any]:
    """At this bound every step clips."""
    return values(model, **({"max_steps": STEPS, "max_grad_norm": 0.1} | changes))


def files(output: Path, step: int) -> tuple[dict[str, Tensor], Tensor]:
    """The model in a checkpoint, and the rows trained."""
    folder = output / "checkpoints" / f"{step:08d}"
    return read_file(folder / "model", "model.safetensors").tensors, read_file(folder, EXTRA_FILE).tensors[ROWS]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "uneven chunks, evaluated": {"micro_batch_size": 3, "eval_data": OTHERS, "eval_steps": 2},
}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_stopped_after_every_step(variant: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    active(monkeypatch)
    request = asked(model, **VARIANTS[variant])
    train(request, tmp_path / "whole")
    assert moments(tmp_path / "whole")[f"{ROWS}/exp_avg"].abs().max() > 0
    for last in range(1, STEPS):
        stopped = tmp_path / f"stopped-after-{last}"
        assert train(request, stopped, stop_after=last).step == last
        assert train(request, stopped).finished
        assert_same_run(stopped, tmp_path / "whole")


def test_without_clipping_the_run_is_that_of_the_whole_table(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record, every evaluation of texts with other tokens, every bit of the model."""
    request = asked(model, max_grad_norm=0.0, eval_data=OTHERS, eval_steps=1)
    train(request, tmp_path / "whole")
    active(monkeypatch)
    train(request, tmp_path / "rows")
    assert [record[:3] for record in step_records(tmp_path / "rows")] == [
        record[:3] for record in step_records(tmp_path / "whole")
    ]
    for step in range(STEPS + 1):
        mine, theirs = (
            json.loads((tmp_path / run / "eval" / f"{step:08d}.json").read_bytes())["metrics"]
            for run in ("rows", "whole")
        )
        assert mine == theirs
    found, expected = final_state(tmp_path / "rows"), final_state(tmp_path / "whole")
    assert {name for name in found if found[name] == expected.get(name)} == set(expected) - {"optimizer.safetensors"}
    assert set(found) - set(expected) == {EXTRA_FILE}
    assert len(found["optimizer.safetensors"]) < len(expected["optimizer.safetensors"])


def left_out(job: Job, table: ActiveTable) -> Job:
    return replace(job, write_back=lambda: False)


def test_a_write_back_left_out_is_found_out(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: steps repeat, yet the model in the folder is not the one trained, and nothing goes on from it."""
    with monkeypatch.context() as patch:
        active(patch)
        train(asked(model), tmp_path / "whole")
    with monkeypatch.context() as patch:
        active(patch, left_out)
        train(asked(model), tmp_path / "stale")
        train(asked(model), tmp_path / "stopped", stop_after=5)
    assert step_records(tmp_path / "stale") == step_records(tmp_path / "whole")
    stale, whole = final_state(tmp_path / "stale"), final_state(tmp_path / "whole")
    assert {name for name in whole if stale[name] != whole[name]} == {"model/model.safetensors"}
    active(monkeypatch)
    with pytest.raises(CannotContinueError, match="the tensors of checkpoint 5 do not belong together"):
        train(asked(model), tmp_path / "stopped")


def flip(name: str, tensors: dict[str, Tensor]) -> None:
    tensors[name].view(torch.int32)[2, 0] ^= 1  # token 2 begins every text


@pytest.mark.parametrize("name", [ROWS, f"encoder.backbone.model.{TABLE}"])
def test_a_checkpoint_that_holds_two_tables_is_refused(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    active(monkeypatch)
    train(asked(model), tmp_path / "run", stop_after=5)
    tamper(tmp_path / "run", partial(flip, name))
    with pytest.raises(CannotContinueError, match="the tensors of checkpoint 5 do not belong together"):
        train(asked(model), tmp_path / "run")


def slow_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit then copies the table for longer than the passes of a step take."""
    copy = Pending.copy

    def slowly(pending: Pending) -> None:
        time.sleep(0.03 if pending.slot.key == TABLE else 0.0)
        copy(pending)

    monkeypatch.setattr(Pending, "copy", slowly)


ALL = {"save_steps": 1, "save_total_limit": 50, "eval_data": OTHERS, "eval_steps": 1}


def test_every_checkpoint_holds_the_table_of_its_step_however_slow_the_writer(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is evaluated and committed, and the next passes run while the commit copies."""
    tables: list[ActiveTable] = []

    def keep(job: Job, table: ActiveTable) -> Job:
        tables.append(table)
        return job

    active(monkeypatch, keep)
    request = asked(model, **ALL)
    train(request, tmp_path / "whole")
    with monkeypatch.context() as patch:
        slow_copies(patch)
        train(request, tmp_path / "slow", stop_after=7)
        train(request, tmp_path / "slow")
    assert_same_run(tmp_path / "slow", tmp_path / "whole")
    ids, base = tables[0].ids, read_file(model, "model.safetensors").tensors[TABLE]
    seen = [base]
    for step in range(2, STEPS + 1):  # the rate of the first step is 0
        (mine, rows), (theirs, _) = (files(tmp_path / run, step) for run in ("slow", "whole"))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
        assert torch.equal(mine[TABLE][ids], rows)
        assert torch.equal(mine[TABLE].index_copy(0, ids, base[ids]), base), "a row that is not in use has moved"
        assert not any(torch.equal(mine[TABLE], other) for other in seen), "it is not of this step"
        seen.append(mine[TABLE])


def merging(job: Job, table: ActiveTable) -> Job:
    """Make each step as one might: the trained rows written into the table, which is then looked up."""

    def gradients(batch: Any, scope: Any) -> Tensor:
        table.weight.copy_(table.whole())
        assert job.gradients is not None
        return job.gradients(batch, scope)

    return replace(job, gradients=gradients)


def test_a_step_that_writes_into_the_table_is_found_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    active(monkeypatch, merging)
    slow_copies(monkeypatch)
    with pytest.raises(RuntimeError, match=f"{TABLE} was changed while a commit was copying it"):
        train(asked(model, **ALL), tmp_path / "run")


def test_a_run_is_verified(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    active(monkeypatch)
    request = on_file(tmp_path, model)
    train(request, tmp_path / "run", stop_after=5)
    train(request, tmp_path / "run")
    found = verify(tmp_path / "run", everything=True)
    assert not found.problems
    assert found.tensors_identical == found.tensors_compared > 0
    with monkeypatch.context() as patch:
        active(patch, left_out)
        train(request, tmp_path / "stale")
    problems = verify(tmp_path / "stale", everything=True).problems
    assert [(problem.step, problem.differs) for problem in problems] == [
        (step, f"encoder.backbone.model.{TABLE}") for step in (5, STEPS, STEPS)
    ], "two checkpoints and the finished model"


def on_file(folder: Path, model: Path) -> dict[str, Any]:
    path = folder / "train.json"
    path.write_text(json.dumps(asked(model)["train_data"]), encoding="utf-8")
    return asked(model, train_data=str(path), save_steps=5)


def test_a_fork_goes_on_with_the_rows(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    active(monkeypatch)
    request = on_file(tmp_path, model)
    train(request, tmp_path / "whole")
    train(request, tmp_path / "stopped", stop_after=5)
    fork(tmp_path / "stopped", tmp_path / "forked", {})
    train(request, tmp_path / "forked")
    assert final_state(tmp_path / "forked") == final_state(tmp_path / "whole")


def test_a_phase_that_trains_every_name_leaves_the_table_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        active(patch)
        train(asked(model), tmp_path / "rows")
    active(monkeypatch, lambda job, table: replace(job, phases=(replace(job.phases[0], trains=lambda name: True),)))
    train(asked(model), tmp_path / "every-name")
    assert step_records(tmp_path / "every-name") == step_records(tmp_path / "rows")
    mine, theirs = final_state(tmp_path / "every-name"), final_state(tmp_path / "rows")
    assert mine == theirs
