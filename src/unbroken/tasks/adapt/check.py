"""What there is to see about a run of instruction tuning before it starts: rows, lengths, what trains, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbroken.base.seeds import chunk_seed, derive
from unbroken.models.causal_folder import read_causal_folder
from unbroken.models.chat import ChatFormat
from unbroken.plan.packing import Bins, fill_bins
from unbroken.run.findings import Section
from unbroken.step.generators import seeded
from unbroken.tasks.adapt.batches import Encoding
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.conversation import Rows
from unbroken.tasks.adapt.encoding import lengths_of
from unbroken.tasks.adapt.extraction.rows import ExtractionRows
from unbroken.tasks.adapt.job import Trained, chunk_loss, gradients, narrow_arithmetic
from unbroken.tasks.adapt.lengths import Lengths, measure
from unbroken.tasks.adapt.source import Base, find_base, model_bytes, trained_bytes
from unbroken.tasks.adapt.task import course_over, load_trained, read_rows
from unbroken.tasks.course import Course
from unbroken.tasks.device import resolve_device
from unbroken.tasks.task import Progress

MAX_MEASURED = 20_000  # examples, for lengths; more are sampled evenly
SHOWN_CHARACTERS = 600
TIMED_STEPS = 3
NOTICED_SHARE = 0.01
# Numbers kept for the backward pass, per token and layer: of the hidden size (queries, keys, values, attention, its
# output, two norms, residuals) and of the inner one (gate, up, their product). Adapters keep their inputs beside.
KEPT_HIDDEN, KEPT_INNER = 14, 4


class AdaptCheck:
    """Looks at one configuration, of a new run or of one to go on with; reads, and writes nothing."""

    def __init__(self, config: AdaptConfig, progress: Progress, run: Path | None) -> None:
        self.config = config
        self.run = run
        self.progress = progress

    @property
    def sections(self) -> Sequence[Callable[[], Section]]:
        """Everything to look at before a new run, each by itself."""
        return (self.data, self.model, self.lengths, self.duplicates, self.leakage)

    @cached_property
    def rows(self) -> Rows:
        """What is trained on."""
        return read_rows(self.config.train_data, self.config)

    @cached_property
    def base(self) -> Base:
        """Where the model is read from."""
        return find_base(self.config, self.run)

    @cached_property
    def chat(self) -> ChatFormat:
        """How conversations become tokens."""
        return ChatFormat.of(self.base.folder, self.config.template)

    @cached_property
    def bins(self) -> Bins | None:
        """The bins that examples are packed in, None where they are not."""
        if not self.config.packing:
            return None
        assert self.config.max_length is not None, "the configuration requires it"
        return fill_bins(lengths_of(self.rows, self.chat, self.config, None), self.config.max_length)

    @cached_property
    def course(self) -> Course:
        """The plan of the run, its steps and its learning rate."""
        bins = self.bins
        return course_over(self.config, self.rows.num_examples, None if bins is None else len(bins), bins)

    @property
    def total_steps(self) -> int:
        """How many steps the run has."""
        return self.course.total_steps

    @cached_property
    def device(self) -> torch.device:
        """Where it would be trained."""
        return resolve_device(self.config.device, self.run)

    @cached_property
    def trained(self) -> Trained:
        """The model, with what trains in it."""
        return load_trained(self.config, self.base)

    def data(self) -> Section:
        """Rows, and the first example as the model reads it."""
        rows = self.rows
        text = self.chat.render(rows.conversation(0, 0))
        shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
        values: dict[str, Any] = {"examples": rows.num_examples}
        if isinstance(rows, ExtractionRows):
            values |= {"rows": rows.num_rows, "types": ", ".join(rows.schema.types)}
        values |= {"template": self.config.template, "first_example": shown}
        return Section("data", values, {"digest": rows.digest}, tuple(self.chat.notes))

    def model(self) -> Section:
        """What is trained, and where."""
        lm = self.trained.lm
        moving = sum(p.numel() for module in self.trained.modules.values() for p in module.parameters())
        values = {
            "model": self.config.model,
            "family": lm.folder.model_type,
            "parameters": sum(parameter.numel() for parameter in lm.parameters()),
            "trained_parameters": moving,
            "max_length": self.config.max_length or lm.max_length,
            "device": str(self.device),
        }
        return Section("model", values, warnings=(lm.reason,) if lm.reason else ())

    def lengths(self) -> Section:
        """How many tokens examples have, how many of them are learned, and how many examples lose their end."""
        found = self._lengths
        cut, unanswered = len(found.cut), len(found.unanswered)
        values = {
            "examples": len(found.whole),
            "p50": int(np.percentile(found.whole, 50)),
            "p95": int(np.percentile(found.whole, 95)),
            "max": int(found.whole.max(initial=0)),
            "target_share": float(found.targets.sum() / max(1, found.kept.sum())),
            "cut_examples": cut,
        }
        notes = []
        if cut:
            notes.append(
                f"{cut:,} of {len(found.whole):,} examples are longer than max_length {self.config.max_length}: they "
                "lose their end, and the model does not see them stop"
            )
        if unanswered:
            row = self.rows.rows([int(found.unanswered[0])])[0]
            notes.append(f"{unanswered:,} examples have no answer left, the first in row {row + 1}: `train` refuses")
        return Section("lengths", {"tokens": values}, warnings=tuple(notes))

    def duplicates(self) -> Section:
        """Rows that repeat."""
        digests = self.rows.row_digests
        again = len(digests) - len(np.unique(digests))
        notes = [f"{again:,} rows are exact copies of earlier ones"] if again > NOTICED_SHARE * len(digests) else []
        return Section("duplicates", {"duplicate_rows": again}, warnings=tuple(notes))

    def leakage(self) -> Section:
        """Rows of eval_data that are trained on."""
        if self.config.eval_data is None:
            return Section("leakage", {"eval_data": "none"})
        held_out = read_rows(self.config.eval_data, self.config, self.rows)
        known = int(np.isin(held_out.row_digests, self.rows.row_digests).sum())
        values = {"rows": len(held_out.row_digests), "rows_in_train_data": known}
        notes = [f"{known:,} rows of eval_data are also in train_data: metrics will flatter"] if known else []
        return Section("leakage", values, warnings=tuple(notes))

    def steps(self) -> Section:
        """How long the run is, in steps and in passes over the data."""
        plan = self.course.plan
        values = {
            "steps": self.total_steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "epochs": round(self.total_steps / plan.steps_per_epoch, 3),
            "warmup_steps": self.course.warmup_steps,
            "bins_per_step" if self.config.packing else "examples_per_step": self.config.batch_size,
            "chunks_per_step": -(-self.config.batch_size // self._chunk_size),
        }
        notes = []
        if self.total_steps < plan.steps_per_epoch:
            notes.append(f"max_steps ends the run before every row was seen once ({plan.steps_per_epoch:,} steps)")
        return Section("steps", values, warnings=tuple(notes))

    def memory(self) -> dict[str, int]:
        """Return the bytes of what trains, of what does not, and of one chunk's activations, the latter roughly."""
        trained = trained_bytes(self.base, self.config)
        whole = model_bytes(self.base)
        config = read_causal_folder(self.base.folder).config
        hidden, inner = int(config.get("hidden_size", 0)), int(config.get("intermediate_size", 0))
        layers = int(config.get("num_hidden_layers", 0))
        each = 4 * layers * (KEPT_HIDDEN * hidden + KEPT_INNER * inner)
        if self.config.gradient_checkpointing:
            each = 4 * layers * hidden
        if self.config.packing:
            tokens = self._chunk_size * (self.config.max_length or 0)
        else:
            kept = self._lengths.kept
            tokens = int(self._chunk_size * kept.mean() + 3 * self._chunk_size**0.5 * kept.std())
        frozen = 0 if self.config.tuning == "full" else whole
        return {"weights": trained, "frozen": frozen, "activations": tokens * each}

    def time_steps(self) -> Section:
        """Measure forward and backward of a few steps of the run, without updating anything."""
        lm = self.trained.lm.to(self.device).train()
        encoding = Encoding(self.rows, self.chat, self.config, self._chunk_size, self.bins)
        loss = partial(chunk_loss, lm, narrow=narrow_arithmetic(self.config, lm))
        key = derive(self.config.seed, "check")
        seconds, tokens = [], 0
        for step in range(min(TIMED_STEPS, self.total_steps)):
            drawn = self.course.plan.draw(step)
            batch = encoding(drawn.ids, drawn.epoch)
            began = time.perf_counter()
            float(gradients(loss, batch, lambda chunk: seeded(chunk_seed(key, chunk))))
            seconds.append(time.perf_counter() - began)
            tokens += sum(int(chunk.lengths.sum()) for chunk in batch.chunks)
            lm.zero_grad(set_to_none=True)
        each = float(np.median(seconds[1:] or seconds))  # the first one warms up
        values = {"step_seconds": each, "tokens_per_second": tokens / len(seconds) / each}
        return Section("time", values, {"steps_measured": len(seconds)})

    @property
    def _chunk_size(self) -> int:
        return self.config.micro_batch_size or self.config.batch_size

    @cached_property
    def _lengths(self) -> Lengths:
        """The lengths of all examples, or of a sample of very many."""
        count = self.rows.num_examples
        chosen = range(0, count, -(-count // MAX_MEASURED))
        encode = partial(self.chat.encode, loss_on=self.config.loss_on, max_length=self.config.max_length)
        return measure(self.rows, encode, examples=chosen)


open_check = AdaptCheck
