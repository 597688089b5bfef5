"""What a user of Hugging Face writes: Trainer, PEFT's LoRA, `DataCollatorForSeq2Seq`; nothing of ours is imported.

    python -m bench.adapt.theirs SPEC.json

Rows are taken in the order of the file. `adapter` may be the folder of one that training starts from.
"""

from __future__ import annotations

from typing import Any

from bench.arms.recorder import Recorder


def main() -> None:
    recorder = Recorder.from_arguments()
    spec = recorder.spec

    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer

    torch.set_num_threads(spec["threads"])
    rows = load_dataset("json", data_files=spec["tokens"], split="train", cache_dir=spec["cache"])

    class Timed(Trainer):  # type: ignore[misc]
        step_loss: Any = None
        tokens = padded = 0

        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            self.tokens, self.padded = int(inputs["attention_mask"].sum()), inputs["attention_mask"].numel()
            self.step_loss = super().training_step(model, inputs, *rest)
            return self.step_loss

    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # it is masked: which one it is plays no part
    trainer = Timed(
        model=with_adapter(spec),
        args=arguments(spec),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.add_callback(timekeeper(recorder, trainer))
    trainer.train()
    recorder.ended()


def with_adapter(spec: dict[str, Any]) -> Any:
    """Return the model with LoRA in all linear layers: new, or that of a folder."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if spec["device"] == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype)
    lora = spec["lora"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
    )
    if spec.get("adapter"):
        return PeftModel.from_pretrained(model, spec["adapter"], config=config, is_trainable=True)
    return get_peft_model(model, config)


def arguments(spec: dict[str, Any]) -> Any:
    """Return the trainer's defaults but for what both sides are told alike; saving is off."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=spec["output_dir"],
        per_device_train_batch_size=spec["batch_size"],
        max_steps=spec["max_steps"],
        learning_rate=spec["learning_rate"],
        warmup_steps=spec["warmup_steps"],
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=spec["seed"],
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=spec["device"] == "cpu",
        bf16=spec["device"] != "cpu",
        dataloader_pin_memory=spec["device"] != "cpu",
    )


def timekeeper(recorder: Recorder, trainer: Any) -> Any:
    from transformers import TrainerCallback

    class Timekeeper(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            loss = float(trainer.step_loss)
            recorder.emit("step", n=state.global_step, loss=loss, tokens=trainer.tokens, padded=trainer.padded)

    return Timekeeper()


if __name__ == "__main__":
    main()
