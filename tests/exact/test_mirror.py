"""A machine is lost with the run on it: the same command on another one restores it from the mirror, bit for bit."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.exact.runs import assert_same_run, final_state
from tests.exact.test_controls import flip_a_bit, tamper
from tests.exact.test_embed import values
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import BusyError, CannotContinueError, ConfigError, StorageError
from unbroken.run import folder as run_folder
from unbroken.run import mirroring
from unbroken.run.findings import flat
from unbroken.run.report import Began, Ended, Event, Mirrored, Notice, Replayed, Stepped
from unbroken.run.stop import StopRequest
from unbroken.store import files, mirror, place
from unbroken.store.journal import Journal, encode_record
from unbroken.store.place import FolderPlace, checkpoint_path, open_place
from unbroken.tasks.check import check
from unbroken.tasks.train import Request, carry_out

STEPS = 30


class Lost(BaseException):
    """The machine is gone: nothing after this instant happens on it."""


class Show:
    """What a run reported, and the instant at which its machine is lost."""

    def __init__(self, stop_after: int | None = None, lose_after: int | None = None) -> None:
        self.events: list[Event] = []
        self.stop, self.stop_after, self.lose_after = StopRequest(), stop_after, lose_after

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Stepped) and event.step == self.stop_after:
            self.stop.ask("the test")
        if isinstance(event, Stepped) and event.step == self.lose_after:
            raise Lost

    def all(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def notices(self) -> str:
        return "\n".join(notice.text for notice in self.all(Notice))


def train(asked: dict[str, Any], output: Path, **options: Any) -> tuple[Ended, Show]:
    show = Show(options.pop("stop_after", None), options.pop("lose_after", None))
    request = Request({**asked, "output_dir": str(output)}, **options)
    return carry_out(request, show, show.stop), show


def lose(asked: dict[str, Any], output: Path, after: int) -> None:
    """Train, and lose the machine in the middle: whatever was under way to the mirror stays half done."""
    with pytest.raises(Lost):
        train(asked, output, lose_after=after)
    shutil.rmtree(output)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    assert train(values(model), output)[0].finished
    return output


@pytest.fixture(params=["folder", "memory", "local"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "elsewhere" / "mirror"
    folder.parent.mkdir()
    fsspec.filesystem("memory").makedirs(f"/{tmp_path.name}", exist_ok=True)
    return {
        "folder": str(folder),
        "memory": f"memory://{tmp_path.name}/mirror",
        "local": f"local://{folder}",  # fsspec's own view of a disk
    }[request.param]


def settled(asked: dict[str, Any], output: Path, after: int) -> None:
    """Train to a stop, so that the mirror is complete, and lose the machine then."""
    assert not train(asked, output, stop_after=after)[0].finished
    shutil.rmtree(output)


def steps_in(target: str | Path) -> list[int]:
    return open_place(str(target)).steps()


def test_lost_after_a_stop(target: str, whole: Path, model: Path, tmp_path: Path) -> None:
    """Everything is in the mirror, the canary too, so that the first step on the new machine is compared."""
    asked = values(model, mirror=target, save_steps=4)
    settled(asked, tmp_path / "run", 10)
    ended, show = train(asked, tmp_path / "run")
    assert ended.finished
    assert show.all(Began)[0].step == 10
    assert "holds the run: restoring it" in show.notices
    assert [(event.first, event.last) for event in show.all(Replayed)] == [(11, 11)]
    assert_same_run(tmp_path / "run", whole)
    segment = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()]
    places = [record.get("restored_from") for record in segment if record["kind"] == "segment"]
    assert places == [None, open_place(target).name]
    assert ended.proof["restores"] == 1


@pytest.mark.parametrize("after", range(3, STEPS, 6))
def test_lost_after_any_step(after: int, whole: Path, model: Path, tmp_path: Path) -> None:
    """Whatever had come to the mirror by then is enough."""
    asked = values(model, mirror=str(tmp_path / "mirror"), save_steps=2)
    lose(asked, tmp_path / "run", after)
    ended, show = train(asked, tmp_path / "run")
    assert ended.finished
    assert show.all(Began)[0].step <= after
    assert_same_run(tmp_path / "run", whole)


def test_steps_after_the_last_mirrored_commit_are_replayed(
    whole: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal goes to the mirror between commits as well."""
    monkeypatch.setattr(mirror, "JOURNAL_SECONDS", 0.01)
    asked = values(model, mirror=str(tmp_path / "mirror"), save_steps=12)
    settled(asked, tmp_path / "other", 12)  # a commit that is in the mirror for sure
    show = Show()

    def until_the_journal_is_there(event: Event) -> None:
        show(event)
        if isinstance(event, Stepped) and event.step == 20:
            path = tmp_path / "mirror" / "journal.jsonl"
            done = threading.Event()
            for _ in range(500):
                if b'"n":19' in path.read_bytes():
                    raise Lost
                done.wait(0.02)

    with pytest.raises(Lost):
        carry_out(Request({**asked, "output_dir": str(tmp_path / "run")}), until_the_journal_is_there, show.stop)
    shutil.rmtree(tmp_path / "run")
    ended, show = train(asked, tmp_path / "run")
    (replayed,) = show.all(Replayed)
    assert replayed.first == 13
    assert replayed.last >= 19
    assert ended.proof["replayed_steps"] >= 7
    assert_same_run(tmp_path / "run", whole)


def test_lost_before_the_first_checkpoint_was_there(
    target: str, whole: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror becomes a run with its first checkpoint; until then the same command begins a new run."""
    asked = values(model, mirror=target, save_steps=3)
    real = open_place(target)
    with monkeypatch.context() as patch:
        patch.setattr(type(real), "put_checkpoint", lambda *args: (_ for _ in ()).throw(StorageError("no")))
        train(asked, tmp_path / "run", stop_after=7)
    shutil.rmtree(tmp_path / "run")
    assert real.document() is None
    assert ".mirroring" in real.names()
    ended, show = train(asked, tmp_path / "run")
    assert show.all(Began)[0].step == 0
    assert ended.finished
    assert "holds step 30" in show.notices
    assert_same_run(tmp_path / "run", whole)
    assert real.document() is not None
    assert ".mirroring" not in real.names()


def test_lost_again_and_again(whole: Path, model: Path, tmp_path: Path) -> None:
    asked = values(model, mirror=str(tmp_path / "mirror"), save_steps=3)
    for number, after in enumerate((5, 17)):
        settled(asked, tmp_path / f"machine-{number}", after)
    ended, _ = train(asked, tmp_path / "last-machine")
    assert ended.proof["segments"] == 3
    assert_same_run(tmp_path / "last-machine", whole)


def test_lost_when_finished(target: str, whole: Path, model: Path, tmp_path: Path) -> None:
    asked = values(model, mirror=target, save_steps=10)
    assert "holds step 30" in train(asked, tmp_path / "run")[1].notices
    shutil.rmtree(tmp_path / "run")
    ended, show = train(asked, tmp_path / "run")
    assert ended.finished
    assert not show.all(Stepped)
    assert_same_run(tmp_path / "run", whole)


def test_a_folder_mirror_is_a_run(whole: Path, model: Path, tmp_path: Path) -> None:
    """It can be gone on with where it is, and holds the finished model."""
    asked = values(model, mirror=str(tmp_path / "mirror"), save_steps=5)
    settled(asked, tmp_path / "run", 12)
    assert carry_out(Request({**asked, "mirror": None, "output_dir": str(tmp_path / "mirror")}), Show(), StopRequest())
    assert_same_run(tmp_path / "mirror", whole)
    train(values(model, mirror=str(tmp_path / "second"), save_steps=5), tmp_path / "again")
    assert_same_run(tmp_path / "second", whole)


def test_a_run_file_damaged_meanwhile_does_not_reach_the_mirror(
    target: str, whole: Path, model: Path, tmp_path: Path
) -> None:
    """The mirror gets its run.json with the first checkpoint: a sound one."""
    asked = values(model, mirror=target, save_steps=4)
    show = Show(10, None)
    content = b""

    def damaging(event: Event) -> None:
        nonlocal content
        if isinstance(event, Stepped) and not content:
            content = (tmp_path / "run" / "run.json").read_bytes()
            (tmp_path / "run" / "run.json").write_bytes(b"{")
        show(event)

    assert not carry_out(Request({**asked, "output_dir": str(tmp_path / "run")}), damaging, show.stop).finished
    shutil.rmtree(tmp_path / "run")
    assert train(asked, tmp_path / "run")[0].finished
    assert (tmp_path / "run" / "run.json").read_bytes() == content
    assert_same_run(tmp_path / "run", whole)


def test_a_damaged_run_file_in_a_mirror_that_was_gone_on_with(whole: Path, model: Path, tmp_path: Path) -> None:
    """Being a run it has the copy, and what is restored from it is sound."""
    asked, mirror = values(model, mirror=str(tmp_path / "mirror"), save_steps=5), tmp_path / "mirror"
    settled(asked, tmp_path / "run", 12)
    train({**asked, "mirror": None}, mirror, stop_after=17)
    content = (mirror / "run.json").read_bytes()
    (mirror / "run.json").write_bytes(b"{")
    assert train(asked, tmp_path / "run")[0].finished
    assert (tmp_path / "run" / "run.json").read_bytes() == content
    assert_same_run(tmp_path / "run", whole)


def test_the_model_an_evaluation_chose(model: Path, tmp_path: Path) -> None:
    """The checkpoint the finished model comes from is older than the newest; the mirror holds both."""
    asked = values(model, eval_data=make_rows(20, seed=3), eval_steps=3, load_best_model_at_end=True, save_steps=2)
    train(asked, tmp_path / "whole")
    asked["mirror"] = str(tmp_path / "mirror")
    for number, after in enumerate((8, 26)):
        settled(asked, tmp_path / f"machine-{number}", after)
    assert train(asked, tmp_path / "last-machine")[0].finished
    assert_same_run(tmp_path / "last-machine", tmp_path / "whole")


def damage(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_before_a_new_best_can_be_restored(target: str, model: Path, tmp_path: Path) -> None:
    """The mirror keeps the best of each checkpoint it keeps: the one before may be all that is whole."""
    asked = values(model, eval_data=make_rows(20, seed=3), eval_steps=2, load_best_model_at_end=True, save_steps=1)
    train({**asked, "save_total_limit": 50}, tmp_path / "whole")
    whole, there = FolderPlace(tmp_path / "whole"), open_place(target)
    run_id = json.loads((tmp_path / "whole" / "run.json").read_bytes())["run_id"]
    journal = Journal(tmp_path / "whole" / "journal.jsonl")
    copy = mirror.Mirror(there, whole.root, run_id, journal, keep=2)
    telling = False
    for step in whole.steps():
        copy.offer(step, {best_named(whole, step)})
        assert copy.settle(30)
        kept = there.steps()[-2:]
        assert {best_named(there, each) for each in kept} <= set(there.steps())
        telling = step > 4 and best_named(there, step) == step and best_named(there, step - 1) < step - 1
        if telling:
            break
    copy.close()
    journal.close()
    assert telling, "no new best came when another was named: the test shows nothing"
    path = checkpoint_path(step, "model/model.safetensors")
    there.put(path, bytes(len(place.read(there, path))))
    ended, show = train({**asked, "mirror": target}, tmp_path / "run")
    assert show.all(Began)[0].step == step - 1
    assert ended.finished
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def best_named(there: place.Place, step: int) -> int:
    best = json.loads(place.read(there, checkpoint_path(step, "segment.json")))["best"]
    return int(best["step"]) if best else step


def test_a_copy_that_was_not_checked_does_not_count(target: str, model: Path, tmp_path: Path) -> None:
    """One that stands there by name and size may be damaged: older ones stay until there are enough that are not."""
    asked = values(model, mirror=target)
    for after in (6, 10):
        train(asked, tmp_path / "run", stop_after=after)
    there = open_place(target)
    path = checkpoint_path(10, "model/model.safetensors")
    content = bytearray(place.read(there, path))
    content[len(content) // 2] ^= 1
    there.put(path, bytes(content))
    train(asked, tmp_path / "run", stop_after=12)
    manifest, _ = place.read_marker(there, 10, json.loads((tmp_path / "run" / "run.json").read_bytes())["run_id"])
    if isinstance(there, FolderPlace):  # compared, and copied again
        assert not there.lacks(10, manifest, digests=True)
    else:
        assert 6 in there.steps()


@pytest.mark.parametrize("target", ["folder", "local"], indirect=True)
def test_a_flipped_bit_in_the_mirror(target: str, whole: Path, model: Path, tmp_path: Path) -> None:
    asked = values(model, mirror=target)
    for after in (6, 10):
        train(asked, tmp_path / "run", stop_after=after)
    shutil.rmtree(tmp_path / "run")
    home = tmp_path / "elsewhere" / "mirror" / "checkpoints"
    damage(home / "00000010")
    ended, show = train(asked, tmp_path / "run")
    assert show.all(Began)[0].step == 6
    assert "checkpoint of step 10 in the mirror" in show.notices
    assert "digest differs" in show.notices
    assert ended.proof["replayed_steps"] >= 4
    assert_same_run(tmp_path / "run", whole)
    shutil.rmtree(tmp_path / "run")
    damage(home / "00000030")  # it was finished: its last steps are made again
    _, show = train(asked, tmp_path / "run")
    assert show.all(Replayed)[0].last == STEPS
    assert_same_run(tmp_path / "run", whole)
    shutil.rmtree(tmp_path / "run")
    for path in home.glob("[0-9]*/optimizer.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CannotContinueError, match=r"no checkpoint in the mirror .* verifies"):
        train(asked, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_copy_cut_short_counts_for_nothing(whole: Path, model: Path, tmp_path: Path) -> None:
    """In a store without rename, files without their manifest are no checkpoint; in a folder they have no name."""
    for kind, target in (("local", f"local://{tmp_path}/objects"), ("folder", str(tmp_path / "folder"))):
        asked = values(model, mirror=target)
        run = tmp_path / f"run-{kind}"
        for after in (6, 10):
            train(asked, run, stop_after=after)
        shutil.rmtree(run)
        root = tmp_path / ("objects" if kind == "local" else "folder")
        newest = root / "checkpoints" / "00000010"
        (newest / "MANIFEST.json").unlink()
        (newest / "optimizer.safetensors").unlink()
        if kind == "folder":
            newest.rename(root / "checkpoints" / ".tmp-00000010-1-abcdef01")
        ended, show = train(asked, run)
        assert show.all(Began)[0].step == 6
        assert ended.finished
        assert_same_run(run, whole)
        assert 10 not in steps_in(target)
        assert not list(root.rglob(".tmp-*"))


def test_a_mirror_that_refuses_stops_nothing(
    whole: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, from some write on: said once; the same bits; made good by the next segment."""
    asked = values(model, mirror=str(tmp_path / "mirror"), save_steps=3)
    real, count = files.create_file, []

    def full(path: Path, *rest: Any, **more: Any) -> Any:
        if path.is_relative_to(tmp_path / "mirror"):
            count.append(path)
            if len(count) > 12:
                raise StorageError(f"cannot write {path}: No space left on device", next_step="free some space")
        return real(path, *rest, **more)

    monkeypatch.setattr(files, "create_file", full)
    ended, show = train(asked, tmp_path / "run", stop_after=20)
    assert show.notices.count("the mirror is behind, training goes on") == 1
    assert "free some space" in show.notices
    assert "does not hold the last commit, of step 20" in show.notices
    monkeypatch.setattr(files, "create_file", real)
    ended, show = train(asked, tmp_path / "run")
    assert ended.finished
    assert "holds step 30" in show.notices
    assert_same_run(tmp_path / "run", whole)
    assert_same_run(tmp_path / "mirror", whole)


def test_a_mirror_that_never_answers_stops_nothing(
    whole: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "FINISH_SECONDS", 0.3)
    monkeypatch.setattr(mirror, "CLOSE_SECONDS", 0.1)
    answer = threading.Event()
    monkeypatch.setattr(FolderPlace, "put_checkpoint", lambda *args: answer.wait(60))
    ended, show = train(values(model, mirror=str(tmp_path / "mirror"), save_steps=2), tmp_path / "run")
    answer.set()
    assert ended.finished
    assert "does not hold the last commit" in show.notices
    assert not show.all(Mirrored)
    assert_same_run(tmp_path / "run", whole)
    assert len(list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))) <= 4  # two, and those held for the mirror


def test_killed_while_it_restores(whole: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every durable operation of a restore, one after the other: there is no run before the last of them."""
    asked = values(model, mirror=str(tmp_path / "mirror"))
    settled(asked, tmp_path / "first", 10)
    names = ["create_file", "sync_folder", "rename_new", "replace_with", "make_folder"]
    real = {name: getattr(files, name) for name in names}
    for last in range(1, 200):
        left = [last]

        def dying(name: str, left: list[int] = left) -> Any:
            def call(path: Path, *rest: Any, **more: Any) -> Any:
                if path.is_relative_to(tmp_path / "run"):
                    left[0] -= 1
                    if left[0] <= 0:
                        raise Lost
                return real[name](path, *rest, **more)

            return call

        for name in names:
            monkeypatch.setattr(files, name, dying(name))
        there = mirroring.mirror_of(asked["mirror"], tmp_path / "run")
        assert there is not None
        document = mirroring.run_in_mirror(there, tmp_path / "run", None, restart=False)
        assert document is not None
        try:
            mirroring.restore_run(tmp_path / "run", there, document)
        except Lost:
            assert not (tmp_path / "run" / "run.json").exists() or left[0] == 0
        else:
            break
    assert last > 15
    for name in names:
        monkeypatch.setattr(files, name, real[name])
    assert train(asked, tmp_path / "run")[0].finished
    assert_same_run(tmp_path / "run", whole)
    assert not (tmp_path / "run" / ".restoring").exists()


def test_killed_once_while_it_restores_then_the_same_command(
    whole: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = values(model, mirror=str(tmp_path / "mirror"))
    settled(asked, tmp_path / "run", 10)

    put = place.FolderPlace.put

    def lost_before_the_last_file(there: place.FolderPlace, path: str, content: bytes) -> None:
        if path == "run.json":
            raise Lost
        put(there, path, content)

    with monkeypatch.context() as patch:
        patch.setattr(place.FolderPlace, "put", lost_before_the_last_file)
        with pytest.raises(Lost):
            train(asked, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints").exists()
    assert not list((tmp_path / "run").glob("*run.json")), "neither it nor its copy"
    assert train(asked, tmp_path / "run")[0].finished
    assert_same_run(tmp_path / "run", whole)
    assert (tmp_path / "run" / ".run.json").read_bytes() == (tmp_path / "run" / "run.json").read_bytes()
    assert (tmp_path / "run" / "run.json").read_bytes() == (tmp_path / "mirror" / "run.json").read_bytes()


def test_damage_here_is_made_good_from_the_mirror(whole: Path, model: Path, tmp_path: Path) -> None:
    asked = values(model, mirror=str(tmp_path / "mirror"))
    train(asked, tmp_path / "run", stop_after=10)
    damage(tmp_path / "run" / "checkpoints" / "00000010")
    _, show = train(asked, tmp_path / "run")
    assert "as new as that of step 10 in the mirror" in show.notices
    assert show.all(Began)[0].step == 10
    assert list((tmp_path / "run" / "checkpoints").glob(".broken-*"))
    assert_same_run(tmp_path / "run", whole)


def test_what_is_here_and_as_new_wins(whole: Path, model: Path, tmp_path: Path) -> None:
    asked = values(model, mirror=str(tmp_path / "mirror"))
    train(asked, tmp_path / "run", stop_after=10)
    damage(tmp_path / "mirror" / "checkpoints" / "00000010")
    _, show = train(asked, tmp_path / "run")
    assert "fetched" not in show.notices
    assert show.all(Began)[0].step == 10
    assert_same_run(tmp_path / "run", whole)


def test_another_runs_mirror_is_refused(target: str, model: Path, tmp_path: Path) -> None:
    train(values(model, mirror=target, max_steps=4), tmp_path / "one", stop_after=2)
    train(values(model, max_steps=4), tmp_path / "other", stop_after=2)
    before = steps_in(target)
    with pytest.raises(CannotContinueError, match="holds another run"):
        train(values(model, mirror=target, max_steps=4), tmp_path / "other")
    assert steps_in(target) == before


def test_somebodys_files_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    for target in (str(tmp_path / "photos"), f"local://{tmp_path}/photos"):
        with pytest.raises(CannotContinueError, match=r"holds files \(cat.jpg\) but is no run"):
            train(values(model, mirror=target), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_change_is_refused_before_anything_is_copied(target: str, model: Path, tmp_path: Path) -> None:
    """The refusal names the mirror: another output_dir would be no way out."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(58)), encoding="utf-8")
    asked = values(model, mirror=target, train_data=str(tmp_path / "rows.jsonl"))
    settled(asked, tmp_path / "run", 4)
    there = open_place(target)
    with pytest.raises(CannotContinueError, match=r"learning_rate: 0.001 \(this run\) -> 0.002") as first:
        train(asked | {"learning_rate": 2e-3}, tmp_path / "run")
    rows = make_rows(58)
    rows[6]["positive"] = "something else"
    with pytest.raises(CannotContinueError, match="the first row that differs is row 7") as second:
        train(asked | {"train_data": rows}, tmp_path / "run")
    for refusal in (first.value, second.value):
        assert f"the run in the mirror {there.name}" in refusal.what
        assert "give another mirror" in refusal.next_step
        assert "output_dir" not in refusal.next_step
        assert ("--restart" in refusal.next_step) is there.movable
    assert (f"`unbroken fork {there.name} NEW --set learning_rate=" in first.value.next_step) is there.movable
    assert not (tmp_path / "run").exists()


def test_restart_moves_a_folder_and_refuses_a_url(model: Path, whole: Path, tmp_path: Path) -> None:
    folder, url = tmp_path / "mirror", f"local://{tmp_path}/objects"
    train(values(model, mirror=str(folder)), tmp_path / "run", stop_after=4)
    ended, _ = train(values(model, mirror=str(folder)), tmp_path / "run", restart=True)
    assert ended.finished
    assert (tmp_path / "before-restart-mirror-0" / "checkpoints" / "00000004" / "MANIFEST.json").exists()
    assert_same_run(folder, whole)
    train(values(model, mirror=url), tmp_path / "second", stop_after=4)
    with pytest.raises(CannotContinueError, match="--set mirror=URL"):
        train(values(model, mirror=url), tmp_path / "second", restart=True)
    assert steps_in(url) == [4]


def test_the_mirror_may_come_and_go(whole: Path, model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "run", stop_after=5)
    train(values(model, mirror=str(tmp_path / "one")), tmp_path / "run", stop_after=10)
    train(values(model, mirror=f"local://{tmp_path}/two"), tmp_path / "run", stop_after=15)
    train(values(model, mirror=None), tmp_path / "run", stop_after=20)
    train(values(model, mirror=str(tmp_path / "one")), tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)
    assert_same_run(tmp_path / "one", whole)
    assert steps_in(f"local://{tmp_path}/two") == [10, 15]


def test_accepted_drift_leaves_no_way_back(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror must not offer the steps of before, when the machine is lost afterwards."""
    asked = values(model, mirror=str(tmp_path / "mirror"))
    for after in (6, 10):
        train(asked, tmp_path / "run", stop_after=after)
    journal = tmp_path / "run" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    for record in lines:  # the recorded eighth step is not what this environment computes
        del record["sum"]
        if record["kind"] == "step" and record["n"] == 8:
            record["loss"] += 1.0
    journal.write_bytes(b"".join(map(encode_record, lines)))
    step = tmp_path / "run" / "checkpoints" / "00000006"
    with pytest.raises(CannotContinueError, match="step 8 does not repeat"):
        train(asked, tmp_path / "run", resume_from_checkpoint=str(step))
    train(asked, tmp_path / "run", resume_from_checkpoint=str(step), accept_drift=True, stop_after=9)
    assert max(steps_in(tmp_path / "mirror")) == 9
    shutil.rmtree(tmp_path / "run")
    _, show = train(asked, tmp_path / "run")
    assert show.all(Began)[0].step == 9


def test_a_second_process_on_the_mirror(model: Path, tmp_path: Path) -> None:
    asked = values(model, mirror=str(tmp_path / "mirror"))
    train(asked, tmp_path / "run", stop_after=4)
    held = FolderPlace(tmp_path / "mirror")
    held.hold()
    try:
        with pytest.raises(BusyError, match="mirror is in use by process"):
            train(asked, tmp_path / "run")
    finally:
        held.release()
    assert train(asked, tmp_path / "run")[0].finished


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("nowhere://bucket/run", "Protocol not known"),
        ("RUN/mirror", "lie in each other"),
        ("RUN", "lie in each other"),
    ],
)
def test_a_mirror_that_cannot_be_one(target: str, line: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=line):
        train(values(model, mirror=target.replace("RUN", str(tmp_path / "run"))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mirror_out_of_reach(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the run here training goes on; without it nobody knows whether to begin, so it does not."""
    asked = values(model, mirror=f"local://{tmp_path}/objects", max_steps=4)
    train(asked, tmp_path / "run", stop_after=2)

    def down(*args: Any, **more: Any) -> Any:
        raise TimeoutError("no route to host")

    local = fsspec.filesystem("local")
    monkeypatch.setattr(type(local), "ls", down)
    monkeypatch.setattr(mirror, "FIRST_PAUSE", 60.0)
    ended, show = train(asked, tmp_path / "run")
    assert ended.finished
    assert "no route to host" in show.notices
    assert "does not hold the last commit" in show.notices
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(StorageError, match="leave `mirror` out to begin a new run"):
        train(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mirror_that_is_not_mounted(target: str, whole: Path, model: Path, tmp_path: Path) -> None:
    """It would be empty, the run would begin anew, and another mirror would lie in the empty mount point."""
    asked = values(model, mirror=target)
    settled(asked, tmp_path / "run", 6)
    above, protocol = (tmp_path / "elsewhere", "file") if "memory" not in target else (f"/{tmp_path.name}", "memory")
    system = fsspec.filesystem(protocol)
    system.mv(str(above), f"{above}-away", recursive=True)
    with pytest.raises(StorageError, match=r"is not there.* leave `mirror` out to begin a new run"):
        train(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(values(model), tmp_path / "other", stop_after=4)  # with a run here, training goes on
    _, show = train(asked, tmp_path / "other", stop_after=5)
    assert "the mirror is behind, training goes on" in show.notices
    assert not system.exists(str(above))
    system.mv(f"{above}-away", str(above), recursive=True)
    _, show = train(asked, tmp_path / "run")
    assert show.all(Began)[0].step == 6
    assert_same_run(tmp_path / "run", whole)


def test_a_new_run_beside_its_mirror_is_said(target: str, model: Path, tmp_path: Path) -> None:
    line = f"neither {tmp_path / 'run'} nor its mirror {open_place(target).name} holds a run: a new one begins"
    assert line in train(values(model, mirror=target), tmp_path / "run", stop_after=2)[1].notices
    assert line not in train(values(model, mirror=target), tmp_path / "run", stop_after=3)[1].notices


def test_controls_the_mirror_holds_what_the_run_did(whole: Path, model: Path, tmp_path: Path) -> None:
    """A control: a checkpoint in the mirror with other weights and valid digests must be noticed by the replay."""
    asked = values(model, mirror=str(tmp_path / "mirror"))
    settled(asked, tmp_path / "run", 9)
    tamper(tmp_path / "mirror", flip_a_bit)
    with pytest.raises(CannotContinueError, match=r"step 10 does not repeat: (loss|grad_norm)"):
        train(asked, tmp_path / "run")


def test_a_failure_does_not_make_the_mirror_read_the_whole_journal_again(tmp_path: Path) -> None:
    """Drift is sought in what the journal gained, and found wherever it stands."""
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"kind": "drift", "n": 3, "text": ""})
    passed = journal.end
    journal.append({"kind": "step", "n": 3})
    second = journal.end
    journal.append({"kind": "drift", "n": 9, "text": ""})
    assert mirror.find_drifts(journal.path) == [(0, 3), (second, 9)]
    assert mirror.find_drifts(journal.path, passed) == [(second, 9)]
    (tmp_path / "mirror").mkdir()
    copy = mirror.Mirror(FolderPlace(tmp_path / "mirror"), tmp_path, "run", journal, keep=2)
    for name in ("data.digests", "config.yaml"):
        (tmp_path / name).write_bytes(b"")
    copy._introduce()
    assert copy._drifts == [(0, 3), (second, 9)]
    journal.path.write_bytes(b"\n" * journal.end)  # what was read is not read again
    copy.look_again()
    copy._introduce()
    assert copy._drifts == [(0, 3), (second, 9)]
    copy.close()


def test_checkpoints_are_kept_as_in_the_run(target: str, model: Path, tmp_path: Path) -> None:
    asked = values(model, mirror=target, save_total_limit=3)
    for after in (2, 4, 14):
        train(asked, tmp_path / "run", stop_after=after)
    steps = steps_in(target)
    assert len(steps) >= 3
    assert steps[-1] == 14
    asked["save_steps"] = 2
    train(asked, tmp_path / "run")
    there, run_id = open_place(target), json.loads((tmp_path / "run" / "run.json").read_bytes())["run_id"]
    assert 2 <= len(there.steps()) <= 3 + 3
    for step in there.steps():
        manifest, _ = place.read_marker(there, step, run_id)
        assert not there.lacks(step, manifest, digests=True)
        assert b"".join(map(bytes, there.blocks(checkpoint_path(step, "state.json"))))


def test_check_says_what_the_mirror_holds(target: str, model: Path, tmp_path: Path) -> None:
    """And refuses what `train` would refuse, without writing anything."""
    asked = values(model, mirror=target, output_dir=str(tmp_path / "run"))
    found = flat(check(Request(asked)).sections)
    assert (found["mirror.newest_step"], found["mirror.train_restores_from_it"]) == ("none", False)
    settled(asked, tmp_path / "run", 4)
    found = flat(check(Request(asked)).sections)
    assert (found["mirror.newest_step"], found["mirror.train_restores_from_it"]) == (4, True)
    refused = check(Request({**asked, "learning_rate": 2e-3}))
    assert refused.exit_code == CannotContinueError.exit_code
    assert "learning_rate" in str(refused.problems[0])
    assert not (tmp_path / "run").exists()
