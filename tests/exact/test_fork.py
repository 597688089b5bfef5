"""A fork begins with the parent's state, to the bit: unchanged it makes the parent's model, and the parent stays."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.optim import lr_scheduler

from tests.exact.runs import final_state, moments, step_records, train
from tests.exact.test_best_model import choosing
from tests.exact.test_embed import STEPS, values
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import CannotContinueError, ConfigError
from unbroken.run.fork import copied, read_source
from unbroken.run.report import Notice, silent
from unbroken.run.stop import StopRequest
from unbroken.store.commit import Staging, write_checkpoint
from unbroken.store.run import read_run
from unbroken.tasks.fork import Forked, fork
from unbroken.tasks.train import Request, carry_out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def on_file(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """What is asked for, with the rows in a file: a command can name them."""
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(58)), encoding="utf-8")
    return values(model, train_data=str(path), **changes)


def content(folder: Path) -> dict[str, str]:
    """Every file with its digest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def carry_on(forked: Forked, asked: dict[str, Any], **changes: Any) -> dict[str, Any]:
    ended = train({**asked, **changes}, forked.root)
    assert ended.finished
    return ended.proof


def records_from(run: Path, step: int) -> list[tuple[Any, ...]]:
    return [record for record in step_records(run) if record[0] > step]


def test_an_unchanged_fork_makes_the_parents_model(model: Path, tmp_path: Path) -> None:
    """From every checkpoint of a run that was stopped, and that goes on afterwards undisturbed."""
    asked = on_file(tmp_path, model)
    train(asked, tmp_path / "whole")
    whole = final_state(tmp_path / "whole")
    for step in (1, 9, 15, 29):
        train(asked, tmp_path / "run", stop_after=step)
        before = content(tmp_path / "run")
        forked = fork(tmp_path / "run", tmp_path / f"fork-{step}")
        assert content(tmp_path / "run") == before
        assert (forked.step, forked.changed, forked.total_steps) == (step, {}, STEPS)
        assert "to the bit" in forked.meaning[0]
        proof = carry_on(forked, asked)
        assert records_from(forked.root, 0) == records_from(tmp_path / "whole", step)
        assert final_state(forked.root) == whole
        assert moments(forked.root).keys() == moments(tmp_path / "whole").keys()
        assert f"forked from {tmp_path / 'run'} at step {step} (changed: nothing)" in proof["verdict"]
        assert "uninterrupted" in proof["verdict"]


def test_a_fork_may_be_interrupted_like_any_run(model: Path, tmp_path: Path) -> None:
    asked = on_file(tmp_path, model)
    train(asked, tmp_path / "run", stop_after=9)
    changes = {"learning_rate": 2e-3}
    whole = fork(tmp_path / "run", tmp_path / "whole", changes)
    carry_on(whole, asked, **changes)
    for last in (10, 16, 29):
        stopped = fork(tmp_path / "run", tmp_path / f"stopped-{last}", changes)
        train({**asked, **changes}, stopped.root, stop_after=last)
        proof = carry_on(stopped, asked, **changes)
        assert proof["restores"] == 1
        assert "1 replayed step identical" in proof["verdict"]
        assert step_records(stopped.root) == step_records(whole.root)
        assert final_state(stopped.root) == final_state(whole.root)


def test_a_longer_run_on_a_constant_rate_shares_the_parents_steps(model: Path, tmp_path: Path) -> None:
    asked = on_file(tmp_path, model, lr_scheduler_type="constant", warmup_ratio=0.0)
    train(asked, tmp_path / "run")
    long = {"num_train_epochs": 3.0}
    train({**asked, **long}, tmp_path / "long")
    ended = fork(tmp_path / "run", tmp_path / "ended", long)
    assert ended.step == STEPS
    assert f"up to step {STEPS} those of {tmp_path / 'run'}" in ended.meaning[-1]
    train(asked, tmp_path / "early", stop_after=9)
    early = fork(f"{tmp_path / 'early'}@9", tmp_path / "fork", long)
    for forked in (ended, early):
        carry_on(forked, asked, **long)
        assert records_from(forked.root, 0) == records_from(tmp_path / "long", forked.step)
        assert final_state(forked.root) == final_state(tmp_path / "long")


def test_a_changed_schedule_is_another_run(model: Path, tmp_path: Path) -> None:
    """The control: on a linear schedule the number of steps is part of every rate."""
    asked = on_file(tmp_path, model)
    train(asked, tmp_path / "whole")
    train(asked, tmp_path / "run", stop_after=9)
    forked = fork(tmp_path / "run", tmp_path / "fork", {"max_steps": 40})
    assert "exact by itself from step 9 on" in forked.meaning[-1]
    carry_on(forked, asked, max_steps=40)
    mine, theirs = records_from(forked.root, 0)[0], records_from(tmp_path / "whole", 9)[0]
    assert mine[:4] == theirs[:4], "the same state and examples give the same loss"
    assert mine[4] != theirs[4]
    assert records_from(forked.root, 0)[1][2] != records_from(tmp_path / "whole", 9)[1][2]


def test_new_options_of_the_optimizer_count(model: Path, tmp_path: Path) -> None:
    """The checkpoint holds the old ones; a fork that kept them would change nothing."""
    asked = on_file(tmp_path, model)
    train(asked, tmp_path / "run", stop_after=9)
    for key, value in {"weight_decay": 0.5, "adam_beta1": 0.5, "adam_beta2": 0.5, "adam_epsilon": 0.1}.items():
        same, other = (
            fork(tmp_path / "run", tmp_path / f"{name}-{key}", change)
            for name, change in (("same", {}), ("other", {key: value}))
        )
        carry_on(same, asked)
        carry_on(other, asked, **{key: value})
        first, second = records_from(same.root, 0), records_from(other.root, 0)
        assert first[0] == second[0], "the first step's loss comes before its update"
        assert first[1][2] != second[1][2], f"{key} was not taken"


def test_smaller_chunks_give_the_same_loss_but_not_its_bits(tmp_path: Path) -> None:
    """Without dropout, so that only the rounding differs."""
    model = make_model_folder(tmp_path / "still", dropout=0.0)
    asked = on_file(tmp_path, model)
    train(asked, tmp_path / "whole")
    train(asked, tmp_path / "run", stop_after=9)
    forked = fork(tmp_path / "run", tmp_path / "fork", {"micro_batch_size": 2})
    assert "equal in meaning, not in bits" in forked.meaning[0]
    carry_on(forked, asked, micro_batch_size=2)
    mine, theirs = records_from(forked.root, 0), records_from(tmp_path / "whole", 9)
    assert [record[1] for record in mine] == [record[1] for record in theirs], "the same examples"
    assert [record[2] for record in mine] == pytest.approx([record[2] for record in theirs], rel=1e-3)
    assert mine != theirs


def test_an_unchanged_fork_keeps_the_best_model(model: Path, tmp_path: Path) -> None:
    """The best step lies before the fork, so its checkpoint comes along; under another rate it is not the run's."""
    asked = choosing(model)
    train(asked, tmp_path / "whole")
    finish = json.loads((tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines()[-1])
    assert finish["best"] < finish["n"], "the last step is the best: the test shows nothing"
    train(asked, tmp_path / "run", stop_after=finish["best"] + 1)
    rows = {key: asked[key] for key in ("train_data", "eval_data")}
    forked = fork(tmp_path / "run", tmp_path / "fork", rows)
    assert forked.changed == {}
    carry_on(forked, asked)
    assert final_state(forked.root) == final_state(tmp_path / "whole")
    other = fork(tmp_path / "run", tmp_path / "other", {**rows, "learning_rate": 1e-5})
    assert [path.name for path in sorted((other.root / "checkpoints").iterdir())] == [f"{other.step:08d}"]


def test_what_a_fork_records(model: Path, tmp_path: Path) -> None:
    asked = on_file(tmp_path, model)
    train(asked, tmp_path / "run", stop_after=9)
    forked = fork(tmp_path / "run", tmp_path / "fork", {"learning_rate": 2e-3, "batch_size": 8})
    parent, document = read_run(tmp_path / "run"), read_run(forked.root)
    assert parent is not None
    assert document is not None
    assert document["run_id"] == forked.run_id != parent["run_id"]
    assert document["parent"] == {
        "kind": "fork",
        "run": str(tmp_path / "run"),
        "run_id": parent["run_id"],
        "step": 9,
        "manifest": forked.parent["manifest"],
        "changed": {"batch_size": [4, 8], "learning_rate": [1e-3, 2e-3]},
        "parent": None,
    }
    assert document["config"]["output_dir"] == str(forked.root)
    records = [json.loads(line) for line in (forked.root / "journal.jsonl").read_bytes().splitlines()]
    assert [(record["kind"], record["n"]) for record in records] == [("fork", 9), ("commit", 9)]
    again = fork(forked.root, tmp_path / "again")
    assert again.parent["parent"] == document["parent"]
    carry_on(again, asked, learning_rate=2e-3, batch_size=8)


def test_the_parents_mirror_stays_the_parents(model: Path, tmp_path: Path) -> None:
    asked = on_file(tmp_path, model, mirror=str(tmp_path / "mirror"))
    train(asked, tmp_path / "run", stop_after=9)
    before = content(tmp_path / "mirror")
    assert before, "nothing was mirrored: the test shows nothing"
    forked = fork(tmp_path / "run", tmp_path / "fork")
    assert train({"task": "embed"}, forked.root).finished
    assert content(tmp_path / "mirror") == before
    for taken in (tmp_path / "mirror", f"local://{tmp_path}/mirror", tmp_path / "run"):
        with pytest.raises(CannotContinueError, match="holds another run"):
            fork(tmp_path / "run", tmp_path / "own", {"mirror": str(taken)})
    assert not (tmp_path / "own").exists()
    own = fork(tmp_path / "run", tmp_path / "own", {"mirror": str(tmp_path / "other")})
    assert train({"task": "embed"}, own.root).finished
    assert final_state(tmp_path / "other") == final_state(own.root) == final_state(forked.root)


def test_a_fork_whose_checkpoints_are_gone_does_not_start_over(model: Path, tmp_path: Path) -> None:
    asked = on_file(tmp_path, model)
    train(asked, tmp_path / "run", stop_after=9)
    forked = fork(tmp_path / "run", tmp_path / "fork")
    (forked.root / "journal.jsonl").unlink()
    shutil.rmtree(forked.root / "checkpoints")
    with pytest.raises(CannotContinueError, match="its checkpoints are gone"):
        train(asked, forked.root)


def test_the_base_model_may_be_gone(tmp_path: Path) -> None:
    """After a stop the base model is deleted, and the token cache too: the checkpoint's own model stands in."""
    base = make_model_folder(tmp_path / "base")
    asked = on_file(tmp_path, base)
    train(asked, tmp_path / "whole")
    for name, without_cache in (("kept", False), ("cleared", True)):
        train(asked, tmp_path / name, stop_after=9)
        base.rename(tmp_path / "elsewhere")
        if without_cache:
            shutil.rmtree(tmp_path / name / "cache")
        told: list[Any] = []
        request = Request({**asked, "output_dir": str(tmp_path / name)})
        assert carry_out(request, told.append, StopRequest()).finished
        (line,) = [event.text for event in told if isinstance(event, Notice) and "base model" in event.text]
        assert line == f"the base model {base} is gone; the checkpoint of step 9 holds all of it, and is used instead"
        assert step_records(tmp_path / name) == step_records(tmp_path / "whole")
        assert final_state(tmp_path / name) == final_state(tmp_path / "whole")
        (tmp_path / "elsewhere").rename(base)


def test_a_fork_without_the_base_model(tmp_path: Path) -> None:
    base = make_model_folder(tmp_path / "base")
    asked = on_file(tmp_path, base)
    train(asked, tmp_path / "whole")
    train(asked, tmp_path / "run", stop_after=9)
    shutil.rmtree(base)
    forked = fork(tmp_path / "run", tmp_path / "fork")
    carry_on(forked, asked)
    assert final_state(forked.root) == final_state(tmp_path / "whole")


def test_a_base_model_that_is_gone_too_early_or_is_another(tmp_path: Path) -> None:
    base = make_model_folder(tmp_path / "base")
    asked = on_file(tmp_path, base)
    train(asked, tmp_path / "run", stop_after=9)
    train(asked, tmp_path / "early", stop_after=1)
    shutil.rmtree(tmp_path / "early" / "checkpoints")
    shutil.rmtree(base)
    with pytest.raises(ConfigError, match="there is no folder"):
        train(asked, tmp_path / "early")
    with pytest.raises(ConfigError, match="there is no folder"):
        train(asked, tmp_path / "new")
    for path in (tmp_path / "run" / "checkpoints").glob("*/model/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="there is no folder"):
        train(asked, tmp_path / "run")
    make_model_folder(base, seed=1)
    with pytest.raises(CannotContinueError, match=r"model: content .* -> content"):
        train(asked, tmp_path / "run")


def test_another_tokenizer_in_the_checkpoint_is_refused(tmp_path: Path) -> None:
    """A forged checkpoint: its tokenizer is not the one the run began with, its digests agree."""
    base = make_model_folder(tmp_path / "base")
    asked = on_file(tmp_path, base)
    train(asked, tmp_path / "run", stop_after=9)
    shutil.rmtree(base)
    (folder,) = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    (document,) = [read_run(tmp_path / "run")]
    assert document is not None
    source = read_source(tmp_path / "run", 9)
    image = copied(source)
    name = "model/tokenizer.json"
    forged = dict(image.documents) | {name: image.documents[name].replace(b"river", b"rivet")}
    shutil.rmtree(folder)
    snapshot = Staging().take(replace(image, documents=forged), source.restored.mark)
    write_checkpoint(tmp_path / "run" / "checkpoints", snapshot, document["run_id"], lambda: None)
    with pytest.raises(CannotContinueError, match=r"tokenizer: content .* -> content"):
        train(asked, tmp_path / "run")


def test_the_run_of_a_loop_is_copied(model: Path, tmp_path: Path) -> None:
    from tests.exact.test_loop import Script

    def script() -> Script:
        return Script(model, schedule=lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 30))

    script().run(tmp_path / "whole")
    script().run(tmp_path / "run", stop_after=11)
    with pytest.raises(CannotContinueError, match="the run of a loop of your own, and 'seed' stands in your script"):
        fork(tmp_path / "run", tmp_path / "fork", {"seed": 3})
    forked = fork(tmp_path / "run", tmp_path / "fork", report=silent)
    loop = script().run(tmp_path / "fork")
    assert loop.ended.finished
    assert f"forked from {tmp_path / 'run'} at step 11" in loop.ended.proof["verdict"]
    assert records_from(forked.root, 0) == records_from(tmp_path / "whole", 11)
    assert final_state(forked.root) == final_state(tmp_path / "whole")
