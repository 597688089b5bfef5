"""Folders made to do harm: one clear line each, nothing run, nothing waited for, no memory taken for a claim."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import socket
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.exact.runs import assert_same_run, train
from tests.exact.test_contract_fields import everything
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import CannotContinueError, ConfigError, UnbrokenError
from unbroken.base.fingerprint import canonical, digest
from unbroken.cli.main import run as command
from unbroken.run.report import Event, Notice
from unbroken.run.stop import StopRequest
from unbroken.tasks.train import Request, carry_out

TERABYTE = 1 << 40
NEWEST, OLDER = "checkpoints/00000008", "checkpoints/00000006"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    asked = {"task": "embed", "model": str(model), "train_data": make_rows(40), "batch_size": 4, "max_steps": 12}
    return asked | {"threads": 1, "save_steps": 2} | changes


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    train(values(model), root / "whole")
    train(values(model), root / "midway", stop_after=8)
    train(values(model, seed=8, max_steps=30), root / "stranger", stop_after=20)
    return root


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs / "midway", tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """No test here may hang, or ask for more memory than a small model takes."""

    def bite(*ignored: Any) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, bite)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), limits[1]))
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


class Harm:
    """What a pickle that is loaded does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def sparse(path: Path, start: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(TERABYTE)


def header(claim: dict[str, Any] | str) -> bytes:
    text = (claim if isinstance(claim, str) else json.dumps(claim)).encode()
    return len(text).to_bytes(8, "little") + text


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and renew its digest: the work of somebody who knows the format."""
    path = folder / "MANIFEST.json"
    body = json.loads(path.read_bytes())
    del body["digest"]
    change(body)
    path.write_bytes(canonical({**body, "digest": digest(canonical(body))}) + b"\n")


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def pipe(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


def endless(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mknod(folder / name, 0o644 | 0o020000, os.makedev(1, 5))  # /dev/zero

    return make


def listening(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.chdir(folder / Path(name).parent)  # the address of a socket has 107 letters at most
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(Path(name).name)

    return make


def linked(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).rename(folder.parent.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent.parent / "elsewhere")

    return make


def outside(path: str) -> Callable[[Path], None]:
    def name(body: dict[str, Any]) -> None:
        body["files"][path] = body["files"].pop("state.json")

    return lambda folder: forge(folder, name)


def huge(folder: Path) -> None:
    sparse(folder / "optimizer.safetensors", header({"x": {"dtype": "U8", "shape": [1 << 39], "data_offsets": [0, 1]}}))


def huge_by_the_manifest(folder: Path) -> None:
    """Also the manifest says so, with all its digests right."""

    def claim(body: dict[str, Any]) -> None:
        body["files"]["state.json"]["size"] = body["files"]["optimizer.safetensors"]["size"] = TERABYTE

    start = (TERABYTE - 8 - 75).to_bytes(8, "little")
    sparse(folder / "optimizer.safetensors", start)
    sparse(folder / "state.json")
    forge(folder, claim)


def a_folder(folder: Path) -> None:
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()


HOSTILE: dict[str, Callable[[Path], None]] = {
    "a path that leads up": outside("../../../state.json"),
    "an absolute path": outside("/etc/passwd"),
    "a path through itself": outside("model/../state.json"),
    "a linked file": linked("state.json"),
    "a linked manifest": linked("MANIFEST.json"),
    "a linked folder": linked("model"),
    "a linked part": linked("model/1_Pooling"),
    "a pipe for the manifest": pipe("MANIFEST.json"),
    "a pipe for the weights": pipe("model/model.safetensors"),
    "a pipe for the state": pipe("state.json"),
    "a socket for the state": listening("state.json"),
    "a folder for the state": a_folder,
    "a manifest of a terabyte": lambda folder: sparse(folder / "MANIFEST.json", b'{"files":'),
    "a state of a terabyte": lambda folder: sparse(folder / "state.json", b"{"),
    "weights of a terabyte": lambda folder: sparse(folder / "model/model.safetensors"),
    "a tensor of a terabyte": huge,
    "a header longer than memory": replaced("optimizer.safetensors", (1 << 62).to_bytes(8, "little") + b"{}"),
    "a shape beyond all numbers": replaced(
        "optimizer.safetensors", header({"x": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 0]}})
    ),
    "a name twice in the header": replaced("optimizer.safetensors", header('{"x": {}, "x": {}}')),
    "a deep manifest": replaced("MANIFEST.json", b"[" * 1_000_000),
    "a deep state": replaced("state.json", b'{"a":' * 200_000),
    "a key twice in the manifest": replaced("MANIFEST.json", b'{"digest":"","digest":"","format":1,"format":1}\n'),
    "a pickle for the weights": lambda folder: (
        (folder / "model/model.safetensors").write_bytes(pickle.dumps(Harm(folder.parents[2] / "harm"))) and None
    ),
}
if os.geteuid() == 0:
    HOSTILE["a device without an end"] = endless("state.json")


def some(cases: Iterable[str], every: int) -> list[Any]:
    """One in so many of the cases is always run, the others are slow."""
    return [
        case if number % every == 0 else pytest.param(case, marks=pytest.mark.slow) for number, case in enumerate(cases)
    ]


@pytest.mark.parametrize("case", some(HOSTILE, every=2))
def test_a_hostile_checkpoint_is_set_aside(
    case: str, model: Path, run: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run falls back to the checkpoint before, says so in one line, and ends with the same bits."""
    monkeypatch.chdir(run)
    HOSTILE[case](run / NEWEST)
    said: list[Event] = []
    tracemalloc.start()
    ended = carry_out(Request({**values(model), "output_dir": str(run)}), said.append, StopRequest())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ended.finished
    assert peak < 200e6
    [notice] = [event.text for event in said if isinstance(event, Notice) and "step 8" in event.text]
    assert "moved to .broken-00000008-0" in notice
    assert "\n" not in notice
    assert not (run.parent / "harm").exists()
    assert_same_run(run, runs / "whole")


def finishes_or_says_why(model: Path, run: Path) -> None:
    """Either end will do; anything but one of our own errors, in one line, will not."""
    said = ""
    with suppress(UnbrokenError):
        try:
            assert train(values(model), run).finished
        except UnbrokenError as refusal:
            said = str(refusal)
            raise
    assert "\n" not in said


def test_digests_that_claim_a_terabyte(model: Path, run: Path) -> None:
    """Forged down to the last digest, it may be refused or passed over, but it takes no memory."""
    huge_by_the_manifest(run / NEWEST)
    finishes_or_says_why(model, run)
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"00000006", "00000012"} & kept


@pytest.mark.parametrize("case", some(HOSTILE, every=4))
def test_show_says_what_is_wrong(
    case: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    HOSTILE[case](run / NEWEST)
    assert command(["show", str(run / NEWEST)]) == 0
    out, err = capsys.readouterr()
    assert "verifies  no" in out
    assert "Traceback" not in out + err
    assert command(["show", str(run)]) == 0
    assert "00000008" in capsys.readouterr().out
    assert not (run.parent / "harm").exists()


FOREIGN_NAMES = ("trainer_state.json", "config.json", "modules.json", "adapter_config.json")


@pytest.mark.parametrize("how", ["pipe", "terabyte", "deep"])
@pytest.mark.parametrize("name", [*FOREIGN_NAMES, "model.safetensors", "optimizer.pt", "training_args.bin"])
def test_show_and_model_on_a_hostile_folder(
    name: str, how: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint-500"
    shutil.copytree(model, folder)
    (folder / "trainer_state.json").write_text('{"global_step": 500}')
    (folder / name).unlink(missing_ok=True)
    match how:
        case "pipe":
            os.mkfifo(folder / name)
        case "terabyte":
            sparse(folder / name, b"{")
        case _:
            (folder / name).write_bytes(b"[" * 1_000_000)
    code = command(["show", str(folder)])
    out, err = capsys.readouterr()
    assert (code, "internal error" in err, "Traceback" in err) == (0, False, False)
    if name.endswith("config.json") or name == "trainer_state.json" or how == "deep":
        assert "is cut or damaged" in out or name == "modules.json"
    if name in ("config.json", "modules.json") or (name == "model.safetensors" and how != "terabyte"):
        with pytest.raises(UnbrokenError) as refusal:
            train(values(folder), tmp_path / "run")
        assert "\n" not in str(refusal.value)
        assert not (tmp_path / "run").exists()


PICKLES = ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "model_head.pkl")


def test_pickles_are_never_loaded(
    model: Path, run: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside good files they count for nothing; alone they are refused."""
    harmful = pickle.dumps(Harm(tmp_path / "harm"))
    folder = tmp_path / "checkpoint-500"
    shutil.copytree(model, folder)
    for place in (folder, run / NEWEST, run / NEWEST / "model", run):
        for name in PICKLES:
            (place / name).write_bytes(harmful)
    for place in (folder, run, run / NEWEST):
        assert command(["show", str(place)]) == 0
        assert "Traceback" not in "".join(capsys.readouterr())
    assert train(values(model), run).finished
    assert_same_run(run, runs / "whole")
    assert train(values(folder), tmp_path / "from-the-model").finished
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"only as pytorch_model\.bin, which can run code when loaded; convert it"):
        train(values(folder), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl", "holder.json", "data.digests", "eval/00000000.json"])
@pytest.mark.parametrize("how", ["pipe", "terabyte"])
def test_hostile_files_of_a_run(name: str, how: str, model: Path, run: Path) -> None:
    """Whatever becomes of it: soon, and in one line."""
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    os.mkfifo(run / name) if how == "pipe" else sparse(run / name, b"{")
    if name == "journal.jsonl" and how == "terabyte":
        pytest.skip("reading a terabyte of zeros takes minutes, though little memory")
    finishes_or_says_why(model, run)
    assert command(["show", str(run)]) in (0, 2)


# Checkpoints of other runs, and files in the wrong place: row 13.


def test_a_higher_checkpoint_of_another_run(model: Path, run: Path, runs: Path) -> None:
    """Stale, and with a higher step than any of ours: named, passed over, never counted, never removed."""
    stranger = sorted((runs / "stranger" / "checkpoints").glob("[0-9]*"))[-1]
    shutil.copytree(stranger, run / "checkpoints" / stranger.name)
    before = everything(run / "checkpoints" / stranger.name)
    said: list[Event] = []
    assert carry_out(Request({**values(model), "output_dir": str(run)}), said.append, StopRequest()).finished
    assert any("belongs to another run" in event.text for event in said if isinstance(event, Notice))
    assert everything(run / "checkpoints" / stranger.name) == before
    ours = sorted(path.name for path in (run / "checkpoints").glob("[0-9]*"))
    assert ours == ["00000010", "00000012", "00000020"], "two of ours are kept, whoever else is there"
    shutil.rmtree(run / "checkpoints" / stranger.name)
    assert_same_run(run, runs / "whole")


def test_another_runs_checkpoint_where_ours_has_to_go(model: Path, run: Path, runs: Path) -> None:
    stranger = runs / "stranger" / "checkpoints" / "00000018"
    shutil.copytree(stranger, run / "checkpoints" / "00000010")
    before = everything(run / "checkpoints" / "00000010")
    assert train(values(model), run).finished
    [kept] = (run / "checkpoints").glob(".foreign-*")
    assert everything(kept) == before
    assert_same_run(run, runs / "whole")


def test_only_another_runs_checkpoints_are_no_start(model: Path, run: Path, runs: Path) -> None:
    """Copied over ours: the run does not go on from them, and does not start over either."""
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(runs / "stranger" / "checkpoints", run / "checkpoints")
    before = everything(run / "checkpoints")
    with pytest.raises(CannotContinueError, match="its checkpoints are gone; put the checkpoints folder back"):
        train(values(model), run)
    assert everything(run / "checkpoints") == before


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json", "model/model.safetensors", "MANIFEST.json"])
def test_a_file_of_the_checkpoint_before(name: str, model: Path, run: Path, runs: Path) -> None:
    """The same kind of file, sound in itself, of another step."""
    shutil.copy2(run / OLDER / name, run / NEWEST / name)
    assert train(values(model), run).finished
    assert (run / "checkpoints" / ".broken-00000008-0").is_dir()
    assert_same_run(run, runs / "whole")


def test_exchanged_checkpoints(model: Path, run: Path, runs: Path) -> None:
    (run / NEWEST).rename(run / "checkpoints" / "x")
    (run / OLDER).rename(run / NEWEST)
    (run / "checkpoints" / "x").rename(run / OLDER)
    with pytest.raises(CannotContinueError, match=r"no checkpoint of .* verifies"):
        train(values(model), run)
    assert len(list((run / "checkpoints").glob(".broken-*"))) == 2, "set aside, not removed"
