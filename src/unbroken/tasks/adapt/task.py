"""The adapt task as the commands see it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import digest
from unbroken.models.chat import ChatFormat
from unbroken.plan.packing import Bins, Packed, fill_bins
from unbroken.plan.plan import Draws, Plan
from unbroken.tasks.adapt.asking import Asking
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.conversation import Rows
from unbroken.tasks.adapt.encoding import encoded, keep_lengths, lengths_of
from unbroken.tasks.adapt.extraction.rows import HELD_OUT_SEED, ExtractionRows
from unbroken.tasks.adapt.instructions import InstructionRows
from unbroken.tasks.adapt.source import Base, adapter_digest, base_digest, find_base, trained_bytes
from unbroken.tasks.course import Course, course_along
from unbroken.tasks.task import Prepared, Progress

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from unbroken.run.job import Job
    from unbroken.tasks.adapt.job import Trained

CONFIG = AdaptConfig


def course(config: AdaptConfig, contract: Mapping[str, Any]) -> Course:
    """Return the steps and rates of a run over the data its contract names."""
    return course_over(config, contract["data"]["examples"], contract["data"].get("bins"))


def course_over(config: AdaptConfig, num_examples: int, num_bins: int | None, bins: Bins | None = None) -> Course:
    """Return the course of a run over so many examples, in so many bins where they are packed."""
    plan: Draws = Plan(num_examples, config.batch_size, config.seed, config.drop_last, config.shuffle)
    if num_bins is not None:
        plan = Packed(num_bins, config.batch_size, config.seed, config.drop_last, config.shuffle, bins)
    return course_along(config, plan)


@dataclass(frozen=True)
class Inputs:
    """What a run is made from, read and checked."""

    config: AdaptConfig
    base: Base
    digest: str
    chat: ChatFormat
    rows: Rows
    eval_rows: Rows | None
    bins: Bins | None
    lengths: NDArray[np.int64] | None


def read_rows(source: Any, config: AdaptConfig, train: Rows | None = None, cache: Path | None = None) -> Rows:
    """Return the conversations that a source holds or is made into; held-out rows have the types of those trained on.

    Raises `DataError` naming file, row and column of the first bad cell.
    """
    if config.extraction is None:
        return InstructionRows(source, config, cache)
    schema = train.schema if isinstance(train, ExtractionRows) else None
    seed = config.seed if train is None else HELD_OUT_SEED
    return ExtractionRows(source, config.extraction, seed=seed, schema=schema, system_prompt=config.system_prompt)


def prepare(config: AdaptConfig, cache: Path | None, run: Path | None = None) -> Prepared:
    """Read the data and fingerprint them and the model; every bad cell and missing file is found here.

    Writes nothing but a GGUF file's conversion, and imports no torch but for that.
    """
    base = find_base(config, run)
    rows = read_rows(config.train_data, config, cache=cache)
    eval_rows = None if config.eval_data is None else read_rows(config.eval_data, config, rows)
    chat = ChatFormat.of(base.folder, config.template)
    encoded(rows, chat, config, 0)
    data: dict[str, Any] = {"digest": rows.digest, "examples": rows.num_examples}
    bins = lengths = None
    if config.packing:
        assert config.max_length is not None, "the configuration requires it"
        lengths = lengths_of(rows, chat, config, cache)
        bins = fill_bins(lengths, config.max_length)
        data |= {"bins": len(bins), "bins_digest": digest(bins.numbers.astype("<i8").tobytes())}
    course_over(config, rows.num_examples, data.get("bins"), bins)
    digests = {"model": base_digest(base, run, config.trust_remote_code), "tokenizer": chat.digest}
    if base.adapter is not None:
        digests["adapter"] = adapter_digest(base.adapter)
    if eval_rows is not None and config.load_best_model_at_end:  # then it chooses the model
        digests["eval_data"] = eval_rows.digest
    return Prepared(
        identity={"data": data, **{name: {"digest": found} for name, found in digests.items()}},
        row_digests=rows.row_digests.astype("<u8").tobytes(),
        weights_bytes=trained_bytes(base, config),
        parent=base.parent,
        load=partial(load, Inputs(config, base, digests["model"], chat, rows, eval_rows, bins, lengths)),
        notes=(*base.notes(config.model), *chat.notes),
    )


def load(inputs: Inputs) -> Callable[[Path, Progress], Job]:
    """Load the model, put what trains into it, and return what builds the job."""
    trained = load_trained(inputs.config, inputs.base, inputs.digest)

    def build(cache: Path, on_progress: Progress) -> Job:
        from unbroken.tasks.adapt.batches import Encoding
        from unbroken.tasks.adapt.job import build_job

        config, rows, chat, bins = inputs.config, inputs.rows, inputs.chat, inputs.bins
        if isinstance(rows, InstructionRows):
            rows.keep_in(cache)
        if inputs.lengths is not None:
            keep_lengths(inputs.lengths, rows, chat, config, cache)
        chunk_size = config.micro_batch_size or config.batch_size
        encoding = Encoding(rows, chat, config, chunk_size, bins)
        plan = course_over(config, rows.num_examples, None if bins is None else len(bins), bins)
        asking = Asking(config, rows.schema if isinstance(rows, ExtractionRows) else None)
        told = replace(trained, documents=lambda: {**trained.documents(), **asking.documents()})
        return build_job(config, told, encoding, plan, evaluation_of(inputs, on_progress))

    return build


def load_trained(config: AdaptConfig, base: Base, recorded: str = "") -> Trained:
    """Return the model with what trains in it; adapters hold its digest, `recorded`.

    Raises `ConfigError` if it cannot be loaded.
    """
    from unbroken.models.causal import CausalLM
    from unbroken.models.lora import Adapter, LoraSettings
    from unbroken.tasks.adapt.job import Trained
    from unbroken.tasks.device import resolve_device

    device = resolve_device(config.device)
    lm = CausalLM.from_pretrained(
        base.folder,
        device=device,
        dtype=dtype_of(config, device),
        trust_remote_code=config.trust_remote_code,
        quantization=config.quantization,
    )
    if config.max_length is not None and config.max_length > lm.max_length:
        raise ConfigError(
            f"max_length {config.max_length} is more than the {lm.max_length} tokens the model takes",
            next_step=f"set max_length to {lm.max_length} or less",
        )
    lm.neftune_alpha = config.neftune_noise_alpha or None
    if config.gradient_checkpointing:
        lm.checkpoint_gradients()
    if config.tuning == "full":
        return Trained.whole(lm)
    settings = LoraSettings(**config.lora.model_dump())
    adapter = Adapter.attach(lm, settings, config.seed, base_name(config, base))
    adapter.base_digest = recorded
    if base.adapter is not None:
        adapter.load(base.adapter)
    return Trained.adapters(lm if config.quantization else lm.to(device), adapter)


def base_name(config: AdaptConfig, base: Base) -> str:
    """Return what the adapter's folder calls its model: its name on the hub, the same everywhere, or its path."""
    named = Path(config.model).expanduser()
    hub = base.adapter is None and base.parent is None and not os.path.lexists(named)
    return config.model if hub else str(base.folder)


def dtype_of(config: AdaptConfig, device: torch.device) -> torch.dtype:
    """Return the type of the model's weights. Those that train are float32, whatever the arithmetic."""
    import torch

    if config.tuning == "full":
        return torch.float32
    narrow = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if narrow else torch.float32


def evaluation_of(inputs: Inputs, on_progress: Progress) -> Any:
    """Return what measures a model on the held-out rows, None without any."""
    rows, config = inputs.eval_rows, inputs.config
    if rows is None:
        return None
    from unbroken.tasks.adapt.batches import Encoding
    from unbroken.tasks.adapt.evaluation import Evaluation
    from unbroken.tasks.adapt.extracting import Extracting

    extract = None
    if isinstance(rows, ExtractionRows):
        extract = Extracting(rows, inputs.chat, config.max_new_tokens, config.eval_rows, on_progress)
    return Evaluation(Encoding(rows, inputs.chat, config, chunk_size=1), config, extract)
