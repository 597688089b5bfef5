"""A disk, a permission or a limit that changes under a run: it ends in one line that says what stands, and goes on
to the same bits once that is mended."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.exact.runs import assert_same_run, train
from tests.tiny import make_model_folder, make_rows
from unbroken.base.errors import StorageError
from unbroken.run.report import Event, Stepped
from unbroken.run.stop import StopRequest
from unbroken.tasks.train import Request, carry_out

COMMAND = [sys.executable, "-m", "unbroken", "train", "c.yaml"]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount, and be another user")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path, **changes: Any) -> dict[str, Any]:
    asked = {"task": "embed", "model": str(model), "train_data": make_rows(40), "batch_size": 4, "max_steps": 12}
    return asked | {"threads": 1, "save_steps": 3} | changes


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    train(values(model), root)
    return root


def refused(model: Path, run: Path, break_it: Callable[[], None]) -> StorageError:
    """Train until step 7, break something there, and return what the run says about it."""

    def report(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 7:
            while not (run / "checkpoints" / "00000006").exists():
                time.sleep(0.01)  # its commit is under way
            time.sleep(0.1)
            break_it()

    with pytest.raises(StorageError) as refusal:
        carry_out(Request({**values(model), "output_dir": str(run)}), report, StopRequest())
    line = str(refusal.value)
    assert "\n" not in line
    assert "of step 6 stands" in line, line
    assert refusal.value.next_step
    return refusal.value


def test_no_more_files_can_be_opened(model: Path, whole: Path, tmp_path: Path) -> None:
    held: list[int] = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def use_up() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[0]), limits[1]))
        with suppress(OSError):
            held.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(256))

    try:
        said = refused(model, tmp_path / "run", use_up)
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "Too many open files" in said.what
    assert "ulimit -n" in said.next_step
    assert train(values(model), tmp_path / "run").finished
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("limit", [8, 24])
def test_few_files_can_be_opened_from_the_start(limit: int, model: Path, tmp_path: Path) -> None:
    """Found before anything is written, instead of by whatever opens one file too many."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(40)), encoding="utf-8")
    asked = values(model, train_data="rows.jsonl", output_dir="run")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    ended = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *COMMAND],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "more files can be opened, 32 may be needed" in ended.stderr
    assert "raise the limit on open files (`ulimit -n`)" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@contextmanager
def ext4(folder: Path) -> Iterator[Path]:
    """A small disk of its own; whoever may not have one skips the test."""
    image, place = folder / "image", folder / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(48 << 20)
    for command in (["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(place)]):
        try:
            made = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"there is no {command[0]}")
        if made.returncode:
            pytest.skip(f"cannot make a disk: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@root_only
def test_a_disk_that_becomes_read_only(model: Path, whole: Path, tmp_path: Path) -> None:
    """As the kernel does it after an error: open files can no longer be written either."""
    with ext4(tmp_path) as place:
        run = place / "run"

        def fail() -> None:
            subprocess.run(["mount", "-o", "remount,abort", str(place)], check=False, capture_output=True)
            with suppress(OSError):
                (place / "probe").touch()
                pytest.skip("this kernel does not make a disk read-only on request")

        said = refused(model, run, fail)
        assert "Read-only file system" in said.what or "Input/output error" in said.what
        shutil.copytree(run, tmp_path / "rescued")
    assert train(values(model), tmp_path / "rescued").finished
    assert_same_run(tmp_path / "rescued", whole)


@root_only
def test_permissions_that_change(model: Path, whole: Path) -> None:
    """The run of a user whose folders are taken away in the middle."""
    with tempfile.TemporaryDirectory(prefix="unbroken-test-") as name, ExitStack() as undo:
        root = Path(name)
        root.chmod(0o755)
        copy = shutil.copytree(model, root / "model")
        (copy / "model.safetensors").chmod(0o644)
        (root / "home").mkdir()
        os.chown(root / "home", 65534, 65534)
        run = root / "home" / "run"
        os.setresuid(65534, 65534, 0)
        undo.callback(os.setresuid, 0, 0, 0)
        said = refused(copy, run, lambda: (run / "checkpoints").chmod(0o555))
        assert "Permission denied" in said.what
        assert "permissions" in said.next_step
        (run / "checkpoints").chmod(0o755)
        assert train(values(copy), run).finished
        undo.close()
        assert_same_run(run, whole)
