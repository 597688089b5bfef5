"""What is trained in a case, and what both sides are told of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import harness
from bench.adapt.rows import Lengths, instruction_rows, sort_tokens, write_rows, write_tokens
from bench.harness import Context, Run, Spec

LORA: dict[str, Any] = {"r": 16, "alpha": 32, "dropout": 0.05, "target_modules": "all-linear"}
EXTRACTION = {"kind": "ner", "text": "text", "entities": "entities"}
# Trainer's `group_by_length` sorts within groups of 50 batches, but of a quarter of the rows at most: of as few rows as
# are trained on here, two batches at a time. `sorted` is the most that sorting can do: all rows, the longest first.
THEIRS = ("theirs", "sorted")
TEMPLATE = "chatml"  # without a system message of its own: with the model's, no row could have 20 tokens


@dataclass(frozen=True)
class Case:
    """Rows and sizes; `warm` steps at the start are not counted."""

    name: str
    title: str
    data: Path
    batch: int
    steps: int
    warm: int = 1
    device: str = "cpu"
    dropout: float = LORA["dropout"]

    @property
    def examples(self) -> int:
        return self.batch * self.steps


@dataclass(frozen=True)
class Inputs:
    """A case's files: `values` configures our run, but for its folder; `tokens` has a file for each of their arms."""

    case: Case
    values: dict[str, Any]
    tokens: dict[str, Path]
    lengths: Lengths


def make_inputs(context: Context, case: Case) -> Inputs:
    """Write the rows of a case in both forms."""
    context.work.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "task": "adapt",
        "model": str(context.model),
        "output_dir": str(context.work / "unused"),
        "lora": {**LORA, "dropout": case.dropout},
        "batch_size": case.batch,
        "max_steps": case.steps,
        "learning_rate": 2e-4,
        "warmup_steps": 1,
        "shuffle": False,
        "seed": 42,
        "device": case.device,
    }
    if case.name.startswith("snips"):
        values |= {"train_data": str(case.data.resolve()), "extraction": EXTRACTION}
    else:
        from unbroken.models.chat import ChatFormat

        rows = instruction_rows(case.data, ChatFormat.of(context.model, TEMPLATE), case.examples)
        path = write_rows(context.work / f"{case.name}.jsonl", rows)
        values |= {"train_data": str(path), "template": TEMPLATE}
    tokens = {arm: context.work / f"{case.name}.{arm}.jsonl" for arm in THEIRS}
    lengths = write_tokens(tokens["theirs"], values, case.examples)
    sort_tokens(tokens["theirs"], tokens["sorted"])
    return Inputs(case, values, tokens, lengths)


def train_ours(context: Context, inputs: Inputs, name: str, threads: int) -> Run:
    """Run `unbroken train`, which commits when it sees fit; its steps are recorded with their tokens."""
    import json

    folder = context.work / f"{name}.run"
    values = inputs.values | {"output_dir": str(folder), "threads": threads}
    config = context.work / f"{name}.yaml"
    config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    run = harness.run_arm(context, "bench.arms.ours", name, {"config_file": str(config), "threads": threads})
    harness.remove(folder)
    return replace(run, events=[with_tokens(event, inputs) for event in run.events])


def with_tokens(event: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """Return the event of a step with its tokens: the rows are taken in the order of the file."""
    if event["event"] != "step":
        return event
    last = event["n"] * inputs.case.batch
    count = sum(inputs.lengths.within(last - inputs.case.batch, last).tokens)
    return event | {"tokens": count, "padded": count}


def train_theirs(
    context: Context, inputs: Inputs, name: str, threads: int, arm: str = "theirs", adapter: Path | None = None
) -> Run:
    """Run Trainer and PEFT over the same rows, in the same order unless `arm` is sorted."""
    keys = ("model", "lora", "batch_size", "max_steps", "learning_rate", "warmup_steps", "seed", "device")
    spec: Spec = {key: inputs.values[key] for key in keys} | {
        "tokens": str(inputs.tokens[arm]),
        "cache": str(context.work / "arrow"),
        "output_dir": str(context.work / f"{name}.run"),
        "threads": threads,
        "adapter": None if adapter is None else str(adapter),
    }
    return harness.run_arm(context, "bench.adapt.theirs", name, spec)
