"""The runs that are killed: small, alike in nothing but that they end soon."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import minilm_folder
from tests.tiny import make_model_folder, make_rows
from unbroken import demo

TINY = {"batch_size": 4, "num_train_epochs": 2.0, "learning_rate": 1e-3, "threads": 1, "seed": 7}

# 58 rows in batches of four: fifteen steps an epoch, the last of them short. The tiny model has dropout.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {**TINY, "save_steps": 3, "eval_steps": 5},
    "accumulated": {**TINY, "micro_batch_size": 3, "save_steps": 2, "eval_steps": 4, "weight_decay": 0.1},
    "best": {**TINY, "learning_rate": 2e-2, "save_steps": 3, "eval_steps": 4, "load_best_model_at_end": True},
    "cosent, two threads": {**TINY, "loss": "cosent", "threads": 2, "save_steps": 3, "eval_steps": 6},
    "triplet, three kept": {**TINY, "loss": "triplet", "num_train_epochs": 3.0, "save_steps": 3, "save_total_limit": 3},
}
# The real model: a commit is 270 MB, and takes longer than a step.
MINILM = {
    "columns": {"anchor": "term", "positive": "gloss"},
    "batch_size": 8,
    "max_steps": 16,
    "max_length": 16,
    "save_steps": 3,
    "eval_steps": 6,
    "threads": 1,
    "seed": 1,
}


@dataclass(frozen=True)
class Setting:
    """One configuration; at most `most_lost` steps may have to be made again after a kill, if that is known."""

    name: str
    config: Path
    most_lost: int | None


def write_settings(work: Path) -> list[Setting]:
    """Write model, data and configurations into `work`; the real model is the last if it is installed."""
    inputs = write_inputs(work)
    own = {"model": "tiny", "train_data": "train.jsonl", "eval_data": "eval.jsonl"}
    found = {name: {key: str(inputs / file) for key, file in own.items()} | SETTINGS[name] for name in SETTINGS}
    if minilm := minilm_values(inputs):
        found["MiniLM"] = minilm
    return [write_setting(inputs, name, values) for name, values in found.items()]


def write_inputs(work: Path) -> Path:
    """Make the folder of models and data, unless it is there, and return it."""
    inputs = work / "inputs"
    if not inputs.exists():
        make_model_folder(inputs / "tiny")
        with gzip.open(demo.test_path(), "rt", encoding="utf-8") as file:
            glosses = [json.loads(line) for line in file][:32]
        for name, rows in (("train", make_rows(58)), ("eval", make_rows(20, seed=3)), ("glosses", glosses)):
            (inputs / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return inputs


def minilm_values(inputs: Path) -> dict[str, Any] | None:
    """Return the configuration of the real model on the demo's pairs, or None if it is not installed."""
    folder = minilm_folder()
    if folder is None:
        return None
    data = {"train_data": str(demo.train_path()), "eval_data": str(inputs / "glosses.jsonl")}
    return {"model": str(folder), **data, **MINILM}


def write_setting(inputs: Path, name: str, values: dict[str, Any]) -> Setting:
    """Write one configuration."""
    path = inputs / f"{name.replace(', ', '-').replace(' ', '-')}.yaml"
    path.write_text(yaml.safe_dump({"task": "embed", "output_dir": "set by the harness"} | values))
    # The commit of one interval may be under way, not yet durable, until that of the next one waits for it.
    return Setting(name, path, 2 * values["save_steps"] if "save_steps" in values else None)
