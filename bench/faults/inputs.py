"""What the three trainers are given: a model of two layers with dropout, and a few rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS = 42  # eleven batches of four an epoch, the last one short


def make_inputs(work: Path) -> None:
    """Write `work`/encoder (sentence-transformers), `work`/classifier (Hugging Face) and rows.jsonl."""
    from tests.tiny import make_model_folder, make_rows

    encoder = make_model_folder(work / "encoder")
    make_classifier(encoder, work / "classifier")
    write_rows(work / "rows.jsonl", [row | {"label": i % 3} for i, row in enumerate(make_rows(ROWS))])


def make_classifier(encoder: Path, folder: Path) -> None:
    """The same network with a head over it, so that every run begins with the same head."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(encoder, num_labels=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
