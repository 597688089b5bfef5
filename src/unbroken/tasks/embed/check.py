"""What there is to see about an embedding run before it starts: data, model, lengths, duplicates, leakage, time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unbroken.base.seeds import chunk_seed, derive
from unbroken.models.arena import Arena
from unbroken.models.encoder import Encoder, EncoderWarning
from unbroken.models.tokenizing import NO_LIMIT
from unbroken.plan.plan import Draws
from unbroken.run.findings import Section
from unbroken.step.generators import seeded
from unbroken.tasks.base_model import find_model
from unbroken.tasks.course import Course, course_of
from unbroken.tasks.device import resolve_device
from unbroken.tasks.embed.config import EmbedConfig
from unbroken.tasks.embed.data import NEGATIVE, SCORE, EmbedData
from unbroken.tasks.embed.job import LOSSES, Encoding, Role, gradients
from unbroken.tasks.footprint import activation_bytes, weights_bytes
from unbroken.tasks.task import Progress

BLOCK_TEXTS = 4096
MAX_TEXTS = 200_000  # of a role, for lengths; more are sampled evenly
MAX_BATCHES = 1000  # of the first epoch, for duplicates
SHOWN_CHARACTERS = 160
TIMED_STEPS = 4
NOTICED_SHARE = 0.01


class EmbedCheck:
    """Looks at one configuration, of a new run or of one to go on with; reads, and writes nothing."""

    def __init__(self, config: EmbedConfig, progress: Progress, run: Path | None) -> None:
        self.config = config
        self.run = run
        self.progress = progress
        self.train = EmbedData(config.train_data, config)

    @property
    def sections(self) -> Sequence[Callable[[], Section]]:
        """Everything to look at before a new run, each by itself."""
        return (self.data, self.model, self.lengths, self.duplicates, self.leakage)

    @cached_property
    def course(self) -> Course:
        """The plan of the run, its steps and its learning rate."""
        return course_of(self.config, self.train.summary.num_examples)

    @property
    def plan(self) -> Draws:
        """The plan of the run."""
        return self.course.plan

    @property
    def total_steps(self) -> int:
        """How many steps the run has."""
        return self.course.total_steps

    @cached_property
    def device(self) -> torch.device:
        """Where it would be trained."""
        return resolve_device(self.config.device, self.run)

    @cached_property
    def encoder(self) -> Encoder:
        """The model, on the CPU; what loading it warned of is in its notes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EncoderWarning)
            origin, _ = find_model(self.config, self.run)
            return Encoder.from_pretrained(origin.model, max_length=self.config.max_length)

    @property
    def roles(self) -> list[str]:
        """The roles that hold texts."""
        return [role for role in self.train.summary.roles if role != SCORE]

    def data(self) -> Section:
        """Rows, which column has which role, and the first example as the model reads it."""
        summary, mapping = self.train.summary, self.train.mapping
        used = {column for role in summary.roles for column in mapping[role]}
        first = {f"first_{role}": self._first(role) for role in summary.roles}
        unused = [column for column in self.train.table.columns if column not in used]
        empty = {role: sum(not text.strip() for text in self.train.texts(role)[0]) for role in self.roles}
        notes = [f"{count:,} texts of {role} are empty" for role, count in empty.items() if count]
        values = {
            "train_data": self.train.table.name,
            "rows": summary.num_examples,
            "columns": {role: ", ".join(mapping[role]) for role in summary.roles},
            "unused_columns": ", ".join(map(str, unused)) or "none",
            **first,
        }
        return Section("data", values, {"digest": summary.digest}, tuple(notes))

    def model(self) -> Section:
        """What is trained, and where."""
        encoder = self.encoder
        values = {
            "model": self.config.model,
            "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            "max_length": "no limit" if encoder.max_length >= NO_LIMIT else encoder.max_length,
            "device": str(self.device),
        }
        return Section("model", values, warnings=tuple(encoder.notes))

    def lengths(self) -> Section:
        """How many tokens the texts have, and how many of them are cut off."""
        rows, notes = {}, []
        for role, lengths in self._full_lengths.items():
            cut = float(np.mean(lengths > self.encoder.max_length))
            rows[role] = {
                "texts": len(lengths),
                "p50": int(np.percentile(lengths, 50)),
                "p95": int(np.percentile(lengths, 95)),
                "max": int(lengths.max(initial=0)),
                "truncated_share": cut,
            }
            if cut > NOTICED_SHARE:
                notes.append(f"{cut:.1%} of the texts of {role} are cut off after {self.encoder.max_length} tokens")
        return Section("lengths", {"tokens": rows}, warnings=tuple(notes))

    def duplicates(self) -> Section:
        """Rows that repeat, and batches in which a right answer would count as a wrong one."""
        rows, count = self.train.summary.row_digests, self.train.summary.num_examples
        values: dict[str, Any] = {"duplicate_rows": count - len(np.unique(rows))}
        notes = []
        if self.config.loss == "multiple_negatives_ranking":
            for role in ("positive", "anchor"):
                groups = group(self.train.texts(role)[0])
                share = self._batches_with_repeats(groups)
                values[f"repeated_{role}s"] = count - int(groups.max()) - 1
                values[f"batches_with_a_repeated_{role}_share"] = share
                if share > NOTICED_SHARE:
                    notes.append(
                        f"{share:.1%} of the batches hold the same {role} twice: in-batch negatives that are right "
                        "answers"
                    )
        if NEGATIVE in self.roles:
            wrong = self._negatives_that_are_positives()
            values["rows_whose_negative_is_their_positive"] = wrong
            if wrong:
                notes.append(f"in {wrong:,} rows a negative is the positive itself")
        if values["duplicate_rows"] > NOTICED_SHARE * count:
            notes.append(f"{values['duplicate_rows']:,} rows are exact copies of earlier ones")
        return Section("duplicates", values, warnings=tuple(notes))

    def leakage(self) -> Section:
        """Texts and whole rows of eval_data that are also trained on."""
        if self.config.eval_data is None:
            return Section("leakage", {"eval_data": "none"})
        held_out = EmbedData(self.config.eval_data, self.config)
        trained = {text for role in self.roles for text in self.train.texts(role)[0]}
        found = {}
        for role in (role for role in held_out.summary.roles if role != SCORE):
            texts = set(held_out.texts(role)[0])
            known = len(texts & trained)
            found[role] = {"texts": len(texts), "in_train_data": known, "share": known / max(1, len(texts))}
        rows = np.isin(held_out.summary.row_digests, self.train.summary.row_digests)
        values = {
            "eval_data": held_out.table.name,
            "rows": held_out.summary.num_examples,
            "rows_in_train_data": int(rows.sum()),
            "text": found,
        }
        notes = [
            f"{part['in_train_data']:,} of {part['texts']:,} texts of {role} in eval_data are also in train_data"
            for role, part in found.items()
            if part["in_train_data"]
        ]
        if rows.any():
            notes.insert(0, f"{int(rows.sum()):,} rows of eval_data are also in train_data: metrics will flatter")
        return Section("leakage", values, warnings=tuple(notes))

    def steps(self) -> Section:
        """How long the run is, in steps and in passes over the data."""
        config, plan = self.config, self.plan
        values = {
            "steps": self.total_steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "epochs": round(self.total_steps / plan.steps_per_epoch, 3),
            "warmup_steps": self.course.warmup_steps,
            "examples_per_step": config.batch_size,
            "chunks_per_step": -(-config.batch_size // self._chunk_size),
        }
        notes = []
        if self.total_steps < plan.steps_per_epoch:
            notes.append(f"max_steps ends the run before every row was seen once ({plan.steps_per_epoch:,} steps)")
        return Section("steps", values, warnings=tuple(notes))

    def memory(self) -> dict[str, int]:
        """Return the bytes of weights and of one chunk's activations, the latter roughly."""
        activations = int(self._tokens_per_chunk() * activation_bytes(self.encoder))
        return {"weights": weights_bytes(self.encoder), "activations": activations}

    def time_steps(self) -> Section:
        """Measure forward and backward of a few steps of the run, without updating anything."""
        encoder = self.encoder.to(self.device).train()
        scope = partial(self._scope, derive(self.config.seed, "check"))
        loss = partial(LOSSES[self.config.loss], self.config)
        seconds, tokens = [], 0
        for step in range(min(TIMED_STEPS, self.total_steps)):
            ids = self.plan.draw(step).ids
            batch = self._encoding(ids)(np.arange(len(ids)), 0)
            began = time.perf_counter()
            float(gradients(encoder, loss, batch, scope))
            seconds.append(time.perf_counter() - began)
            tokens += sum(chunk.num_tokens for chunk in batch.chunks)
            encoder.zero_grad(set_to_none=True)
        each = float(np.median(seconds[1:] or seconds))  # the first one warms up
        values = {
            "step_seconds": each,
            "samples_per_second": self.config.batch_size / each,
            "tokens_per_second": tokens / len(seconds) / each,
        }
        return Section("time", values, {"steps_measured": len(seconds)})

    @staticmethod
    def _scope(key: int, chunk: int) -> Any:
        return seeded(chunk_seed(key, chunk))

    @property
    def _chunk_size(self) -> int:
        return self.config.micro_batch_size or self.config.batch_size

    @cached_property
    def _full_lengths(self) -> dict[str, NDArray[np.int64]]:
        """Every text's number of tokens if nothing were cut off; a sample where there are very many."""
        found = {}
        for role in self.roles:
            texts = self.train.texts(role)[0]
            texts = texts[:: -(-len(texts) // MAX_TEXTS)] if texts else texts
            found[role] = np.concatenate([np.zeros(0, np.int64), *self._count(texts, role)])
        return found

    def _count(self, texts: Sequence[str], role: str) -> Iterator[NDArray[np.int64]]:
        prompt = self.config.prompts.get(role, "")
        for start in range(0, len(texts), BLOCK_TEXTS):
            block = self.encoder.fast_tokenizer(texts[start : start + BLOCK_TEXTS], prompt, NO_LIMIT)
            self.progress(f"measuring {role}", start + len(block), len(texts))
            yield block.lengths

    def _tokens_per_chunk(self) -> float:
        """A large chunk: three standard deviations above the mean."""
        total, rows = 0.0, self.train.summary.num_examples
        for role, lengths in self._full_lengths.items():
            texts = self._chunk_size * len(self.train.texts(role)[0]) / rows
            cut = np.minimum(lengths, self.encoder.max_length)
            total += texts * cut.mean() + 3 * texts**0.5 * cut.std() if len(cut) else 0.0
        return total

    def _batches_with_repeats(self, groups: NDArray[np.int64]) -> float:
        """Return the share of the first epoch's batches in which a group occurs twice."""
        steps = min(self.plan.steps_per_epoch, MAX_BATCHES)
        drawn = (groups[self.plan.draw(step).ids] for step in range(steps))
        return sum(len(np.unique(members)) < len(members) for members in drawn) / steps

    def _negatives_that_are_positives(self) -> int:
        positives = self.train.texts("positive")[0]
        negatives, bounds = self.train.texts(NEGATIVE)
        if bounds is None:
            return sum(one == other for one, other in zip(positives, negatives, strict=True))
        return sum(text in negatives[bounds[row] : bounds[row + 1]] for row, text in enumerate(positives))

    def _first(self, role: str) -> str:
        if role == SCORE:
            return str(self.train.numbers(SCORE)[0])
        texts, bounds = self.train.texts(role)
        mine = texts[:1] if bounds is None else texts[: bounds[1]]
        shown = " | ".join(self.config.prompts.get(role, "") + text for text in mine)
        return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."

    def _encoding(self, ids: NDArray[np.int64]) -> Encoding:
        """Return the encoding of these examples alone, numbered from 0, with nothing put in a cache."""
        roles = []
        for role in self.roles:
            texts, bounds = self.train.texts(role)
            spans = [(i, i + 1) if bounds is None else (int(bounds[i]), int(bounds[i + 1])) for i in ids]
            mine = [text for start, end in spans for text in texts[start:end]]
            rows = self.encoder.fast_tokenizer(mine, self.config.prompts.get(role, ""))
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows.lengths)])
            arena = Arena(rows.ids.numpy(), offsets, int(rows.prompt_lengths[0]) if mine else 0)
            own = None if bounds is None else np.cumsum([0, *(end - start for start, end in spans)], dtype=np.int64)
            roles.append(Role(arena, own))
        scores = self.train.numbers(SCORE)[ids] if SCORE in self.train.summary.roles else None
        return Encoding(roles, scores, self._chunk_size)


def group(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return for each text the number of its distinct value, from 0."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), dtype=np.int64, count=len(texts))


open_check = EmbedCheck
