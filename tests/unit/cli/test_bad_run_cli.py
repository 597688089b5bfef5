"""Every mistake about a run that exists, or the place of a new one: one line, the code, nothing changed or written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.exact.runs import train
from tests.tiny import make_model_folder, make_rows
from tests.unit.cli.bad_input import COMMAND, CONFIG, Desk, listing

from unbroken.cli.main import run
from unbroken.store.lock import RunLock

DATA_FORK = "unbroken fork runs/a NEW --set train_data=train.jsonl"
DATA_WAYS_OUT = (
    f"; put the data back, choose a new output_dir, `{DATA_FORK}` for a new run from the state of this one, "
    "or --restart to start over"
)


def ways_out(settings: str | None) -> str:
    """What follows the differences; with the fork's settings if one is a way out."""
    fork = f"`unbroken fork runs/a NEW {settings}` for a new run from the state of this one, " if settings else ""
    return (
        "; going on would make neither the one model nor the other; "
        f"choose a new output_dir for a new run, {fork}or --restart to move this run aside and start over"
    )


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run of four steps that was stopped after two."""
    root = tmp_path_factory.mktemp("stopped")
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(20)), encoding="utf-8")
    paths = {"model": str(tiny_model), "train_data": str(root / "train.jsonl")}
    assert train({**CONFIG, **paths}, root / "a", stop_after=2).step == 2
    return root / "a"


@pytest.fixture
def midway(desk: Desk, stopped_run: Path) -> Desk:
    """A desk whose configuration has been trained halfway."""
    shutil.copytree(stopped_run, desk.root / "runs" / "a")
    return desk


CHANGES: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "batch size": ({"batch_size": 8}, "batch_size: 4 (this run) -> 8 (c.yaml)", "--set batch_size=8"),
    "learning rate": (
        {"learning_rate": 1e-5},
        "learning_rate: 5e-05 (this run) -> 1e-05 (c.yaml)",
        "--set learning_rate=1e-05",
    ),
    "two keys": (
        {"seed": 7, "shuffle": False},
        "seed: 42 (this run) -> 7 (c.yaml), shuffle: true (this run) -> false (c.yaml)",
        "--set seed=7 --set shuffle=false",
    ),
    "longer": ({"max_steps": 8}, "max_steps: 4 (this run) -> 8 (c.yaml)", "--set max_steps=8"),
    "epochs": (
        {"max_steps": None, "num_train_epochs": 2.0},
        "num_train_epochs: 3.0 (this run) -> 2.0 (c.yaml), max_steps: 4 (this run) -> null (c.yaml)",
        "--set num_train_epochs=2.0 --set max_steps=null",
    ),
    "threads": ({"threads": 2}, "threads: 1 (this run) -> 2 (c.yaml)", "--set threads=2"),
    "a prompt": (
        {"prompts": {"anchor": "q: "}},
        "prompts.anchor: null (this run) -> 'q: ' (c.yaml)",
        "--set 'prompts.anchor=\"q: \"'",
    ),
    "another model": ({"model": "other"}, "model: content … (this run) -> content … (c.yaml)", None),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_configuration(case: str, midway: Desk) -> None:
    changes, diff, settings = CHANGES[case]
    make_model_folder(midway.root / "other", seed=1)
    midway.configure(**changes)
    midway.refuses(4, f"runs/a was started with another configuration: {diff}{ways_out(settings)}")
    if settings is not None:  # the command, pasted: a run that has what was asked for
        assert run(["fork", "runs/a", "runs/new", *shlex.split(settings)]) == 0
        midway.configure(**changes, output_dir="runs/new")
        assert run(["train", "c.yaml"]) == 0, "the fork is not the run that was asked for"


def test_a_change_on_the_command_line(midway: Desk) -> None:
    line = "runs/a was started with another configuration: batch_size: 4 (this run) -> 5 (--set)"
    line += ways_out("--set batch_size=5")
    midway.refuses(4, line, "train", "c.yaml", "--set", "batch_size=5")
    midway.refuses(4, line, "train", "runs/a", "--set", "batch_size=5")


def rows_changed(how: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    match how:
        case "edited":
            return [*rows[:6], {**rows[6], "positive": "river"}, *rows[7:]]
        case "appended":
            return [*rows, *make_rows(1, seed=9)]
        case "removed":
            return [*rows[:3], *rows[4:]]
        case _:
            return [*rows[:9], rows[10], rows[9], *rows[11:]]


@pytest.mark.parametrize(
    ("how", "now", "row"), [("edited", 20, 7), ("appended", 21, 21), ("removed", 19, 4), ("reordered", 20, 10)]
)
def test_changed_rows(how: str, now: int, row: int, midway: Desk) -> None:
    midway.write_rows("train.jsonl", rows_changed(how, midway.rows))
    line = f"20 rows then, {now} now (c.yaml); the first row that differs is row {row}"
    midway.refuses(4, f"the training data are not those runs/a was started with: {line}{DATA_WAYS_OUT}")


def test_changed_columns(midway: Desk) -> None:
    midway.configure(columns={"anchor": "positive", "positive": "anchor"})
    columns = """ --set 'columns={"anchor": "positive", "positive": "anchor"}'"""
    line = "the training data are not those runs/a was started with: …" + DATA_WAYS_OUT
    midway.refuses(4, line.replace(DATA_FORK, DATA_FORK + columns))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1, "digest": "00"}'])
def test_a_damaged_run_file_and_a_damaged_copy(content: bytes, midway: Desk) -> None:
    midway.place({"runs/a/run.json": content, "runs/a/.run.json": content})
    line = "runs/a/run.json is damaged or was edited; what this run is cannot be told; "
    advice = "put the original file back, or begin a new run in another output_dir"
    midway.refuses(4, line + advice)
    midway.refuses(4, line + advice, "train", "runs/a")
    midway.configure(model="runs/a", output_dir="runs/b")
    midway.refuses(4, line + advice)


def test_a_mistake_with_restart_leaves_the_run_where_it_is(midway: Desk) -> None:
    midway.configure(batch_size=-1)
    midway.refuses(2, "c.yaml: batch_size: -1 is not valid…", "train", "c.yaml", "--restart")
    midway.configure(train_data="trian.jsonl")
    midway.refuses(3, "no file trian.jsonl…", "train", "c.yaml", "--restart")
    midway.configure(model="runs/a")
    midway.refuses(2, "model: runs/a belongs to the run in output_dir itself…", "train", "c.yaml", "--restart")
    midway.configure(max_length=65)
    midway.refuses(2, "max_length 65…", "train", "c.yaml", "--restart")


def test_restart_moves_the_run_aside_and_starts_over(midway: Desk) -> None:
    """The control: the same command without a mistake."""
    midway.configure(batch_size=8)
    assert run(["train", "c.yaml", "--restart"]) == 0
    assert sorted(os.listdir("runs")) == ["a", "before-restart-a-0"]
    assert not Path("runs/before-restart-a-0/holder.json").exists()


def test_a_run_another_holds(midway: Desk) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()} since …"
    advice = "wait for it to end, or stop it, and run the same command again"
    with RunLock(midway.root / "runs" / "a"):
        midway.refuses(75, f"runs/a is in use by {holder}; {advice}")
        midway.refuses(75, f"runs/a is in use by {holder}; {advice}", "train", "c.yaml", "--restart")


def test_a_run_another_process_trains(desk: Desk) -> None:
    desk.configure(max_steps=1_000_000)
    with subprocess.Popen([*COMMAND, "train", "c.yaml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as other:
        try:
            wait_for(desk.root / "runs" / "a" / "journal.jsonl", other)
            desk.capfd.readouterr()
            assert run(["train", "c.yaml"]) == 75
            assert f"runs/a is in use by process {other.pid} on {socket.gethostname()}" in desk.capfd.readouterr().err
        finally:
            other.send_signal(signal.SIGTERM)
            other.communicate(timeout=60)
        assert other.returncode == 75


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def test_resuming_from_elsewhere(midway: Desk, stopped_run: Path) -> None:
    midway.place({"checkpoint-500/trainer_state.json": b"{}", "checkpoint-500/model.safetensors": b""})
    resume = ("train", "c.yaml", "--resume_from_checkpoint")
    advice = "to start a new run from those weights, give them as `model: "
    midway.refuses(
        2,
        f"resume_from_checkpoint: checkpoint-500 is not in the run runs/a; {advice}checkpoint-500`",
        *resume,
        "checkpoint-500",
    )
    midway.refuses(2, f"resume_from_checkpoint: {stopped_run} is not in the run runs/a; …", *resume, str(stopped_run))
    for missing in ("nowhere", "runs/a/checkpoints/00000099"):
        line = f"resume_from_checkpoint: {missing} is not there; leave it out: the run goes on from its newest good …"
        midway.refuses(2, line, *resume, missing)
    line = "--restart starts over, --resume_from_checkpoint goes on; give one of them"
    midway.refuses(2, line, *resume, "runs/a/checkpoints/00000002", "--restart")


def test_a_model_out_of_the_same_run(midway: Desk) -> None:
    advice = "to resume it, `unbroken train runs/a`; to train its result further, choose a new output_dir"
    midway.configure(model="runs/a")
    midway.refuses(2, f"model: runs/a belongs to the run in output_dir itself; {advice}")


def test_a_model_out_of_a_run_without_one(midway: Desk) -> None:
    shutil.rmtree("runs/a/checkpoints")
    midway.configure(model="runs/a", output_dir="runs/b")
    midway.refuses(2, "model: the run runs/a has no model yet; let it reach its first commit")


def test_a_run_started_from_memory(midway: Desk, tiny_model: Path) -> None:
    values = {**CONFIG, "model": str(tiny_model), "train_data": make_rows(20)}
    train(values, midway.root / "runs" / "b", stop_after=1)
    line = "train_data: the run was started from Python with 20 rows in memory; continue it from Python with the same …"
    midway.refuses(2, line, "train", "runs/b")


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    """Mount a file system at `place`, for root only; whoever is not skips the test."""
    place.mkdir()
    made = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@root_only
def test_a_disk_that_is_too_small(desk: Desk) -> None:
    with mounted(desk.root / "small", "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        desk.configure(output_dir="small/a")
        desk.refuses(
            2,
            "the disk of small/a has 0.1 MB left, the run's checkpoints need … MB; a commit would fail later on; "
            "free some space, choose another output_dir, or lower save_total_limit",
        )


@root_only
def test_a_read_only_disk(midway: Desk) -> None:
    with mounted(midway.root / "still", "-t", "tmpfs", "-o", "ro", "tmpfs") as place:
        midway.configure(output_dir="still/a")
        midway.refuses(
            2, f"cannot write in {place}: its disk is mounted read-only; remount it, or choose another output_dir"
        )


@root_only
def test_a_run_on_a_read_only_disk(midway: Desk) -> None:
    with mounted(midway.root / "still", "--bind", "-o", "ro", str(midway.root / "runs")):
        midway.configure(output_dir="still/a")
        midway.refuses(2, "cannot write in still/a: its disk is mounted read-only; remount it, or …")


@pytest.fixture
def strangers_desk(
    tiny_model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    """A desk that a user without any rights can look at."""
    with tempfile.TemporaryDirectory(prefix="unbroken-test-") as name:
        root = Path(name)
        root.chmod(0o755)
        monkeypatch.chdir(root)
        shutil.copytree(tiny_model, root / "copy")
        desk = Desk(root, root / "copy", capfd)
        desk.configure(output_dir="warm-up", max_steps=1)
        assert run(["train", "c.yaml"]) == 0  # everything is imported now: the stranger may not be able to
        desk.configure()
        (root / "open").mkdir(mode=0o777)
        (root / "open").chmod(0o777)
        yield desk


@contextmanager
def without_rights() -> Iterator[None]:
    """Be nobody for a while; root could read and write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_no_permission(strangers_desk: Desk) -> None:
    desk = strangers_desk
    cases: dict[str, tuple[int, dict[str, Any], str]] = {
        "train.jsonl": (
            3,
            {},
            "train.jsonl cannot be read; Permission denied; check the disk and the file's permissions",
        ),
        "c.yaml": (2, {}, "c.yaml cannot be read: Permission denied; check the path and its permissions"),
        "copy": (2, {}, "model: model/… cannot be read: Permission denied; check the folder's permissions"),
        "shut": (2, {"output_dir": "shut/a"}, "cannot write in …/shut: permission denied; choose another output_dir …"),
        "warm-up": (2, {"output_dir": "warm-up"}, "cannot read warm-up/run.json: Permission denied…"),
    }
    (desk.root / "shut").mkdir()
    for name, (code, changes, line) in cases.items():
        desk.configure(**{"output_dir": "open/a", **changes})
        mode = (desk.root / name).stat().st_mode
        (desk.root / name).chmod(0o555 if name == "shut" else 0)
        try:
            with without_rights():
                desk.refuses(code, line)
        finally:
            (desk.root / name).chmod(mode)
    assert listing(desk.root / "open").keys() == {f"{desk.root}/open"}
