"""Signals at every place, once and twice: what the process ends with, what it leaves, the bits it resumes to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2
from typing import Any

import pytest
import yaml

from tests.crash.signalled import Case, Server, serving
from tests.exact.runs import assert_same_run, step_records
from tests.tiny import make_model_folder, make_rows
from unbroken.run.report import silent
from unbroken.run.stop import StopRequest
from unbroken.run.summary import describe_run
from unbroken.tasks.train import Request, carry_out

STEPS = 10
CONFIG = {
    "task": "embed",
    "model": "model",
    "output_dir": "run",
    "train_data": "train.jsonl",
    "eval_data": "eval.jsonl",
    "eval_steps": 4,
    "load_best_model_at_end": True,
    "learning_rate": 2e-2,
    "batch_size": 4,
    "max_steps": STEPS,
    "save_steps": 3,
    "threads": 1,
}
ENDLESS = {"max_steps": 1_000_000, "eval_data": None, "eval_steps": None, "load_best_model_at_end": False}
NEW = ("arguments", "data", "load")  # nothing of the run exists yet
EVALUATION_CALLS = {0: 1, 4: 3, 10: 7}  # two encodings each, after steps 0, 4, 8 and 10


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, a configuration, and in `whole` the run nobody stopped."""
    desk = tmp_path_factory.mktemp("desk")
    make_model_folder(desk / "model")
    for name, rows in {"train": make_rows(30), "eval": make_rows(20, seed=3)}.items():
        (desk / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write(desk / "c.yaml", output_dir="run")
    assert resume(desk, "whole")
    best = records(desk / "whole", "finish")[0]["best"]
    assert 0 < best < STEPS, "the last step is the best: the tests show nothing about what chooses"
    return desk


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def folder(desk: Path, tmp_path: Path) -> Path:
    """A folder of a test's own with the desk's files in it."""
    for name in ("model", "train.jsonl", "eval.jsonl", "c.yaml", "whole"):
        (tmp_path / name).symlink_to(desk / name)
    return tmp_path


def write(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump(CONFIG | changes), encoding="utf-8")


def resume(folder: Path, name: str = "run") -> bool:
    """Carry the run in `folder` on in this process; True if it is finished."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return carry_out(Request(CONFIG | {"output_dir": name}), silent, StopRequest()).finished
    finally:
        os.chdir(before)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / "journal.jsonl").read_bytes().splitlines())
    return [record for record in lines if record["kind"] == kind]


def assert_ends_like_whole(folder: Path) -> None:
    """The run is finished by the same command, with the bits, records and evaluations of the run nobody stopped."""
    run, whole = folder / "run", folder / "whole"
    assert resume(folder)
    assert_same_run(run, whole)
    evaluations = ({record["n"]: record["metrics"] for record in records(one, "evaluation")} for one in (run, whole))
    assert next(evaluations) == next(evaluations)
    assert records(run, "finish")[0]["best"] == records(whole, "finish")[0]["best"]


def assert_whole(run: Path) -> None:
    """Each step up to the one it stopped after is on record once, and that one is committed."""
    stopped = records(run, "stop")[-1]["n"]
    assert [record[0] for record in step_records(run)] == list(range(1, stopped + 1))
    assert (run / "checkpoints" / f"{stopped:08d}" / "MANIFEST.json").exists()


def case(folder: Path, place: str, call: int, *signals: signal.Signals, **more: Any) -> Case:
    return Case(["train", "c.yaml"], str(folder), [(place, call, [int(number) for number in signals])], **more)


@pytest.mark.parametrize(
    ("place", "call", "number"),
    [
        ("arguments", 1, SIGTERM),
        ("data", 1, SIGTERM),
        ("data", 2, SIGHUP),
        ("load", 1, SIGINT),
        ("create", 1, SIGTERM),
        ("tokenising", 1, SIGTERM),
        ("tokenising", 2, SIGUSR1),
        ("begin", 1, SIGTERM),
        ("evaluation", EVALUATION_CALLS[0], SIGTERM),
        ("step", 1, SIGTERM),
        ("step", 2, SIGINT),
        ("step", 4, SIGHUP),
        ("step", 5, SIGUSR1),
        ("commit", 1, SIGTERM),
        ("commit", 2, SIGINT),
        ("evaluation", EVALUATION_CALLS[4], SIGTERM),
        ("evaluation", EVALUATION_CALLS[4] + 1, SIGHUP),
        ("evaluation", EVALUATION_CALLS[10], SIGINT),
        ("step", STEPS, SIGTERM),
    ],
    ids=str,
)
def test_one_signal(place: str, call: int, number: signal.Signals, folder: Path, server: Server) -> None:
    outcome = server(case(folder, place, call, number))
    assert outcome.code == (130 if number is SIGINT else 75), outcome.output
    assert f"{number.name}: stopping" in outcome.output
    assert outcome.output.endswith("run again: unbroken train c.yaml\n")
    assert "Traceback" not in outcome.output
    run = folder / "run"
    if place in NEW:
        assert not run.exists()
    else:
        assert records(run, "stop")[-1]["reason"] == f"signal {number.name}"
        assert not list((run / "cache").glob("*.tmp-*"))
    assert_ends_like_whole(folder)


@pytest.mark.parametrize("step", EVALUATION_CALLS)
def test_an_interrupted_evaluation_leaves_nothing_and_a_commit(step: int, folder: Path, server: Server) -> None:
    run = folder / "run"
    outcome = server(case(folder, "evaluation", EVALUATION_CALLS[step], SIGTERM))
    assert outcome.code == 75, outcome.output
    assert step not in {record["n"] for record in records(run, "evaluation")}
    assert not (run / "eval" / f"{step:08d}.json").exists()
    assert (run / "checkpoints" / f"{step:08d}" / "MANIFEST.json").exists()
    assert records(run, "stop")[-1]["n"] == step
    assert not (run / "model").exists()
    assert_ends_like_whole(folder)
    assert step in {record["n"] for record in records(run, "evaluation")}


@pytest.mark.parametrize("place", ["publish", "finished"])
def test_a_signal_while_the_model_is_published_comes_too_late(place: str, folder: Path, server: Server) -> None:
    outcome = server(case(folder, place, 1, SIGTERM))
    assert outcome.code == 0, outcome.output
    assert_same_run(folder / "run", folder / "whole")
    assert_ends_like_whole(folder)


@pytest.mark.parametrize("place", ["load", "restore", "tokenising"])
def test_a_stop_in_set_up_of_a_run_that_exists(place: str, folder: Path, server: Server) -> None:
    """The journal says so, nothing else changes, and how the segment before ended stays as it was."""
    run = folder / "run"
    assert server(case(folder, "step", 4, SIGTERM)).code == 75
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    if place == "tokenising":
        shutil.rmtree(run / "cache")
    outcome = server(case(folder, place, 1, SIGINT))
    assert outcome.code == 130, outcome.output
    assert "stopped before the first step (signal SIGINT); nothing is lost" in outcome.output
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == before
    summary = describe_run(run)
    assert summary.stopped_in_set_up == "signal SIGINT"
    assert [segment.ended for segment in summary.segments] == ["stopped: signal SIGTERM"]
    assert_ends_like_whole(folder)
    assert describe_run(run).stopped_in_set_up is None


@pytest.mark.parametrize(
    ("place", "call", "signals", "code"),
    [
        ("data", 1, (SIGTERM, SIGINT), 130),
        ("load", 1, (SIGINT, SIGTERM), 75),
        ("tokenising", 1, (SIGTERM, SIGTERM), 75),
        ("restore", 1, (SIGHUP, SIGTERM), 75),
        ("step", 5, (SIGINT, SIGINT), 130),
        ("commit", 2, (SIGTERM, SIGUSR1), 75),
        ("evaluation", EVALUATION_CALLS[4], (SIGINT, SIGINT), 130),
        ("publish", 1, (SIGTERM, SIGTERM), 75),
        ("finished", 1, (SIGINT, SIGINT), 130),
    ],
    ids=str,
)
def test_a_second_signal_ends_at_once(
    place: str, call: int, signals: tuple[signal.Signals, ...], code: int, folder: Path, server: Server
) -> None:
    if place == "restore":
        assert server(case(folder, "step", 4, SIGTERM)).code == 75
    outcome = server(case(folder, place, call, *signals))
    assert outcome.code == code, outcome.output
    assert f"{signals[1].name}: ended at once" in outcome.output
    assert_ends_like_whole(folder)


def test_a_second_signal_in_the_canary(folder: Path, server: Server) -> None:
    ambushes = [("step", 5, [int(SIGTERM)]), ("canary", 1, [int(SIGTERM)])]
    assert server(Case(["train", "c.yaml"], str(folder), ambushes)).code == 75
    assert not records(folder / "run", "canary")
    assert (folder / "run" / "checkpoints" / "00000005" / "MANIFEST.json").exists()
    assert_ends_like_whole(folder)


def test_one_signal_that_arrives_twice_is_one(folder: Path, server: Server) -> None:
    """`timeout` sends to the process and to its group; a closed terminal is told by kernel and shell."""
    outcome = server(case(folder, "step", 5, SIGTERM, SIGTERM, pause=0.01))
    assert (outcome.code, records(folder / "run", "stop")[0]["n"]) == (75, 5), outcome.output
    outcome = server(case(folder, "step", 1, SIGHUP, SIGHUP))
    assert (outcome.code, records(folder / "run", "stop")[1]["n"]) == (75, 6), outcome.output
    assert_ends_like_whole(folder)


def test_usr2_commits_and_goes_on(folder: Path, server: Server) -> None:
    outcome = server(case(folder, "step", 5, SIGUSR2, SIGUSR2))
    assert outcome.code == 0, outcome.output
    assert [record["n"] for record in records(folder / "run", "commit")].count(5) == 1
    assert 5 not in [record["n"] for record in records(folder / "whole", "commit")]
    assert_same_run(folder / "run", folder / "whole")


@pytest.mark.parametrize("number", [SIGHUP, SIGINT, SIGTERM])
def test_a_signal_that_came_ignored_stays_ignored(number: signal.Signals, folder: Path, server: Server) -> None:
    outcome = server(case(folder, "step", 5, number, ignored=[int(number)]))
    assert outcome.code == 0, outcome.output
    assert "stopping" not in outcome.output
    assert_same_run(folder / "run", folder / "whole")


@pytest.mark.parametrize("stream", ["broken pipe", "full", "closed"])
def test_output_that_nobody_takes_stops_nothing(stream: str, folder: Path, server: Server) -> None:
    outcome = server(case(folder, "step", 5, SIGTERM, stream=stream))
    assert outcome.code == 75
    assert records(folder / "run", "stop")[0]["n"] == 5
    assert server(case(folder, "step", 1, stream=stream)).code == 0
    assert_same_run(folder / "run", folder / "whole")


@pytest.mark.parametrize("stream", ["broken pipe", "full", "closed"])
def test_a_refusal_nobody_reads_keeps_its_exit_code(stream: str, folder: Path, server: Server) -> None:
    outcome = server(Case(["train", "c.yaml", "--set", "batch_size=none"], str(folder), stream=stream))
    assert outcome.code == 2


def test_a_deadline_is_kept(folder: Path, server: Server) -> None:
    (folder / "c.yaml").unlink()
    write(folder / "c.yaml", **ENDLESS)
    until = time.time() + 12
    slow = ("step", 3, [int(signal.SIGCONT)])  # does nothing, but the pause after it makes the step a slow one
    outcome = server(Case(["train", "c.yaml", "--stop-at", f"{until:.3f}"], str(folder), [slow], pause=4))
    assert time.time() < until
    assert outcome.code == 75, outcome.output
    stopped = records(folder / "run", "stop")[0]
    assert (stopped["n"], stopped["reason"]) == (3, f"stop-at {until:.3f}"), "another step like that would not fit"
    assert outcome.output.endswith("run again: unbroken train c.yaml\n")
    assert_whole(folder / "run")


def test_the_command_to_go_on_restarts_nothing_twice(folder: Path, server: Server) -> None:
    arguments = ["train", "c.yaml", "--set", "save_steps=2", "--restart", "--stop-at", "+2h"]
    later = Case(arguments, str(folder), [("step", 5, [int(SIGTERM)])])
    assert server(later).output.endswith("run again: unbroken train c.yaml --set save_steps=2 --stop-at +2h\n")
    early = Case(arguments, str(folder), [("data", 1, [int(SIGTERM)])])
    assert server(early).output.endswith(
        "run again: unbroken train c.yaml --set save_steps=2 --restart --stop-at +2h\n"
    )
    assert records(folder / "run", "stop")[-1]["n"] == 5
    assert_ends_like_whole(folder)
