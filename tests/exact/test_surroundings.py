"""What lies around a run, changed under it: clocks, places, locale, threads, versions. No bit may change unsaid."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, step_records, train
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import CannotContinueError, UnbrokenError
from unbroken.run.report import Event, Notice
from unbroken.run.stop import StopRequest
from unbroken.tasks.train import Request, carry_out

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 30
TEN_YEARS = 315_576_000.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    """Two epochs of fifteen steps."""
    asked = {"task": "embed", "model": str(model), "train_data": make_rows(58), "batch_size": 4}
    return asked | {"num_train_epochs": 2.0, "learning_rate": 1e-3, "threads": 1} | changes


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    train(values(model), root)
    return root


# Clocks: row 15.


@contextmanager
def clock(read: Callable[[], float]) -> Iterator[None]:
    """Have everything that asks for the date be told another one."""
    stamp = time.strftime
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", read)
        patch.setattr("time.time_ns", lambda: int(read() * 1e9))
        patch.setattr("time.strftime", lambda form, when=None: stamp(form, when or time.gmtime(max(0.0, read()))))
        yield


CLOCKS: dict[str, Callable[[float], float]] = {
    "ten years ahead": lambda now: now + TEN_YEARS,
    "ten years back": lambda now: now - TEN_YEARS,
    "before 1970": lambda now: -1.0,
    "frozen": lambda now: 1_700_000_000.0,
    "jumping an hour at every look": lambda now: now + random.choice((-3600.0, 3600.0)),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case in ("ten years back", "frozen") else pytest.mark.slow) for case in CLOCKS],
)
def test_the_date_means_nothing(case: str, model: Path, whole: Path, tmp_path: Path) -> None:
    """Nor do the times of files: all the same, or the newest checkpoint the oldest."""
    now, run = time.time, tmp_path / "run"
    train(values(model, save_steps=2, save_total_limit=3), run, stop_after=9)
    kept = sorted((run / "checkpoints").glob("[0-9]*"))
    for age, path in enumerate([*kept, *run.rglob("*")]):
        os.utime(path, (0, 0) if path not in kept else (4e9 - age, 4e9 - age))
    with clock(lambda: CLOCKS[case](now())):
        train(values(model, save_steps=2, save_total_limit=3), run, stop_after=20)
    assert sorted(path.name for path in (run / "checkpoints").glob("[0-9]*")) == ["00000016", "00000018", "00000020"]
    segment = [json.loads(line) for line in (run / "journal.jsonl").read_bytes().splitlines()][-1]
    assert segment["n"] == 20
    assert train(values(model), run).finished
    assert_same_run(run, whole)


def test_the_date_does_not_say_when_to_save(model: Path, tmp_path: Path) -> None:
    """A clock that stands still, or leaps, neither keeps a run from saving by time nor has it save at every step."""
    for name, read in (("frozen", lambda: 0.0), ("leaping", lambda now=time.time: now() + random.random() * 1e9)):
        with clock(read):
            train(values(model, save_seconds=0.02, max_steps=10), tmp_path / f"often-{name}")
            train(values(model, save_seconds=3600.0, max_steps=10), tmp_path / f"never-{name}")
    for name in ("frozen", "leaping"):
        assert commits(tmp_path / f"often-{name}") > 1
        assert commits(tmp_path / f"never-{name}") == 1


def commits(run: Path) -> int:
    return (run / "journal.jsonl").read_bytes().count(b'"kind":"commit"')


# Places: rows 22 and 23.


def test_wherever_the_run_is(model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved, renamed, through a link, by a relative path, on another disk and back."""
    monkeypatch.chdir(tmp_path)
    place = Path("run")
    train(values(model), place, stop_after=4)
    place = place.rename("another name, with spaces and \N{LATIN SMALL LETTER E WITH ACUTE}")
    train(values(model), place, stop_after=9)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    place = Path(shutil.move(place, tmp_path / "deep" / "er" / "run"))
    train(values(model), place, stop_after=14)
    Path("link").symlink_to(place)
    train(values(model), Path("link"), stop_after=18)
    Path("folder").symlink_to(place.parent)
    monkeypatch.chdir("deep")
    train(values(model), Path("..") / "folder" / "run", stop_after=22)
    shared = Path("/dev/shm")
    if shared.is_dir() and os.stat(shared).st_dev != os.stat(tmp_path).st_dev:
        elsewhere = shared / f"unbroken-test-{os.getpid()}"
        shutil.move(place, elsewhere)
        try:
            train(values(model), elsewhere, stop_after=26)
        finally:
            shutil.move(elsewhere, place)
    assert train(values(model), place).finished
    assert_same_run(place, whole)
    named = str(tmp_path).encode()
    holding = [path for path in place.rglob("*") if path.is_file() and named in path.read_bytes()]
    about = {
        "run.json",
        ".run.json",
        "config.yaml",
        "journal.jsonl",
    }  # what was given, the command, the folder: for people
    assert {path.name for path in holding} <= about


def test_a_copy_of_a_run_is_the_run(model: Path, whole: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "run", stop_after=11)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for name in ("run", "copy"):
        assert train(values(model), tmp_path / name).finished
        assert_same_run(tmp_path / name, whole)


@pytest.mark.parametrize("name", ["run.json", ".run.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "edited"])
def test_a_damaged_run_file_is_put_back(how: str, name: str, model: Path, whole: Path, tmp_path: Path) -> None:
    """Either of the two is enough: the same bits, the damage said and kept."""
    run = tmp_path / "run"
    train(values(model, save_steps=3), run, stop_after=9)
    content = (run / name).read_bytes()
    edited = content.replace(b'"seed": 42', b'"seed": 43')
    assert edited != content
    left = {"missing": [], "empty": [b""], "edited": [edited]}[how]
    (run / name).unlink()
    for changed in left:
        (run / name).write_bytes(changed)
    said: list[Event] = []
    assert carry_out(Request({**values(model), "output_dir": str(run)}), said.append, StopRequest()).finished
    notices = [event.text for event in said if isinstance(event, Notice) and "run.json" in event.text]
    if (how, name) == ("missing", ".run.json"):  # as with a run of before there were two
        assert notices == []
    else:
        assert [text.startswith(f"{name} was ") for text in notices] == [True]
    assert [path.read_bytes() for path in run.glob(".broken-run.json-*")] == left
    assert (run / "run.json").read_bytes() == (run / ".run.json").read_bytes() == content
    assert_same_run(run, whole)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 90868376\n"
# What an interrupted copy may lack, and what the run says then; "" where it goes on without a word.
LACKING: dict[str, str] = {
    "cache": "",
    "config.yaml": "",
    "run.json": "run.json was missing: put back from its copy",
    ".run.json": "",
    "data.digests": "",
    "eval": "",
    "holder.json": "",
    "journal.jsonl": "no record begins at byte",
    "checkpoints/00000009/state.json": "state.json: No such file",
    "checkpoints/00000009/MANIFEST.json": "MANIFEST.json: No such file",
    "checkpoints/00000009/model/model.safetensors": "model.safetensors: No such file",
    "checkpoints/00000009/model/1_Pooling": "1_Pooling/config.json: No such file",
    "checkpoints/00000009": "",
}


@pytest.mark.parametrize("name", LACKING)
def test_an_interrupted_copy_of_a_run(name: str, model: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(values(model, save_steps=3), run, stop_after=9)
    place = run / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    said: list[Event] = []
    assert carry_out(Request({**values(model), "output_dir": str(run)}), said.append, StopRequest()).finished
    notices = [event.text for event in said if isinstance(event, Notice)]
    assert LACKING[name] == "" or any(LACKING[name] in text for text in notices), notices
    if name != "journal.jsonl":  # the steps on record there are gone with it, and the proof says so
        assert_same_run(run, whole)


@pytest.mark.parametrize("names", [["run.json", ".run.json"], ["checkpoints"]])
def test_what_a_run_cannot_go_on_without(names: list[str], model: Path, whole: Path, tmp_path: Path) -> None:
    run, kept = tmp_path / "run", tmp_path / "kept"
    kept.mkdir()
    train(values(model, save_steps=3), run, stop_after=9)
    for name in names:
        (run / name).rename(kept / name)
    with pytest.raises(UnbrokenError) as refusal:
        train(values(model), run)
    assert names[0] in str(refusal.value)
    for name in names:
        (kept / name).rename(run / name)
    assert train(values(model), run).finished
    assert_same_run(run, whole)


def test_pointers_in_the_place_of_weights(model: Path, whole: Path, tmp_path: Path) -> None:
    """A clone without Git LFS: the checkpoint is passed over, a base model is named for what it is."""
    run = tmp_path / "run"
    train(values(model, save_steps=3), run, stop_after=9)
    for path in (run / "checkpoints" / "00000009").rglob("*.safetensors"):
        path.write_bytes(POINTER)
    assert train(values(model), run).finished
    assert_same_run(run, whole)
    shutil.copytree(model, tmp_path / "cloned")
    (tmp_path / "cloned" / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(
        UnbrokenError, match=r"model\.safetensors is a pointer of Git LFS, not the file itself; .*lfs pull"
    ):
        train(values(tmp_path / "cloned"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Processes: rows 18, 19, 24.

PART = """
import json, sys
from pathlib import Path
from tests.exact.runs import train
from unbroken.base.errors import UnbrokenError
values, output, stop_after, options = json.loads(sys.argv[1])
try:
    ended = train(values, Path(output), stop_after=stop_after, **options)
    print(json.dumps([ended.finished, ended.proof]))
except UnbrokenError as refusal:
    print(json.dumps([refusal.exit_code, str(refusal)]))
"""


def part(asked: dict[str, Any], output: Path, stop_after: int | None, cwd: Path, **options: Any) -> Any:
    """Train a part of a run in a process of its own; `environment` and `prefix` are its surroundings."""
    environment, prefix = options.pop("environment", {}), options.pop("prefix", [])
    ended = subprocess.run(
        [*prefix, sys.executable, "-c", PART, json.dumps([asked, str(output), stop_after, options])],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}", **environment},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_every_process_elsewhere(model: Path, tmp_path: Path) -> None:
    """Hash seed, locale, time zone, folder, the variables that ask for threads, one core instead of two."""
    asked = values(model, threads=2)
    train(asked, tmp_path / "whole")
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
    surroundings: list[tuple[int | None, Path, dict[str, str], list[str]]] = [
        (8, tmp_path, {"PYTHONHASHSEED": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "1", "TZ": "UTC"}, []),
        (
            19,
            Path("/"),
            {"PYTHONHASHSEED": "77", "LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONUTF8": "0"},
            one_core,
        ),
        (
            None,
            model,
            {"OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "5", "OMP_DYNAMIC": "TRUE", "OMP_MAX_ACTIVE_LEVELS": "0"},
            [],
        ),
    ]
    for stop_after, cwd, environment, prefix in surroundings:
        found = part(asked, tmp_path / "run", stop_after, cwd, environment=environment, prefix=prefix)
        assert found[0] is (stop_after is None), found
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_fewer_threads_than_torch_counts_on_are_refused(model: Path, tmp_path: Path) -> None:
    """Measured: its gradients then hold what lay in memory before."""
    code, said = part(values(model, threads=2), tmp_path / "run", None, tmp_path, environment={"OMP_THREAD_LIMIT": "1"})
    assert (code, said[:53]) == (2, "OMP_THREAD_LIMIT allows 1 thread, the run has 2; torch"[:53])
    assert not (tmp_path / "run").exists()


SLOWER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}


def test_other_instructions_are_found_out_by_the_replay(model: Path, whole: Path, tmp_path: Path) -> None:
    """Another processor, as far as the arithmetic goes: either no bit changes, or it is refused and named."""
    run, asked = tmp_path / "run", values(model)
    train(asked, run, stop_after=9)
    code, said = part(asked, run, None, tmp_path, environment=SLOWER)
    if code is True:
        assert_same_run(run, whole)
        pytest.skip("this processor gives the same bits without its newer instructions")
    assert code == 4
    assert "step 10 does not repeat: loss was" in said or "step 10 does not repeat: grad_norm was" in said
    assert "processor" in said
    assert "--accept-drift" in said
    finished, proof = part(asked, run, None, tmp_path, environment=SLOWER, accept_drift=True)
    assert finished is True
    assert proof["drift_from"] == 10
    assert proof["verdict"] == "exact up to step 9, inexact from there (drift was accepted)"
    assert [record[0] for record in step_records(run)] == list(range(1, STEPS + 1))
    assert step_records(run)[:9] == step_records(whole)[:9]


def test_other_versions_are_said_and_the_replay_decides(model: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(values(model), run, stop_after=9)
    said: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unbroken.run.environment.version", lambda package: "99.0")
        ended = carry_out(Request({**values(model), "output_dir": str(run)}), said.append, StopRequest())
    assert ended.finished
    notices = [event.text for event in said if isinstance(event, Notice)]
    assert any("versions.torch: " in text and " -> 99.0; the replayed steps will show" in text for text in notices)
    assert_same_run(run, whole)


@pytest.mark.parametrize(("key", "value"), [("threads", 3), ("device", "cuda")])
def test_other_threads_or_another_device_are_refused(key: str, value: Any, model: Path, tmp_path: Path) -> None:
    train(values(model), tmp_path / "run", stop_after=2)
    with pytest.raises(CannotContinueError, match=rf"{key}: .* \(this run\) -> "):
        train(values(model, **{key: value}), tmp_path / "run")


# Several resumes: row 26.


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 30))])
def test_stopped_and_killed_at_sampled_pairs(seed: int, model: Path, whole: Path, tmp_path: Path) -> None:
    """Two interruptions, one of them without a commit of its own; ends and beginnings of epochs come first."""
    draw = random.Random(seed)
    corners = [(14, 15), (15, 16), (15, 15), (29, 30), (1, 29)]
    first, second = corners[seed] if seed < len(corners) else sorted(draw.sample(range(1, STEPS), 2))
    asked, run = values(model, save_steps=draw.choice((2, 3, 5, 7))), tmp_path / "run"
    killed(asked, run, first) if seed % 2 else train(asked, run, stop_after=first)
    train(asked, run, stop_after=second) if seed % 2 else killed(asked, run, second)
    assert train(asked, run).finished
    assert_same_run(run, whole)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the run catches it."""


def killed(asked: dict[str, Any], run: Path, after: int) -> None:
    def report(event: Event) -> None:
        if getattr(event, "step", None) == after and type(event).__name__ == "Stepped":
            raise Killed

    with suppress(Killed):
        carry_out(Request({**asked, "output_dir": str(run)}), report, StopRequest())
