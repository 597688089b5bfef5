"""The model an evaluation chose survives every stop too, and what chooses it belongs to the contract."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.exact.test_embed import values
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import CannotContinueError, StorageError
from unbroken.run.folder import RunFolder
from unbroken.run.report import Event, Notice
from unbroken.run.stop import StopRequest
from unbroken.tasks.fork import fork
from unbroken.tasks.train import Request, carry_out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def choosing(model: Path, **changes: Any) -> dict[str, Any]:
    """At this rate the training rows are learned by heart: the best step on others is not the last one."""
    best = {"eval_data": make_rows(20, seed=3), "eval_steps": 4, "load_best_model_at_end": True}
    return values(model, learning_rate=2e-2, **best) | changes


def test_the_best_step_is_kept_through_every_stop(model: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    train(choosing(model), whole)
    finish = (whole / "journal.jsonl").read_text().splitlines()[-1]
    assert '"best":' in finish
    assert '"best":30,' not in finish, "the last step is the best: the test shows nothing"
    for last in (1, 4, 5, 8, 13, 20, 28, 29):
        stopped = tmp_path / f"stopped-after-{last}"
        train(choosing(model), stopped, stop_after=last)
        assert train(choosing(model), stopped).finished
        assert_same_run(stopped, whole)


@pytest.mark.parametrize("change", [{"eval_steps": 8}, {"eval_data": make_rows(21, seed=3)}], ids=["steps", "data"])
def test_another_way_to_choose_is_another_run(change: dict[str, Any], model: Path, tmp_path: Path) -> None:
    train(choosing(model), tmp_path / "run", stop_after=5)
    with pytest.raises(CannotContinueError, match=r"eval_(steps|data)"):
        train(choosing(model, **change), tmp_path / "run")


def test_a_finished_run_needs_its_inputs_no_more(model: Path, tmp_path: Path) -> None:
    gone = tmp_path / "model"
    shutil.copytree(model, gone)
    train(values(gone), tmp_path / "run")
    shutil.rmtree(gone)
    assert train(values(gone), tmp_path / "run").finished
    with pytest.raises(CannotContinueError, match="seed"):
        train(values(model, seed=9), tmp_path / "run")


def flip(checkpoint: Path) -> None:
    path = checkpoint / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {"broken": flip, "gone": shutil.rmtree}


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("best") / "whole"
    train(choosing(model), root)
    return root


def best_of(root: Path) -> int:
    return int(json.loads((root / "journal.jsonl").read_text().splitlines()[-1])["best"])


def steps_of(root: Path) -> list[int]:
    return sorted(int(path.name) for path in (root / "checkpoints").glob("[0-9]*"))


def go_on(asked: dict[str, Any], root: Path, **options: Any) -> tuple[Any, list[str]]:
    told: list[str] = []

    def report(event: Event) -> None:
        if isinstance(event, Notice):
            told.append(event.text)

    return carry_out(Request(asked | {"output_dir": str(root)}, **options), report, StopRequest()), told


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kept", [2, 99])
def test_a_lost_best_step_is_made_again(damage: str, kept: int, model: Path, whole: Path, tmp_path: Path) -> None:
    """Only going back beyond it finds it: to the checkpoint before it, or to the beginning where none is kept."""
    best, root = best_of(whole), tmp_path / "run"
    asked = choosing(model, save_steps=3, save_total_limit=kept)
    train(asked, root, stop_after=best + 2)
    assert steps_of(root)[-1] == best + 2
    earlier = max((step for step in steps_of(root) if step < best), default=0)
    assert bool(earlier) == (kept == 99)
    DAMAGE[damage](root / "checkpoints" / f"{best:08d}")
    ended, told = go_on(asked, root)
    [told] = [text for text in told if "the best so far" in text]
    assert f"going back to {f'step {earlier}' if earlier else 'the beginning'}" in told
    assert damage in told
    broken = [path.name for path in (root / "checkpoints").glob(".broken-*")]
    assert broken == [f".broken-{best:08d}-0"] * (damage == "broken")
    assert ended.finished
    assert ended.proof["replayed_steps"] == best + 2 - earlier + 1  # the canary is one of them
    assert_same_run(root, whole)


def test_going_back_survives_a_stop(model: Path, whole: Path, tmp_path: Path) -> None:
    best, root = best_of(whole), tmp_path / "run"
    train(choosing(model), root, stop_after=best + 2)
    flip(root / "checkpoints" / f"{best:08d}")
    for last in (2, best):
        train(choosing(model, save_steps=1), root, stop_after=last)
        assert best + 2 in steps_of(root), "a checkpoint yet to be made again was removed"
    ended, told = go_on(choosing(model), root)
    assert ended.finished
    assert not any("the best so far" in text for text in told), "the best step was there again: nothing to go back for"
    assert_same_run(root, whole)


def test_a_best_step_lost_at_the_very_end_is_made_again_by_the_next_start(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, root = best_of(whole), tmp_path / "run"
    train(choosing(model), root, stop_after=best + 2)

    def damaged_on_the_way(folder: RunFolder, step: int) -> dict[str, str]:
        flip(folder.root / "checkpoints" / f"{step:08d}")
        return publish(folder, step)

    publish = RunFolder.publish
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "publish", damaged_on_the_way)
        with pytest.raises(StorageError, match=f"that of step {best}, and .*digest differs") as caught:
            train(choosing(model), root)
    assert "run the same command again" in caught.value.next_step
    assert train(choosing(model), root).finished
    assert_same_run(root, whole)


def test_a_best_step_that_a_better_one_replaced_is_not_missed(model: Path, whole: Path, tmp_path: Path) -> None:
    """The best and the newest are damaged; the one before still names the best of then, removed since."""
    best, root = best_of(whole), tmp_path / "run"
    asked = choosing(model, save_steps=1, save_total_limit=3)
    train(asked, root, stop_after=best + 1)
    assert steps_of(root) == [best - 1, best, best + 1]
    flip(root / "checkpoints" / f"{best + 1:08d}")
    flip(root / "checkpoints" / f"{best:08d}")
    ended, told = go_on(asked, root)
    assert not any("the best so far" in text for text in told)
    assert ended.proof["replayed_steps"] == 3  # with the canary
    assert_same_run(root, whole)


def test_a_fork_that_can_go_back_no_further_is_refused_at_once(model: Path, whole: Path, tmp_path: Path) -> None:
    best, root = best_of(whole), tmp_path / "fork"
    train(choosing(model), tmp_path / "run", stop_after=best - 2)
    fork(tmp_path / "run", root, {key: choosing(model)[key] for key in ("train_data", "eval_data")})
    train(choosing(model, save_steps=1), root, stop_after=best + 3)
    flip(root / "checkpoints" / f"{best:08d}")
    before = (root / "journal.jsonl").read_bytes()
    with pytest.raises(CannotContinueError, match="best so far, is broken") as caught:
        train(choosing(model), root)
    assert caught.value.why
    assert f"checkpoints/{best:08d}" in caught.value.next_step
    assert (root / "journal.jsonl").read_bytes() == before
