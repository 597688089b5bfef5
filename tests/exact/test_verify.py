"""`verify`: an honest run passes in every window; whatever was changed, with valid digests too, is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.exact.runs import assert_same_run, train
from tests.exact.test_best_model import choosing
from tests.exact.test_controls import flip_a_bit, zero_a_moment
from tests.exact.test_embed import STEPS, values
from tests.tiny import make_model_folder, make_rows
from tests.unit.cli.bad_input import listing
from unbroken.base.errors import CannotContinueError, ConfigError, VerificationError
from unbroken.run import digests, environment
from unbroken.run import verify as replaying
from unbroken.run.report import Event, Stepped
from unbroken.run.stop import StopRequest
from unbroken.run.verification import Verification
from unbroken.step.adamw import AdamW
from unbroken.store.checkpoints import Image, Placed, Restored, read_checkpoint
from unbroken.store.commit import Staging, write_checkpoint
from unbroken.store.journal import encode_record
from unbroken.store.lock import RunLock
from unbroken.tasks.train import Request, carry_out
from unbroken.tasks.verify import verify

SAVED = {"save_steps": 7, "save_total_limit": 9}
CHECKPOINTS = [7, 14, 21, 28, STEPS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and two runs: one left alone, one stopped after 16 of its steps."""
    root = tmp_path_factory.mktemp("verify")
    make_model_folder(root / "model")
    write_rows(root / "train.json", make_rows(58))
    train(asked(root), root / "whole")
    train(asked(root), root / "stopped", stop_after=16)
    return root


@pytest.fixture
def work(place: Path, tmp_path: Path) -> Path:
    """A copy of that folder's content, to be changed."""
    shutil.copytree(place, tmp_path / "work")
    return tmp_path / "work"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def asked(root: Path, **changes: Any) -> dict[str, Any]:
    return values(root / "model") | {"train_data": str(root / "train.json")} | SAVED | changes


def moved(root: Path) -> dict[str, str]:
    """Where the inputs of a copied folder are."""
    return {"model": str(root / "model"), "train_data": str(root / "train.json")}


def renew(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change tensors of one checkpoint and renew every digest, so that it verifies."""
    places = json.loads((folder / "MANIFEST.json").read_bytes())
    restored = read_checkpoint(folder)
    change(restored.tensors)
    placed = {
        name: Placed(places["tensors"][name]["file"], places["tensors"][name]["key"], tensor)
        for name, tensor in restored.tensors.items()
    }
    shutil.rmtree(folder)
    image = Image(restored.step, placed, restored.documents, restored.state)
    write_checkpoint(folder.parent, Staging().take(image, restored.mark), places["run_id"], lambda: None)


def change_record(run: Path, kind: str, number: int, **changes: Any) -> None:
    """Change one record of the journal and renew its sum."""
    lines = []
    for line in (run / "journal.jsonl").read_bytes().splitlines():
        record = json.loads(line)
        record.pop("sum")
        if record["kind"] == kind and record.get("n", record.get("segment")) == number:
            assert all(record[key] != value for key, value in changes.items())
            record |= changes
        lines.append(encode_record(record))
    (run / "journal.jsonl").write_bytes(b"".join(lines))


def first(found: Verification) -> str:
    assert isinstance(found.failure, VerificationError)
    return str(found.failure)


def test_the_whole_of_an_honest_run(place: Path) -> None:
    before = listing(place)
    found = verify(place / "whole", everything=True)
    assert found.failure is None
    assert found.good_checkpoints == found.checkpoints == found.proved_marks == CHECKPOINTS
    assert (found.identical_steps, found.recorded_steps) == (STEPS, STEPS)
    (replay,) = found.replays
    assert (replay.start, replay.first, replay.last, replay.origin) == (0, 1, STEPS, "the base model")
    assert replay.checkpoints == CHECKPOINTS
    assert replay.model
    held = len(read_checkpoint(place / "whole" / "checkpoints" / "00000030").tensors)
    assert found.tensors_compared == found.tensors_identical > held * len(CHECKPOINTS)
    assert (found.data, found.base_model) == ("as recorded", "as recorded")
    assert found.model_files is not None
    assert found.model_files > 5
    assert not found.unchecked
    assert listing(place) == before, "something was written"


@pytest.mark.parametrize("step", [0, 3, *CHECKPOINTS[:-1], 29])
def test_each_window_of_an_honest_run(step: int, place: Path) -> None:
    found = verify(place / "whole", step=step)
    assert found.failure is None
    (replay,) = found.replays
    assert replay.start == max([0, *(saved for saved in CHECKPOINTS if saved <= step)])
    assert replay.last == min(saved for saved in CHECKPOINTS if saved > step)
    assert replay.checkpoints == [replay.last]
    assert found.identical_steps == replay.last - replay.start
    assert any("were not replayed" in text for text in found.unchecked) == (replay.last - replay.start < STEPS)


def test_the_window_chosen_without_a_step(place: Path) -> None:
    found = verify(place / "whole")
    (replay,) = found.replays
    assert (replay.start, replay.last, replay.chosen) == (7, 14, "from the oldest checkpoint to the next one")
    assert found.failure is None
    assert "steps 1 to 7, 15 to 30 were not replayed" in found.unchecked
    assert verify(place / "whole", steps=3).replays[0].last == 10
    shorter = verify(place / "whole", step=14, steps=2)
    assert (shorter.replays[0].first, shorter.replays[0].last, shorter.tensors_compared) == (15, 16, 0)


def test_the_step_foreseen_when_a_run_stopped(place: Path) -> None:
    found = verify(place / "stopped", step=16)
    assert found.failure is None
    assert found.replays[0].canary
    assert (found.identical_steps, found.tensors_compared) == (0, 0)
    everything = verify(place / "stopped", everything=True)
    assert everything.failure is None
    assert (everything.identical_steps, everything.replays[0].canary) == (16, True)


def test_a_run_of_which_only_the_last_checkpoint_is_left(work: Path) -> None:
    for step in CHECKPOINTS[:-1]:
        shutil.rmtree(work / "whole" / "checkpoints" / f"{step:08d}")
    found = verify(work / "whole", inputs=moved(work))
    assert found.failure is None
    assert (found.replays[0].start, found.replays[0].last) == (0, 20)
    assert verify(work / "whole", step=20, inputs=moved(work)).replays[0].model


def test_a_read_only_run_and_a_cache_that_is_damaged_or_gone(work: Path) -> None:
    run = work / "whole"
    for ids in (run / "cache").rglob("ids.npy"):
        ids.write_bytes(ids.read_bytes()[:-1])
    folders = [path for path in (run, *run.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    before = listing(run)
    try:
        assert verify(run, inputs=moved(work)).failure is None
        assert listing(run) == before
    finally:
        for folder in folders:
            folder.chmod(0o755)
    shutil.rmtree(run / "cache")
    assert verify(run, inputs=moved(work)).failure is None
    assert not (run / "cache").exists()


def test_a_run_that_is_held_by_another_process(work: Path) -> None:
    lock = RunLock(work / "stopped")
    lock.acquire()
    try:
        with (work / "stopped" / "journal.jsonl").open("ab") as journal:
            journal.write(b'{"grad_norm":1.0,"ids":"half a rec')  # being written now
        before = listing(work)
        found = verify(work / "stopped", everything=True, inputs=moved(work))
        assert found.failure is None
        assert listing(work) == before
    finally:
        lock.release()


def test_a_run_that_trains_meanwhile(place: Path, work: Path) -> None:
    """Verified in the middle of its steps, by the same process even: it goes on as if nobody had looked."""
    run = work / "meanwhile"
    found: list[Verification] = []

    def look(event: Event) -> None:
        if isinstance(event, Stepped) and event.step in (3, 18):
            found.append(verify(run, everything=True))

    assert carry_out(Request({**asked(work), "output_dir": str(run)}), look, StopRequest()).finished
    assert [one.failure for one in found] == [None, None]
    assert [one.identical_steps for one in found] == [3, 18]
    assert 7 in found[1].replays[0].checkpoints
    assert_same_run(run, place / "whole")


@pytest.mark.parametrize("moment", [digests, replaying], ids=["digests compared", "replay begun"])
def test_a_checkpoint_that_is_retired_meanwhile(moment: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone while it is read: it is nobody's mistake, and the others are verified."""
    original = read_checkpoint

    def retired(folder: Path, run_id: str) -> Restored:
        if folder.name == "00000007":
            shutil.rmtree(folder)
        return original(folder, run_id)

    monkeypatch.setattr(moment, "read_checkpoint", retired)
    found = verify(work / "whole", inputs=moved(work))
    assert found.failure is None
    assert found.checkpoints == CHECKPOINTS[1:]
    assert (found.replays[0].start, found.replays[0].last) == (14, 21)


def test_a_finished_model_that_is_not_the_last_step(work: Path) -> None:
    write_rows(work / "eval.json", make_rows(20, seed=3))
    best = choosing(work / "model", train_data=str(work / "train.json"), eval_data=str(work / "eval.json"), **SAVED)
    train(best, work / "best")
    found = verify(work / "best", everything=True)
    assert found.failure is None
    finish = json.loads((work / "best" / "journal.jsonl").read_bytes().splitlines()[-1])
    assert 0 < finish["best"] < STEPS
    assert found.replays[0].model
    assert found.evaluations == 9
    (weights,) = (work / "best" / "model").glob("*.safetensors")
    other = work / "whole" / "model" / weights.name
    weights.write_bytes(other.read_bytes())
    assert "does not have the SHA-256 recorded" in first(verify(work / "best"))


def test_a_flipped_bit(work: Path) -> None:
    path = work / "whole" / "checkpoints" / "00000014" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    found = verify(work / "whole", inputs=moved(work))
    assert "checkpoint 14 does not verify" in first(found)
    assert "digest differs" in first(found)
    assert 14 not in found.good_checkpoints
    assert found.replays[0].identical == 14, "from checkpoint 7 to the next good one"


def test_a_changed_tensor_with_renewed_digests_is_found_where_it_was_reached(work: Path) -> None:
    def nudge(tensors: dict[str, Tensor]) -> None:
        name = sorted(name for name in tensors if name.endswith("query.weight/exp_avg"))[0]
        tensors[name].view(-1)[5] += 0.25

    renew(work / "whole" / "checkpoints" / "00000021", nudge)
    assert verify(work / "whole", inputs=moved(work)).failure is None, "no step near it was replayed"
    for window in ({"everything": True}, {"step": 14}):
        found = verify(work / "whole", inputs=moved(work), **window)
        (problem,) = found.problems
        assert problem.step == 21
        assert problem.differs.endswith("query.weight/exp_avg")
        assert "1 of 1,024 elements differ, by up to 0.25" in problem.what
        assert "its digests renewed" in problem.why
        assert found.tensors_identical == found.tensors_compared - 1


@pytest.mark.parametrize(("change", "step"), [(flip_a_bit, 15), (zero_a_moment, 16)])
def test_a_changed_tensor_is_found_in_the_steps_after_it(change: Any, step: int, work: Path) -> None:
    renew(work / "whole" / "checkpoints" / "00000014", change)
    found = verify(work / "whole", step=14, inputs=moved(work))
    assert found.problems[0].step == step
    assert found.problems[0].differs in ("loss", "grad_norm")
    assert f"step {step} does not repeat" in first(found)
    assert "versions, processor and threads are those of the segment that made it" in first(found)


def test_another_state_of_the_optimizer_with_renewed_digests(work: Path) -> None:
    folder = work / "whole" / "checkpoints" / "00000014"
    restored = read_checkpoint(folder)
    restored.state["groups"][0]["lr"] *= 2
    places = json.loads((folder / "MANIFEST.json").read_bytes())
    placed = {
        key: Placed(places["tensors"][key]["file"], places["tensors"][key]["key"], tensor)
        for key, tensor in restored.tensors.items()
    }
    shutil.rmtree(folder)
    image = Image(14, placed, restored.documents, restored.state)
    write_checkpoint(folder.parent, Staging().take(image, restored.mark), places["run_id"], lambda: None)
    assert "'groups' of checkpoint 14 is not what the steps give" in first(verify(work / "whole", inputs=moved(work)))


def test_a_changed_record_with_a_renewed_sum(work: Path) -> None:
    change_record(work / "whole", "step", 10, loss=1.5)
    found = verify(work / "whole", inputs=moved(work))
    assert "their chain differs" in first(found)
    assert found.proved_marks == [7], "what came before the change is still proved"
    assert any(problem.step == 10 and problem.differs == "loss" for problem in found.problems)


def test_a_changed_record_that_no_mark_covers(work: Path) -> None:
    """The records after the last commit are covered by their sums alone: only the replay finds this out."""
    run = work / "stopped"
    shutil.rmtree(run / "checkpoints" / "00000016")
    change_record(run, "step", 16, grad_norm=0.5)
    assert verify(run, steps=1, inputs=moved(work)).failure is None
    found = verify(run, step=14, inputs=moved(work))
    assert "step 16 does not repeat: grad_norm was 0.5, is now" in first(found)
    assert "the backward pass" in first(found)


def test_swapped_checkpoints(work: Path) -> None:
    home = work / "whole" / "checkpoints"
    (home / "00000007").rename(home / "aside")
    (home / "00000014").rename(home / "00000007")
    (home / "aside").rename(home / "00000014")
    found = verify(work / "whole", inputs=moved(work))
    assert "holds the checkpoint of step 14" in first(found)
    assert found.good_checkpoints == [21, 28, STEPS]


def test_a_checkpoint_of_another_run(work: Path) -> None:
    shutil.rmtree(work / "whole" / "checkpoints" / "00000007")
    shutil.copytree(work / "stopped" / "checkpoints" / "00000007", work / "whole" / "checkpoints" / "00000007")
    assert "belongs to another run" in first(verify(work / "whole", inputs=moved(work)))


def test_a_damaged_line_of_the_journal_leaves_steps_unproved(work: Path) -> None:
    journal = work / "whole" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    (place,) = [i for i, line in enumerate(lines) if b'"n":9,' in line and b'"kind":"step"' in line]
    lines[place] = lines[place].replace(b'"n":9,', b'"n":8,')
    journal.write_bytes(b"".join(lines))
    found = verify(work / "whole", inputs=moved(work))
    assert "is damaged and was skipped; steps 9 have no record: unproved" in first(found)
    assert found.unproved_steps == [9]
    assert found.proved_marks == [7]
    assert (found.replays[0].identical, found.replays[0].unrecorded) == (6, [9])


def test_a_changed_row(work: Path) -> None:
    rows = make_rows(58)
    rows[41] = {**rows[41], "positive": "castle castle"}
    write_rows(work / "train.json", rows)
    found = verify(work / "whole", inputs=moved(work))
    assert "the first row that differs is row 42" in first(found)
    assert not found.replays
    assert "no step was replayed: with other inputs it would be another run" in found.unchecked


def test_changed_base_weights(work: Path) -> None:
    shutil.rmtree(work / "model")
    make_model_folder(work / "model", seed=1)
    found = verify(work / "whole", inputs=moved(work))
    assert "model is not what the run was started with" in first(found)
    assert found.base_model == "changed"
    assert not found.replays


def test_inputs_that_are_gone(work: Path) -> None:
    shutil.rmtree(work / "model")
    found = verify(work / "whole", inputs=moved(work))
    assert isinstance(found.failure, CannotContinueError)
    assert "was not replayed: model: there is no folder" in str(found.failure)
    assert found.good_checkpoints == CHECKPOINTS, "the digests were compared all the same"


def test_a_changed_run_file(work: Path) -> None:
    path = work / "whole" / "run.json"
    content = path.read_bytes()
    for changed in (content.replace(b'"seed": 7', b'"seed": 8'), None):
        path.write_bytes(changed) if changed else path.unlink()
        found = verify(work / "whole", inputs=moved(work))
        assert isinstance(found.failure, VerificationError)
        assert "run.json is " + ("damaged or was edited" if changed else "missing") in first(found)
        assert len(found.problems) == 1
        assert found.identical_steps, "the run is told by its copy"
    path.write_bytes(content)
    copy = path.with_name(".run.json")
    copy.write_bytes(content[:-9])
    assert "run.json is not a copy of run.json" in first(verify(work / "whole", inputs=moved(work)))
    path.write_bytes(content[:-9])
    with pytest.raises(VerificationError, match="is damaged or was edited"):
        verify(work / "whole", inputs=moved(work))


def test_other_arithmetic_is_found_and_the_environment_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another processor or thread count may do, done for certain: one gradient, by a little."""
    original = AdamW.step

    def nudged(self: Any, *arguments: Any) -> Any:
        gradient = next(p.grad for group in self.param_groups for p in group["params"] if p.grad is not None)
        gradient.mul_(1 + 1e-4)
        return original(self, *arguments)

    monkeypatch.setattr(AdamW, "step", nudged)
    numerics = environment.numerics
    monkeypatch.setattr(environment, "numerics", lambda device: numerics(device) | {"threads": 2, "cpu": "another"})
    found = verify(place / "whole")
    assert found.environment_changes == [f"cpu: {environment.cpu_model()} -> another", "threads: 1 -> 2"]
    assert found.problems[0].differs in ("loss", "grad_norm") or "does not hold what the steps give" in first(found)
    assert "the environment is not the one it was made in: cpu: " in first(found)


def test_the_threads_recorded_are_pinned_whatever_the_process_was_given(place: Path) -> None:
    torch.set_num_threads(2)
    found = verify(place / "whole", steps=2)
    assert torch.get_num_threads() == 1
    assert found.failure is None
    assert not found.environment_changes


def test_a_run_that_drifted_is_replayed_on_both_sides_and_not_across(work: Path) -> None:
    run = work / "stopped"
    renew(run / "checkpoints" / "00000016", flip_a_bit)
    assert train(asked(work), run, accept_drift=True).finished
    found = verify(run, everything=True, inputs=moved(work))
    assert found.drifts == [17]
    assert [(replay.start, replay.last) for replay in found.replays] == [(0, 16), (21, 30)]
    assert found.problems[0].step == 16, "the checkpoint that was changed before the drift"
    assert found.problems[0].differs.endswith("query.weight")
    assert len(found.problems) == 1, "after it the run is consistent with itself"
    assert "steps 17 to 21 were not replayed" in found.unchecked
    assert verify(run, step=21, inputs=moved(work)).failure is None
    refused = verify(run, step=18, inputs=moved(work))
    assert "no state from which step 19 could be made again is there" in str(refused.failure)


def test_a_run_that_went_back_to_an_older_checkpoint(work: Path) -> None:
    older = work / "stopped" / "checkpoints" / "00000007"
    assert train(asked(work), work / "stopped", resume_from_checkpoint=str(older)).finished
    found = verify(work / "stopped", everything=True, inputs=moved(work))
    assert found.failure is None
    assert found.identical_steps == STEPS


def test_what_cannot_be_asked(work: Path) -> None:
    with pytest.raises(ConfigError, match="seed cannot be set here"):
        verify(work / "whole", inputs={"seed": 8})
    with pytest.raises(ConfigError, match="is no run"):
        verify(work)
    beyond = verify(work / "whole", step=STEPS, inputs=moved(work))
    assert "nothing is recorded after step 30" in str(beyond.failure)
    assert isinstance(beyond.failure, CannotContinueError)
