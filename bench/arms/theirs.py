"""What a user of sentence-transformers writes: its trainer at its defaults, over the same rows in the same order."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bench.arms.recorder import Recorder


def main() -> None:
    recorder = Recorder.from_arguments()
    spec = recorder.spec

    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.set_num_threads(spec["threads"])
    rows = [json.loads(line) for line in Path(spec["train_data"]).read_text(encoding="utf-8").splitlines()]
    columns = {name: [row[name] for row in rows] for name in ("anchor", "positive")}
    model = SentenceTransformer(spec["model"], device="cpu")
    model.max_seq_length = spec["max_length"]

    class Timed(SentenceTransformerTrainer):  # type: ignore[misc]
        step_loss: Any = None

        def training_step(self, *given: Any, **named: Any) -> Any:
            self.step_loss = super().training_step(*given, **named)
            return self.step_loss

    trainer = Timed(
        model=model,
        args=arguments(spec),
        train_dataset=Dataset.from_dict(columns),
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.add_callback(timekeeper(recorder, trainer))
    trainer.train(resume_from_checkpoint=True if spec.get("resume") else None)
    recorder.ended()
    if spec.get("save_to"):
        model.save_pretrained(spec["save_to"])


def arguments(spec: dict[str, Any]) -> Any:
    """Return the trainer's defaults but for what both arms are told alike."""
    from sentence_transformers import SentenceTransformerTrainingArguments

    saving = {"save_strategy": "steps", "save_steps": spec["save_steps"]} if spec.get("save_steps") else {}
    return SentenceTransformerTrainingArguments(
        output_dir=spec["output_dir"],
        per_device_train_batch_size=spec["batch_size"],
        max_steps=spec["max_steps"],
        learning_rate=spec["learning_rate"],
        warmup_steps=spec["warmup_steps"],
        seed=spec["seed"],
        batch_sampler=in_order,
        report_to="none",
        use_cpu=True,
        **(saving or {"save_strategy": "no"}),
    )


def in_order(dataset: Any, batch_size: int, drop_last: bool, **rest: Any) -> Any:
    """Sample batches in the order of the rows, so that every step of both arms is over the same texts."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last, **rest)


def timekeeper(recorder: Recorder, trainer: Any) -> Any:
    from transformers import TrainerCallback

    class Timekeeper(TrainerCallback):  # type: ignore[misc]
        stepped_at = 0.0
        saved = False

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            recorder.emit("step", n=state.global_step, loss=float(trainer.step_loss))
            recorder.maybe_die(state.global_step, self.saved)
            self.stepped_at = time.monotonic()

        def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.saved = True
            recorder.emit("saved", n=state.global_step, stall=time.monotonic() - self.stepped_at)

    return Timekeeper()


if __name__ == "__main__":
    main()
