"""Configuration every task shares. Names are the field's own wherever the idea is the same."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from unbroken.base.config import Config, content, identity, nested, operational, plain
from unbroken.plan.plan import ORDER

# What the same thing is called elsewhere, for those who come from there.
ELSEWHERE = {
    "base_model": "model",
    "dataset": "train_data",
    "deepspeed": "leave it out: a run trains on one device",
    "device_map": "device",
    "do_eval": "leave it out: with `eval_data` a run is evaluated",
    "do_train": "leave it out: `unbroken train` trains",
    "epochs": "num_train_epochs",
    "eval_batch_size": "batch_size",
    "eval_dataset": "eval_data",
    "eval_strategy": "eval_steps",
    "evaluation_strategy": "eval_steps",
    "gradient_accumulation_steps": "micro_batch_size",
    "logging_steps": "leave it out: every step is on record",
    "lr": "learning_rate",
    "max_seq_length": "max_length",
    "mini_batch_size": "micro_batch_size",
    "model_name": "model",
    "model_name_or_path": "model",
    "num_epochs": "num_train_epochs",
    "optim": "leave it out: the optimizer is AdamW",
    "overwrite_output_dir": "leave it out: no run is overwritten; `--restart` moves an earlier one aside",
    "per_device_train_batch_size": "batch_size",
    "resume_from_checkpoint": "leave it out: the same command goes on; one checkpoint: `unbroken train CONFIG "
    "--resume_from_checkpoint FOLDER`",
    "scheduler": "lr_scheduler_type",
    "train_batch_size": "batch_size",
    "train_dataset": "train_data",
}
DEVICES = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")

EVALUATION_DECIDES = ("load_best_model_at_end", "calibrate")  # with one of these, eval_data makes the model what it is
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]


class RunConfig(Config):
    """What any run of a task can be told."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = ELSEWHERE
    # Keys by which the trained weights and the optimizer's moments are what they are: a fork keeps them.
    KEPT_BY_FORKS: ClassVar[frozenset[str]] = frozenset()

    task: str = identity(description="the kind of learning")
    model: str = content(description="model folder, run, checkpoint, or hub id")
    output_dir: str = operational(description="the run's folder")
    train_data: Any = content(description="file (.jsonl, .json, .csv, .tsv, .parquet; .gz) or rows")
    eval_data: Any = operational(None, description="file or rows to evaluate on")

    weight_decay: float = identity(0.0, ge=0, description="AdamW's, on weight matrices only")
    adam_beta1: float = identity(0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient")
    adam_beta2: float = identity(0.999, ge=0, lt=1, description="AdamW's decay of the mean squared gradient")
    adam_epsilon: float = identity(1e-8, gt=0, description="AdamW's addition to the denominator")
    max_grad_norm: float = identity(1.0, ge=0, description="gradients are scaled down to this norm; 0: never")
    seed: int = identity(42, ge=0, description="every random draw of the run follows from it")
    max_length: int | None = identity(None, gt=0, description="tokens per text; default: the model's own")
    threads: Annotated[int, Field(gt=0, le=1024)] | Literal["auto"] = identity(
        "auto", description="CPU threads; part of the run, since bits hang on it"
    )
    device: str = identity("auto", description="auto, cpu, cuda, cuda:1")

    save_strategy: Literal["auto", "steps", "epoch", "time"] = operational(
        "auto", description="auto: by cost, or by save_steps or save_seconds where given"
    )
    save_steps: int | None = operational(None, gt=0, description="commit after every so many steps")
    save_seconds: float | None = operational(None, gt=0, description="commit about every so many seconds")
    save_total_limit: int = operational(2, ge=2, description="checkpoints kept; never under two verified ones")
    mirror: str | None = operational(
        None, description="folder or fsspec URL that holds a copy of the run; a new machine restores from it"
    )
    eval_steps: int | None = operational(None, gt=0, description="evaluate every so many steps; always start and end")
    load_best_model_at_end: bool = identity(False, description="the finished model is the best evaluated one")
    metric_for_best_model: str | None = identity(None, description="default: the task's main metric")
    greater_is_better: bool = identity(True, description="whether more of that metric is better")

    @field_validator("model", "output_dir", "train_data", "eval_data", "mirror", mode="before")
    @classmethod
    def _home(cls, value: Any) -> Any:
        return os.path.expanduser(os.fspath(value)) if isinstance(value, str | os.PathLike) else value

    @field_validator("train_data", "eval_data")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and value and isinstance(value[0], str | Path):
            raise ValueError("give one file; several can be joined into one")
        if isinstance(value, bool | int | float | Mapping):
            raise ValueError("give the path of a file, a list of rows, or a dataset")
        return value

    @field_validator("train_data")
    @classmethod
    def _some_source(cls, value: Any) -> Any:
        if value is None or value == "":
            raise ValueError("give the path of a file, a list of rows, or a dataset")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if DEVICES.fullmatch(value) is None:
            raise ValueError("give auto, cpu, cuda or cuda:N")
        number = value.partition(":")[2]
        return f"cuda:{int(number)}" if number.strip("0") else value.partition(":")[0]  # cuda:0 is cuda

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.load_best_model_at_end and self.eval_data is None:
            raise ValueError("load_best_model_at_end has nothing to choose by; add `eval_data: FILE`, or leave it out")
        if self.save_strategy == "steps" and self.save_steps is None:
            raise ValueError("save_strategy: steps says not after how many; add `save_steps: 100`, or leave it out")
        if self.save_strategy == "time" and self.save_seconds is None:
            raise ValueError("save_strategy: time says not how often; add `save_seconds: 60`, or leave it out")
        return self

    @classmethod
    def left_open(cls, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values `recorded` in a run for what a request for it leaves open: absent keys, and `auto`.

        A default that changed in a newer version must not change a run that is under way.
        """
        open_keys = {
            key: value
            for key, value in recorded.items()
            if key not in asked or (key in ("threads", "device") and asked[key] == "auto")
        }
        inside = (key for key in asked.keys() & recorded.keys() if key in cls.model_fields and nested(cls, key))
        for key in sorted(inside):
            given = asked[key].model_dump(exclude_unset=True) if isinstance(asked[key], Config) else asked[key]
            if isinstance(given, Mapping) and isinstance(recorded[key], Mapping):
                open_keys[key] = {**recorded[key], **given}
        return open_keys

    def resolved_identity(self) -> dict[str, Any]:
        """Return what the identity keys mean: the same however they were written, and no default left open."""
        return {key: plain(getattr(self, key)) for key in self.identity_keys()}

    @property
    def order(self) -> str:
        """The name of the order of examples, which a change of it changes."""
        return ORDER

    @property
    def best_metric(self) -> str:
        """What `load_best_model_at_end` chooses by."""
        assert self.metric_for_best_model is not None, "a task without a main metric of its own"
        return self.metric_for_best_model

    @property
    def resolved_save_strategy(self) -> Literal["auto", "steps", "epoch", "time"]:
        """The strategy meant: an interval given without one says how."""
        if self.save_strategy == "auto" and self.save_steps is not None:
            return "steps"
        if self.save_strategy == "auto" and self.save_seconds is not None:
            return "time"
        return self.save_strategy


class TrainingConfig(RunConfig):
    """What a run of one phase can be told.

    `batch_size` is the whole batch of a step and `micro_batch_size` the part of it in memory at once, so that the
    meaning of a configuration does not hang on the hardware.
    """

    batch_size: int = identity(32, gt=0, description="examples per step")
    micro_batch_size: int | None = identity(None, gt=0, description="examples in memory at once; default: all")
    num_train_epochs: float = identity(3.0, gt=0, description="passes over the data; max_steps wins")
    max_steps: int | None = identity(None, gt=0, description="optimizer steps")
    drop_last: bool = identity(False, description="leave out a short last batch of an epoch")
    shuffle: bool = identity(True, description="a new order every epoch; false: the file's order")

    learning_rate: float = identity(5e-5, gt=0, description="peak learning rate")
    lr_scheduler_type: Schedule = identity("linear", description="course of the learning rate after warm-up")
    warmup_ratio: float = identity(0.0, ge=0, le=1, description="share of the steps spent warming up")
    warmup_steps: int | None = identity(None, ge=0, description="steps spent warming up; wins over warmup_ratio")

    @model_validator(mode="after")
    def _chunks_fit(self) -> Self:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}; "
                "batch_size is the whole batch of a step, micro_batch_size the part of it in memory at once"
            )
        return self

    def resolved_identity(self) -> dict[str, Any]:
        """Return what the identity keys mean: the same however they were written, and no default left open."""
        whole = self.micro_batch_size == self.batch_size  # what None says too, whatever batch_size is
        return super().resolved_identity() | ({"micro_batch_size": None} if whole else {})
