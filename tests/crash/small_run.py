"""A run of the store alone, whose tensors are a function of the step; and work done in a forked process.

Forked from a process that has torch loaded, hundreds of processes take seconds. The parent must have no threads:
it never commits itself.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unbroken.store.checkpoints import Checkpoints, Image, Placed
from unbroken.store.journal import Journal

RUN_ID = "a-run"
DOCUMENT = {"run_id": RUN_ID}
DRIFTED = {"step": "came out differently"}


def make_image(step: int) -> Image:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(step))
    return Image(
        step,
        {
            "weight": Placed("model/model.safetensors", "weight", weight),
            "moment": Placed("optimizer.safetensors", "moment", weight * 2),
        },
        {"model/config.json": b"{}"},
        {"step": step},
    )


class Run:
    """What one process has open of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = Journal(root / "journal.jsonl")
        self.checkpoints = Checkpoints(root, RUN_ID, self.journal)

    def commit(self, step: int, *, drifted: bool = False) -> None:
        """Record and commit a step; `drifted` with another state than that of the first time."""
        image = make_image(step)
        self.journal.append({"kind": "step", "n": step})
        self.checkpoints.commit(replace(image, state=DRIFTED) if drifted else image)
        self.checkpoints.wait()

    def restored_step(self) -> int:
        """Restore and compare every bit with what that step must hold; 0 if there is nothing to restore."""
        restored = self.checkpoints.restore()
        if restored is None:
            return 0
        image = make_image(restored.step)
        assert restored.state in (image.state, DRIFTED)
        assert restored.documents == image.documents
        assert restored.tensors.keys() == image.tensors.keys()
        for name, placed in image.tensors.items():
            assert torch.equal(restored.tensors[name], placed.tensor), name
        numbers = [record["n"] for record in self.journal.records()]
        assert restored.step in numbers, "the journal lost what the checkpoint builds on"
        return restored.step


def assert_tidy(run: Run) -> None:
    """After a commit there are two checkpoints that verify, and nothing that a dead attempt left (oracle O5)."""
    steps = run.checkpoints.steps()
    assert len(steps) == 2, f"{len(steps)} checkpoints are kept"
    assert not [text for step in steps for text in run.checkpoints.verify(step)]
    left = [path.name for path in run.checkpoints.home.iterdir() if path.name.startswith((".tmp-", ".trash-"))]
    assert not left, f"a leftover remains: {left}"


def in_new_process(work: Callable[[], Any]) -> Any:
    """Return what `work` returns (as JSON) in a forked process; raise `AssertionError` with its traceback."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer: dict[str, Any] = {}
        try:
            answer = {"value": work()}
        except BaseException:  # noqa: BLE001 (told to the parent)
            answer = {"error": traceback.format_exc()}
        finally:
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        content = json.loads(stream.read() or b'{"error": "the process died"}')
    os.waitpid(child, 0)
    assert "error" not in content, content["error"]
    return content["value"]
