"""A run folder with a journal, and images whose tensors are a function of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unbroken.store.checkpoints import Checkpoints, Image, Placed
from unbroken.store.journal import Journal

RUN_ID = "a-run"


def make_image(step: int) -> Image:
    draw = torch.Generator().manual_seed(step)
    weight = torch.randn(6, 4, generator=draw)
    model, optimizer = "model/model.safetensors", "optimizer.safetensors"
    return Image(
        step,
        {
            "encoder.weight": Placed(model, "weight", weight),
            "encoder.half": Placed(model, "half", weight.to(torch.bfloat16)),
            "encoder.turned": Placed(model, "turned", weight.t()),
            "encoder.none": Placed(model, "none", torch.empty(0, 3)),
            "encoder.ids": Placed("extra.safetensors", "ids", torch.arange(5)),
            "optimizer.encoder.weight.exp_avg": Placed(optimizer, "weight.exp_avg", weight * 0.1),
            "optimizer.encoder.weight.step": Placed(optimizer, "weight.step", torch.tensor(float(step))),
        },
        {"model/config.json": b'{"width": 4}', "model/1_Pooling/config.json": b"{}"},
        {"step": step, "best": 0.1 * step},
    )


class Run:
    """One process's view of a run; `again` is the next process's."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.home = root / "checkpoints"
        self.journal = Journal(root / "journal.jsonl")
        self.checkpoints = Checkpoints(root, RUN_ID, self.journal, **options)

    def again(self) -> Run:
        self.journal.close()
        return Run(self.root)

    def commit(self, *steps: int) -> None:
        for step in steps:
            self.journal.append({"kind": "step", "n": step})
            self.checkpoints.commit(make_image(step))
        assert [done.step for done in self.checkpoints.wait()] == list(steps)

    def folder(self, step: int) -> Path:
        return self.home / f"{step:08d}"

    def names(self) -> list[str]:
        return sorted(path.name for path in self.home.iterdir())


def assert_restores(run: Run, step: int) -> None:
    restored = run.checkpoints.restore()
    assert restored is not None
    assert restored.step == step
    expected = make_image(step)
    assert restored.state == expected.state
    assert restored.documents == expected.documents
    assert restored.tensors.keys() == expected.tensors.keys()
    for name, placed in expected.tensors.items():
        tensor = restored.tensors[name]
        assert (tensor.dtype, tensor.shape) == (placed.tensor.dtype, placed.tensor.shape)
        assert torch.equal(tensor, placed.tensor)
        assert tensor.data_ptr() % 64 == 0
        assert tensor.is_contiguous()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)
