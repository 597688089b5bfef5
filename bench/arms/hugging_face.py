"""What a user of the Hugging Face Trainer writes: a model with a loss of its own, rows tokenised batch by batch."""

from __future__ import annotations

from typing import Any

from bench.arms.recorder import Recorder
from bench.arms.theirs import timekeeper


def main() -> None:
    recorder = Recorder.from_arguments()
    spec = recorder.spec

    import torch
    from datasets import load_dataset
    from torch.nn.functional import cross_entropy, normalize
    from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments

    torch.set_num_threads(spec["threads"])
    # Kept by `datasets` as an Arrow file from the first run on, as users have it: later ones only map it.
    rows = load_dataset("json", data_files=spec["train_data"], split="train", cache_dir=spec["cache"])
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])

    class PairEncoder(torch.nn.Module):
        """In-batch negatives over mean-pooled, normalised vectors, scaled by 20."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = AutoModel.from_pretrained(spec["model"])

        def forward(self, anchor: Any, positive: Any) -> dict[str, torch.Tensor]:
            scores = 20 * self.encode(anchor) @ self.encode(positive).T
            return {"loss": cross_entropy(scores, torch.arange(len(scores)))}

        def encode(self, encoded: Any) -> torch.Tensor:
            hidden = self.backbone(**encoded).last_hidden_state
            mask = encoded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            return normalize((hidden * mask).sum(1) / mask.sum(1))

    def collate(batch: list[dict[str, str]]) -> dict[str, Any]:
        how = {"padding": True, "truncation": True, "max_length": spec["max_length"], "return_tensors": "pt"}
        return {name: tokenizer([row[name] for row in batch], **how) for name in ("anchor", "positive")}

    class Timed(Trainer):  # type: ignore[misc]
        step_loss: Any = None

        def training_step(self, *given: Any, **named: Any) -> Any:
            self.step_loss = super().training_step(*given, **named)
            return self.step_loss

    saving = {"save_strategy": "steps", "save_steps": spec["save_steps"]} if spec.get("save_steps") else {}
    arguments = TrainingArguments(
        output_dir=spec["output_dir"],
        per_device_train_batch_size=spec["batch_size"],
        max_steps=spec["max_steps"],
        learning_rate=spec["learning_rate"],
        warmup_steps=spec["warmup_steps"],
        seed=spec["seed"],
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        **(saving or {"save_strategy": "no"}),
    )
    trainer = Timed(model=PairEncoder(), args=arguments, train_dataset=rows, data_collator=collate)
    trainer.add_callback(timekeeper(recorder, trainer))
    trainer.train(resume_from_checkpoint=spec.get("resume") or None)
    recorder.ended()


if __name__ == "__main__":
    main()
