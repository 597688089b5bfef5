"""A mirror that is slow or never answers keeps neither a signal nor `--stop-at` waiting."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run
from tests.exact.test_embed import values
from tests.exact.test_mirror import Show, model, settled, train, whole
from tests.exact.test_mirror_loop import script
from unbroken.base.errors import StorageError
from unbroken.base.stopping import StopNow, interruptible, poll
from unbroken.run import patience
from unbroken.run.deadline import Deadline
from unbroken.run.patience import patiently
from unbroken.run.report import Began, Committed, Ended
from unbroken.store.place import FolderPlace
from unbroken.tasks.train import Request, carry_out

__all__ = ["model", "whole"]  # fixtures

LONG = 60.0  # no test may wait for it


@pytest.fixture
def answer() -> Iterator[threading.Event]:
    """What a place that does not answer waits for; given in the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


def stopped_meanwhile(asked: dict[str, Any], run: Path, seconds: float) -> tuple[Ended, Show, float]:
    """Train, have a stop asked for after some seconds, and measure how long the end took from there."""
    show, began = Show(), time.monotonic()
    timer = threading.Timer(seconds, lambda: show.stop.ask("the test"))
    timer.start()
    ended = carry_out(Request({**asked, "output_dir": str(run)}), show, show.stop)
    return ended, show, time.monotonic() - began - seconds


def wait_for_the_end_of(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(5)
            assert not thread.is_alive()


def test_a_stop_ends_the_wait_of_a_finished_run(
    whole: Path, model: Path, tmp_path: Path, answer: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = values(model, mirror=str(tmp_path / "mirror"))
    monkeypatch.setattr(FolderPlace, "put_checkpoint", lambda *args: answer.wait(LONG))
    show = Show()

    def ask_when_done(event: Any) -> None:
        show(event)
        if isinstance(event, Committed) and event.step == 30:
            threading.Timer(0.5, lambda: show.stop.ask("the test")).start()

    began = time.monotonic()
    ended = carry_out(Request({**asked, "output_dir": str(tmp_path / "run")}), ask_when_done, show.stop)
    assert ended.finished
    assert time.monotonic() - began < 20
    assert "does not hold the last commit, of step 30: it holds no step" in show.notices
    assert_same_run(tmp_path / "run", whole)
    answer.set()
    wait_for_the_end_of("unbroken-mirror")
    answer.clear()
    ended, show, seconds = stopped_meanwhile(asked, tmp_path / "run", 2.0)  # it was finished; the mirror still waits
    assert ended.finished
    assert seconds < 4
    assert "does not hold the last commit" in show.notices


def test_the_wait_at_a_stop_ends_before_the_deadline(
    model: Path, tmp_path: Path, answer: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = values(model, mirror=str(tmp_path / "mirror"))
    monkeypatch.setattr(FolderPlace, "put_checkpoint", lambda *args: answer.wait(LONG))
    show, began = Show(stop_after=4), time.monotonic()
    show.stop.deadline = Deadline(8.0, "+8s")
    ended = carry_out(Request({**asked, "output_dir": str(tmp_path / "run")}), show, show.stop)
    assert not ended.finished
    assert time.monotonic() - began < 8.0


@pytest.mark.parametrize("at_home", [False, True], ids=["lost", "older"])
def test_a_stop_while_it_is_fetched(
    at_home: bool, whole: Path, model: Path, tmp_path: Path, answer: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that never comes: the stop does not wait for it, there is no run, and the same command goes on."""
    asked = values(model, mirror=str(tmp_path / "mirror"))
    if at_home:
        train(asked, tmp_path / "run", stop_after=5)
        settled(asked, tmp_path / "other", 10)
    else:
        settled(asked, tmp_path / "run", 10)
    real = FolderPlace.blocks

    def hanging(self: FolderPlace, path: str) -> Iterator[bytes | memoryview]:
        if self.name.endswith("mirror") and path.endswith("00000010/optimizer.safetensors"):
            answer.wait(LONG)
        yield from real(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(FolderPlace, "blocks", hanging)
        ended, show, seconds = stopped_meanwhile(asked, tmp_path / "run", 2.0)
    assert not ended.finished
    assert ended.reason == "the test"
    assert seconds < patience.LEAVE_SECONDS + 3
    assert (tmp_path / "run" / "run.json").exists() is at_home
    answer.set()
    wait_for_the_end_of("unbroken-waiting")  # it ends by itself, and lets go of the folder
    assert not list((tmp_path / "run" / "checkpoints").glob("00000010"))
    _, show = train(asked, tmp_path / "run")
    assert show.all(Began)[0].step == 10
    assert_same_run(tmp_path / "run", whole)


def test_a_mirror_that_does_not_answer_at_the_start(
    whole: Path, model: Path, tmp_path: Path, answer: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the run here it goes on; without it, it is refused; a stop waits for neither."""
    asked = values(model, mirror=str(tmp_path / "mirror"))
    train(asked, tmp_path / "run", stop_after=5)
    for name in ("document", "steps"):
        real = getattr(FolderPlace, name)
        monkeypatch.setattr(
            FolderPlace,
            name,
            lambda self, real=real: (self.name.endswith("mirror") and answer.wait(LONG), real(self))[1],
        )
    ended, _, seconds = stopped_meanwhile(asked, tmp_path / "run", 1.0)
    assert not ended.finished
    assert seconds < 4
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.3)
    show = Show(stop_after=8)
    carry_out(Request({**asked, "output_dir": str(tmp_path / "run")}), show, show.stop)
    assert "has not answered for 0 seconds" in show.notices
    assert show.all(Began)[0].step == 5
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(StorageError, match="cannot be told"):
        train(asked, tmp_path / "run")
    with pytest.raises(StorageError, match="cannot be told"):
        script(model, tmp_path / "mirror").run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_patience() -> None:
    """What is done elsewhere fails here, is told of a stop, and is left after a while without a sign."""
    with pytest.raises(KeyError):
        patiently(lambda: {}["gone"], "there", 1.0)
    ended = threading.Event()

    def slow() -> None:
        try:
            while True:
                time.sleep(0.01)
                poll()
        finally:
            ended.set()

    asked = [0]

    def check() -> None:
        asked[0] += 1
        if asked[0] > 20:
            raise StopNow

    with interruptible(check), pytest.raises(StopNow):
        patiently(slow, "there", 1.0)
    assert ended.wait(1)
    began = time.monotonic()
    with pytest.raises(StorageError, match="there has not answered"):
        patiently(lambda: time.sleep(1.0), "there", 0.2)
    assert time.monotonic() - began < 0.9
