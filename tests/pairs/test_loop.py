"""`Loop` around sentence-transformers' own model, and against the plain PyTorch loop it replaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.exact.runs import assert_same_run
from tests.tiny import make_model_folder, make_rows
from unbroken import Loop
from unbroken.run.report import silent

sentence_transformers = pytest.importorskip("sentence_transformers")

BATCH, STEPS = 4, 12
ROWS = make_rows(22)


def parts(folder: Path, dropout: float = 0.1) -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(32, 2))
    model.train()
    return model, head, torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)


def loss_of(model: Any, head: nn.Module, rows: list[dict[str, Any]]) -> Tensor:
    features = model.preprocess([row["sentence1"] for row in rows])
    labels = torch.tensor([int(row["score"] > 0.5) for row in rows])
    return nn.functional.cross_entropy(head(model(features)["sentence_embedding"]), labels)


def run(
    folder: Path, output: Path, stop_after: int = 0, dropout: float = 0.1, **options: Any
) -> tuple[Any, nn.Module, Loop]:
    model, head, optimizer = parts(folder, dropout)
    loop = Loop(
        output,
        modules={"model": model, "head": head},
        optimizer=optimizer,
        data=ROWS,
        batch_size=BATCH,
        max_steps=STEPS,
        report=silent,
        **options,
    )
    for rows in loop.batches():
        loop.step(loss_of(model, head, rows))
        if loop.step_number == stop_after:
            loop.stop()
    return model, head, loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny", dropout=0.1)


def test_a_sentence_transformer_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "whole")
    for last in (1, 5, 6, 7, 11):
        run(folder, tmp_path / "pieces", stop_after=last)
    model, _, loop = run(folder, tmp_path / "pieces")
    assert loop.ended.finished
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")
    model.save_pretrained(str(tmp_path / "saved"))
    saved = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    texts = ["river stone", "engine"]
    assert torch.equal(torch.from_numpy(model.eval().encode(texts)), torch.from_numpy(saved.encode(texts)))


def test_the_plain_loop_gives_the_same_bits(tmp_path: Path) -> None:
    """Given the same order, and no dropout, `Loop` is the plain loop: not close to it, the same."""
    folder = make_model_folder(tmp_path / "tiny", dropout=0.0)
    model, head, _ = run(folder, tmp_path / "run", shuffle=False, dropout=0.0)
    plain_model, plain_head, optimizer = parts(folder, dropout=0.0)
    step = 0
    while step < STEPS:
        for start in range(0, len(ROWS), BATCH):
            if step == STEPS:
                break
            optimizer.zero_grad()
            loss_of(plain_model, plain_head, ROWS[start : start + BATCH]).backward()
            optimizer.step()
            step += 1
    for module, plain in ((model, plain_model), (head, plain_head)):
        for (name, tensor), other in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
            assert torch.equal(tensor, other), name
