"""A folder as a new user has it, and what must hold whenever a command refuses: one line, a code, nothing written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny import make_rows

from unbroken.cli.main import run

LEFT_OUT = object()  # a key of CONFIG that a case leaves out
ANY = "…"  # in an expected line: anything may stand here
CONFIG: dict[str, Any] = {
    "task": "embed",
    "model": "model",
    "output_dir": "runs/a",
    "train_data": "train.jsonl",
    "batch_size": 4,
    "max_steps": 4,
    "threads": 1,
}


class Desk:
    """The working folder of one user: a model, two files of rows, a configuration `c.yaml`."""

    def __init__(self, root: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.capfd = capfd
        (root / "model").symlink_to(model)
        self.rows = make_rows(20)
        self.write_rows("train.jsonl", self.rows)
        self.write_rows("eval.jsonl", make_rows(6, seed=1))
        self.configure()

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        (self.root / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def configure(self, **changes: Any) -> None:
        values = {key: value for key, value in {**CONFIG, **changes}.items() if value is not LEFT_OUT}
        (self.root / "c.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def place(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def refuses(self, code: int, line: str, *arguments: str, ignoring: tuple[str, ...] = ()) -> None:
        """Run a command (`train c.yaml` unless told otherwise) that must fail as the requirement says."""
        before = listing(self.root, ignoring)
        self.capfd.readouterr()
        actual = run(list(arguments or ("train", "c.yaml")))
        out, err = self.capfd.readouterr()
        assert_one_line(line, err)
        assert (actual, out) == (code, "")
        assert listing(self.root, ignoring) == before, "something was written"


def assert_one_line(expected: str, err: str) -> None:
    """The only line on stderr is `unbroken: ` and what is expected; `…` there stands for anything."""
    assert err.endswith("\n"), f"nothing was said: {err!r}"
    assert err.count("\n") == 1, f"more than one line:\n{err}"
    assert "Traceback" not in err
    actual = err.rstrip("\n").removeprefix("unbroken: ")
    first, *others = expected.split(ANY)
    assert actual.startswith(first), f"{actual}\n  is not\n{expected}"
    position = len(first)
    for part in others:
        found = len(actual) - len(part) if part is others[-1] else actual.find(part, position)
        assert found >= position, f"{actual}\n  is not\n{expected}"
        assert actual[found:].startswith(part), f"{actual}\n  is not\n{expected}"
        position = found + len(part)
    assert position == len(actual), f"{actual}\n  is not\n{expected}"


def listing(root: Path, ignoring: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of last change."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in [".", *names, *files]:
            path = Path(folder) / name
            if name not in ignoring:
                with suppress(OSError):
                    status = path.lstat()
                    found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


COMMAND = [sys.executable, "-m", "unbroken"]
