"""What a user of each system would run: one function a system, called in a forked process. "The same command again" is
the same call with the same `Spec`.

The peers are used as their documentation says for a run that may be interrupted: `resume_from_checkpoint=True` where
there is a checkpoint, `full_determinism=True`, `seed` and `data_seed`, CPU, everything else at its default.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOSSES_FILE = "losses.json"
FINAL = "final"
SETTLED_SECONDS = 1.0


@dataclass(frozen=True)
class Spec:
    """One command: what is trained on what, how it saves, and at which step the process stops or kills itself.

    `pace` is how many seconds a step takes longer.
    """

    output: str
    model: str
    rows: str
    loss: str = ""
    steps: int = 24
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 5e-4
    seed: int = 1
    save_steps: int = 4
    keep: int = 2
    threads: int = 1
    logging_steps: int = 1
    eval_steps: int = 0
    workers: int = 0
    save_on_sigterm: bool = False
    die_at: int = 0
    pause_at: int = 0
    pace: float = 0.0

    def at_step(self, step: int) -> None:
        """End or stop this process after step `step`, if that is asked for."""
        time.sleep(self.pace)
        if step == self.die_at:
            time.sleep(SETTLED_SECONDS)  # a save that is written behind the training has ended then
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.pause_at:
            os.kill(os.getpid(), signal.SIGSTOP)


def train_ours(spec: Spec) -> None:
    """`unbroken train CONFIG`, the command as it is; only told when a step is done, to be stopped there."""
    import yaml

    from unbroken.cli.main import main
    from unbroken.run.report import Stepped
    from unbroken.views.terminal import Terminal

    values = {
        "task": "embed",
        "model": spec.model,
        "output_dir": spec.output,
        "train_data": spec.rows,
        "columns": dict(OUR_COLUMNS[spec.loss or "multiple_negatives_ranking"]),
        "loss": spec.loss or "multiple_negatives_ranking",
        "batch_size": spec.batch_size * spec.accumulation,
        "micro_batch_size": spec.batch_size,
        "max_steps": spec.steps,
        "learning_rate": spec.learning_rate,
        "seed": spec.seed,
        "save_steps": spec.save_steps,
        "save_total_limit": spec.keep,
        "max_length": 32,
    }
    if spec.eval_steps:
        values |= {"eval_data": spec.rows, "eval_steps": spec.eval_steps}
    config = Path(f"{spec.output}.{os.getpid()}.yaml")
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    show = Terminal.__call__

    def shown(self: Any, event: Any) -> None:
        show(self, event)
        if isinstance(event, Stepped):
            spec.at_step(event.step)

    terminal: Any = Terminal
    terminal.__call__ = shown
    main(["train", str(config)])


OUR_COLUMNS = {
    "multiple_negatives_ranking": {"anchor": "anchor", "positive": "positive"},
    "triplet": {"anchor": "anchor", "positive": "positive", "negative": "negative"},
    "cosent": {"sentence1": "sentence1", "sentence2": "sentence2", "score": "score"},
}


def peer_arguments(spec: Spec) -> dict[str, Any]:
    """Return the training arguments both peers get."""
    evaluating = {"eval_strategy": "steps", "eval_steps": spec.eval_steps} if spec.eval_steps else {}
    jit = {"enable_jit_checkpoint": True} if spec.save_on_sigterm else {}
    return {
        "output_dir": spec.output,
        "max_steps": spec.steps,
        "per_device_train_batch_size": spec.batch_size,
        "gradient_accumulation_steps": spec.accumulation,
        "learning_rate": spec.learning_rate,
        "seed": spec.seed,
        "data_seed": spec.seed,
        "full_determinism": True,
        "save_strategy": "steps",
        "save_steps": spec.save_steps,
        "save_total_limit": spec.keep,
        "logging_steps": spec.logging_steps,
        "dataloader_num_workers": spec.workers,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "info",
        **evaluating,
        **jit,
    }


def carry_through(trainer: Any, spec: Spec) -> None:
    """Start or resume, then save the finished model and the losses that were logged."""
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    class StopHere(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            spec.at_step(state.global_step)

    trainer.add_callback(StopHere())
    there = os.path.isdir(spec.output) and get_last_checkpoint(spec.output) is not None
    trainer.train(resume_from_checkpoint=True if there else None)
    final = Path(spec.output) / FINAL
    trainer.save_model(str(final))
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    (final / LOSSES_FILE).write_text(json.dumps(losses), encoding="utf-8")


def train_st(spec: Spec) -> None:
    """`SentenceTransformerTrainer`."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses
    from transformers import set_seed

    from bench.faults.inputs import read_rows

    set_seed(spec.seed)  # before the loss is made: it may own parameters
    rows = read_rows(Path(spec.rows))
    model = SentenceTransformer(spec.model, device="cpu")
    kinds: dict[str, tuple[tuple[str, ...], Callable[[], Any]]] = {
        "": (("anchor", "positive"), lambda: losses.MultipleNegativesRankingLoss(model)),
        "triplet": (("anchor", "positive", "negative"), lambda: losses.TripletLoss(model)),
        "cosent": (("sentence1", "sentence2", "score"), lambda: losses.CoSENTLoss(model)),
        "softmax": (
            ("sentence1", "sentence2", "label"),
            lambda: losses.SoftmaxLoss(model, sentence_embedding_dimension=32, num_labels=3),
        ),
    }
    columns, make_loss = kinds[spec.loss]
    dataset = Dataset.from_dict({name: [row[name] for row in rows] for name in columns})
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**peer_arguments(spec)),
        train_dataset=dataset,
        eval_dataset=dataset if spec.eval_steps else None,
        loss=make_loss(),
    )
    carry_through(trainer, spec)


def train_hf(spec: Spec) -> None:
    """`Trainer` with a sequence classifier."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from bench.faults.inputs import read_rows

    set_seed(spec.seed)
    rows = read_rows(Path(spec.rows))
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    encoded = tokenizer([row["sentence1"] for row in rows], truncation=True, max_length=32)
    dataset = Dataset.from_dict({**encoded, "labels": [row["label"] for row in rows]})
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(spec.model),
        args=TrainingArguments(**peer_arguments(spec)),
        train_dataset=dataset,
        eval_dataset=dataset if spec.eval_steps else None,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    carry_through(trainer, spec)


TRAINERS: dict[str, Callable[[Spec], None]] = {"ours": train_ours, "st": train_st, "hf": train_hf}
