"""The runs that are killed: small, alike in nothing but that they end soon."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import minilm_folder
from tests.tiny import make_model_folder, make_rows
from tests.tiny_causal import make_causal_folder, make_instructions, make_labelled
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
# Runs of two phases: 17 steps of the encoder, six texts (or pairs) each, and then the head.
LABELLED = {
    "task": "classify",
    "batch_size": 6,
    "max_steps": 17,
    "body_learning_rate": 1e-3,
    "save_steps": 3,
    "threads": 1,
    "seed": 7,
}
TRAINED_HEAD = {"head": "differentiable", "batch_size": [6, 10], "num_epochs": [1, 3], "save_steps": 2}
CLASSIFY: dict[str, dict[str, Any]] = {
    "fitted head": {**LABELLED, "eval_steps": 5},
    "end to end, accumulated": {**LABELLED, **TRAINED_HEAD, "end_to_end": True, "micro_batch_size": 4, "eval_steps": 4},
    "trained head": {**LABELLED, **TRAINED_HEAD, "loss": "supervised_contrastive", "class_weight": "balanced"},
    "sampled pairs": {**LABELLED, "pairs": "sampled"},
    "several labels": {**LABELLED, "train_data": "several.jsonl", "eval_data": None},
    "calibrated": {**LABELLED, "calibrate": True, "samples_per_label": 6, "eval_steps": 6},
}
# 58 rows again, the last batch of an epoch short; dropout in the adapters, and every step clips.
TAUGHT = {
    "task": "adapt",
    "batch_size": 4,
    "num_train_epochs": 2.0,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.1,
    "max_grad_norm": 0.1,
    "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
    "max_new_tokens": 8,
    "threads": 1,
    "seed": 7,
}
EXTRACTION = {"kind": "ner", "types_per_prompt": 1, "negatives": 0.5, "phrasings": 3}
LABELLED_TEXT = {"train_data": "labelled-text.jsonl", "eval_data": "held-out-text.jsonl", "extraction": EXTRACTION}
ADAPT: dict[str, dict[str, Any]] = {
    "adapters, accumulated": {**TAUGHT, "micro_batch_size": 3, "save_steps": 3, "eval_steps": 5},
    "adapters, packed": {**TAUGHT, "packing": True, "max_length": 96, "micro_batch_size": 3, "save_steps": 2},
    "adapters, extraction": {**TAUGHT, **LABELLED_TEXT, "max_steps": 22, "save_steps": 3, "eval_steps": 4},
    "adapters of magnitudes, noise": {
        **TAUGHT,
        "lora": {"r": 2, "dropout": 0.1, "use_dora": True, "modules_to_save": ["lm_head"]},
        "neftune_noise_alpha": 5.0,
        "save_steps": 3,
        "save_total_limit": 3,
    },
    "every weight": {**TAUGHT, "tuning": "full", "learning_rate": 1e-3, "weight_decay": 0.1, "save_steps": 3},
}
# The real language model: a step takes as long as a start. Its folder is one that a GGUF file was converted into.
REAL_CAUSAL = "SmolLM2"
REAL_TAUGHT = {**TAUGHT, "learning_rate": 1e-4, "batch_size": 2, "max_steps": 6, "save_steps": 2}
# The real encoder: a commit is 270 MB, and takes longer than a step.
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
REAL = "MiniLM"
REAL_LABELLED = {**LABELLED, "max_steps": 12, "max_length": 16, "body_learning_rate": 1e-4, "eval_steps": 6}
KINDS = ("embed", "classify", "adapt")


@dataclass(frozen=True)
class Setting:
    """One configuration; at most `most_lost` steps may have to be made again after a kill, if that is known.

    `boundary` is the number of steps of the first of two phases; None: there is one. `slow`: it is to be drawn seldom.
    """

    name: str
    config: Path
    most_lost: int | None
    task: str = "embed"
    boundary: int | None = None
    slow: bool = False


def write_settings(work: Path, kinds: Sequence[str] = KINDS[:1], causal: Path | None = None) -> list[Setting]:
    """Write models, data and configurations of these kinds into `work`; each kind's real model is its last, if any.

    `causal` is the folder of a real language model.
    """
    inputs = write_inputs(work)
    found: list[tuple[str, dict[str, Any]]] = []
    if "embed" in kinds:
        own = {"model": "tiny", "train_data": "train.jsonl", "eval_data": "eval.jsonl"}
        found += [(name, placed(inputs, own | values)) for name, values in SETTINGS.items()]
        if minilm := minilm_values(inputs):
            found.append((REAL, minilm))
    if "classify" in kinds:
        own = {"model": "tiny", "train_data": "labelled.jsonl", "eval_data": "held-out.jsonl"}
        found += [(name, placed(inputs, own | values)) for name, values in CLASSIFY.items()]
        if folder := minilm_folder():
            found.append((f"{REAL}, classified", placed(inputs, own | REAL_LABELLED) | {"model": str(folder)}))
    if "adapt" in kinds:
        own = {"model": "tiny-causal", "train_data": "instructions.jsonl", "eval_data": "held-out-instructions.jsonl"}
        found += [(name, placed(inputs, own | values)) for name, values in ADAPT.items()]
        if causal is not None:
            found.append((REAL_CAUSAL, placed(inputs, own | REAL_TAUGHT) | {"model": str(causal)}))
    return [write_setting(inputs, name, values) for name, values in found]


def placed(inputs: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the files they name as paths."""
    named = ("model", "train_data", "eval_data")
    return {key: str(inputs / value) if key in named and value else value for key, value in values.items()}


def write_inputs(work: Path) -> Path:
    """Make the folder of models and data, unless it is there, and return it."""
    inputs = work / "inputs"
    if not inputs.exists():
        make_model_folder(inputs / "tiny")
        make_causal_folder(inputs / "tiny-causal")
        with gzip.open(demo.test_path(), "rt", encoding="utf-8") as file:
            glosses = [json.loads(line) for line in file][:32]
        rows = {"train": make_rows(58), "eval": make_rows(20, seed=3), "glosses": glosses}
        rows |= {"labelled": labelled(46, 0), "held-out": labelled(20, 3), "several": several(46)}
        rows |= {"instructions": make_instructions(58), "held-out-instructions": make_instructions(66)[58:]}
        rows |= {"labelled-text": make_labelled(30), "held-out-text": make_labelled(36)[30:]}
        for name, lines in rows.items():
            (inputs / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return inputs


def labelled(count: int, seed: int) -> list[dict[str, Any]]:
    """Return texts of five classes, the last larger than the others."""
    rows = make_rows(count, seed)
    return [{"text": row["positive"], "label": f"class {min(i % 6, 4)}"} for i, row in enumerate(rows)]


def several(count: int) -> list[dict[str, Any]]:
    """Return texts with one to three labels each."""
    names = ("red", "green", "blue")
    return [
        {"text": row["positive"], "label": [name for place, name in enumerate(names) if (i % 7 + 1) >> place & 1]}
        for i, row in enumerate(make_rows(count))
    ]


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
    values = {"task": "embed", "output_dir": "set by the harness"} | values
    path.write_text(yaml.safe_dump(values))
    # The commit of one interval may be under way, not yet durable, until that of the next one waits for it.
    most_lost = 2 * values["save_steps"] if "save_steps" in values else None
    boundary = values["max_steps"] if values["task"] == "classify" else None
    slow = name.startswith((REAL, REAL_CAUSAL))
    return Setting(name, path, most_lost, values["task"], boundary, slow)
