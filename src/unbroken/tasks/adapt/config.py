"""What a run of instruction tuning can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from unbroken.base.config import Config, closest, content, identity, operational, plain
from unbroken.plan.packing import ORDER as BINS_ORDER
from unbroken.tasks.adapt.extraction.config import ExtractionConfig
from unbroken.tasks.common import ELSEWHERE, TrainingConfig

LOSS_METRICS = ("loss", "perplexity")
LOWER_IS_BETTER = {*LOSS_METRICS, "unreadable"}
EXTRACTED_ROWS = 100  # an answer takes as long as some training steps
LORA_RATE, FULL_RATE = 2e-4, 2e-5
# Where what a file says is measured, these decide what is found.
MEASURING_KEYS = ("eval_rows", "max_new_tokens")
LORA_ELSEWHERE = {
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "rank": "r",
    "target": "target_modules",
    "targets": "target_modules",
    "additional_target": "modules_to_save",
    "use_rs_lora": "use_rslora",
}
PRECISION = "say it as `precision: bfloat16` or `precision: float32`"
ADAPT_ELSEWHERE = {
    **{key: f"lora.{name}" for key, name in LORA_ELSEWHERE.items()},
    "adapter_name_or_path": "model",
    "bf16": PRECISION,
    "bits": "quantization",
    "cache_path": "leave it out: what can be made again lies in the run's cache/",
    "chat_template": "template",
    "checkpoint_dir": "to resume, give the same command again; a new run from an adapter's weights: `model: FOLDER`",
    "completion_only_loss": "loss_on",
    "cutoff_len": "max_length",
    "dataset_dir": "train_data",
    "double_quant": "quantization",
    "export_dir": "export when the run is finished: `unbroken export RUN FOLDER`",
    "finetuning_type": "tuning",
    "fp16": PRECISION,
    "generation_max_length": "max_new_tokens",
    "language": "extraction.language",
    "load_in_4bit": "quantization",
    "load_in_8bit": "quantization",
    "max_source_length": "max_length",
    "max_target_length": "max_length",
    "neft_alpha": "neftune_noise_alpha",
    "neftune_alpha": "neftune_noise_alpha",
    "num_layer_trainable": "tuning",
    "peft_config": "lora",
    "predict_file": "predict when the run is finished: `unbroken predict RUN FILE`",
    "quant_type": "quantization",
    "resume_lora_training": "to resume, give the same command again; leave it out",
    "schema": "extraction.schema",
    "split_num": "extraction.types_per_prompt",
    "stage": "leave it out: instructions are what adapt trains on",
    "target_modules": "lora.target_modules",
    "train_file": "train_data",
    "train_on_prompt": "loss_on",
    "val_set_size": "keep rows apart yourself, and give them as `eval_data: FILE`",
    "valid_file": "eval_data",
}


class LoraConfig(Config):
    """Low-rank adapters, as PEFT's `LoraConfig` has them (Hu et al. 2021, arXiv 2106.09685)."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = LORA_ELSEWHERE

    r: int = identity(16, gt=0, description="rank of the update")
    alpha: float = identity(32.0, gt=0, description="the update is scaled by alpha / r")
    dropout: float = identity(0.05, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: Literal["auto", "all-linear"] | list[str] = identity(
        "all-linear", description="all-linear, auto (PEFT's choice for the model's family), or names of layers"
    )
    use_rslora: bool = identity(False, description="scale by alpha / sqrt(r) (Kalajdzievski 2023)")
    use_dora: bool = identity(False, description="also learn each output's magnitude (Liu et al. 2024)")
    bias: Literal["none", "all", "lora_only"] = identity("none", description="which biases train")
    modules_to_save: list[str] = identity([], description="layers trained and saved whole beside the adapters")

    @field_validator("target_modules", "modules_to_save")
    @classmethod
    def _some_names(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list):
            if "" in value:
                raise ValueError("a name is empty; name layers, as in [q_proj, v_proj]")
            return sorted(set(value))
        return value

    @field_validator("target_modules")
    @classmethod
    def _targets_named(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("name at least one layer, or give all-linear")
        return value


class AdaptConfig(TrainingConfig):
    """A causal language model taught instructions, whole or by adapters."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = ELSEWHERE | ADAPT_ELSEWHERE
    KEPT_BY_FORKS: ClassVar[frozenset[str]] = frozenset(
        {"tuning", "lora", *(f"lora.{key}" for key in LoraConfig.model_fields if key != "dropout")}
    )

    task: Literal["adapt"] = identity("adapt", description="the kind of learning")
    columns: dict[str, str] = content(
        {}, description="role -> column: instruction, input, output; prompt, completion; messages; system"
    )
    template: str = identity("model", description="chat template: the model's own, or a named one")
    system_prompt: str = identity("", description="system message of every example that has none")
    loss_on: Literal["answers", "all"] = identity("answers", description="which tokens are learned")
    extraction: ExtractionConfig | None = identity(None, description="labelled text, made into instructions")

    tuning: Literal["lora", "full"] = identity("lora", description="train adapters, or every weight")
    lora: LoraConfig = identity(LoraConfig(), description="the adapters")
    quantization: Literal["4bit", "8bit"] | None = identity(
        None, description="hold the frozen model in 4 or 8 bits (QLoRA; CUDA and bitsandbytes)"
    )
    precision: Literal["auto", "float32", "bfloat16"] = identity(
        "auto", description="of the model's weights and arithmetic; auto: bfloat16 on CUDA; adapters stay float32"
    )
    gradient_checkpointing: bool = identity(False, description="compute activations again instead of keeping them")
    neftune_noise_alpha: float = identity(0.0, ge=0, description="noise on embeddings in training (NEFTune); 0: none")
    packing: bool = identity(
        False, description="a batch is batch_size bins of max_length tokens instead of batch_size examples"
    )
    trust_remote_code: bool = identity(False, description="run Python code that comes with the model")

    batch_size: int = identity(8, gt=0, description="examples per step; with packing, bins per step")
    learning_rate: float = identity(
        LORA_RATE, gt=0, description=f"peak learning rate; with tuning: full, {FULL_RATE:g} by default"
    )
    eval_rows: int | None = operational(
        None, gt=0, description="rows of eval_data measured, spread evenly; default: all, with extraction 100"
    )
    max_new_tokens: int = operational(256, gt=0, description="longest answer generated")

    @model_validator(mode="before")
    @classmethod
    def _what_hangs_on_other_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        main = "f1" if values.get("extraction") else LOSS_METRICS[0]
        better = (values.get("metric_for_best_model") or main) not in LOWER_IS_BETTER
        rate = FULL_RATE if values.get("tuning") == "full" else LORA_RATE
        measured = EXTRACTED_ROWS if values.get("extraction") else None
        return {"greater_is_better": better, "learning_rate": rate, "eval_rows": measured} | values

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.packing and self.max_length is None:
            raise ValueError("packing needs the size of a bin; add `max_length: 2048`")
        if self.quantization is not None and self.tuning == "full":
            raise ValueError("quantization holds the model in few bits, which cannot be trained; use `tuning: lora`")
        if self.quantization is not None and self.device == "cpu":
            raise ValueError("quantization needs CUDA; leave it out on the CPU")
        if self.extraction is not None and self.columns:
            raise ValueError("columns are those of instructions; extraction names its own: extraction.text, ...")
        if self.metric_for_best_model not in (None, *self.metrics) and not self._of_a_type:
            near = closest(str(self.metric_for_best_model), self.metrics)
            raise ValueError(
                f"metric_for_best_model: '{self.metric_for_best_model}' is not measured; "
                + (f"did you mean '{near}'?" if near else f"give one of {', '.join(self.metrics)}")
            )
        return self

    @property
    def _of_a_type(self) -> bool:
        return self.extraction is not None and str(self.metric_for_best_model).startswith("f1/")

    @property
    def metrics(self) -> tuple[str, ...]:
        """What evaluation measures, the main one first."""
        if self.extraction is None:
            return LOSS_METRICS
        return ("f1", "precision", "recall", "macro_f1", "unreadable", *LOSS_METRICS)

    @property
    def best_metric(self) -> str:
        """What `load_best_model_at_end` chooses by."""
        return self.metric_for_best_model or self.metrics[0]

    @property
    def order(self) -> str:
        """The name of the order of examples, which a change of it changes."""
        return BINS_ORDER if self.packing else super().order

    def resolved_identity(self) -> dict[str, Any]:
        """Return what the identity keys mean: adapters only where they train, no metric is the main one."""
        values = super().resolved_identity() | {
            "metric_for_best_model": self.best_metric,
            "lora": plain(self.lora) if self.tuning == "lora" else None,
        }
        if self.extraction is not None:
            schema = self.extraction.schema  # of a file the content counts, which the data's digest has
            values["extraction"] = plain(self.extraction) | {
                "schema": None if isinstance(schema, str) else schema,
                "types_per_prompt": self.extraction.at_once,
                "negatives": self.extraction.share_of_absent,
            }
        if self.load_best_model_at_end:
            values |= {key: getattr(self, key) for key in MEASURING_KEYS}
        return values
