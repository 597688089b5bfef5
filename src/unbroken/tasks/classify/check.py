"""What there is to see about a classification run before it starts: classes, lengths, repeats, leakage, time."""

from __future__ import annotations

import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unbroken.base.seeds import chunk_seed, derive
from unbroken.models.arena import Arena
from unbroken.models.encoder import Encoder, EncoderWarning
from unbroken.models.tokenizing import NO_LIMIT
from unbroken.run.findings import Section
from unbroken.step.generators import seeded
from unbroken.tasks.base_model import find_model
from unbroken.tasks.classify.batches import Encoding
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.course import Courses, courses_of
from unbroken.tasks.classify.data import LabelledTexts
from unbroken.tasks.classify.job import body_gradients
from unbroken.tasks.classify.losses import body_loss
from unbroken.tasks.device import resolve_device
from unbroken.tasks.footprint import activation_bytes, weights_bytes
from unbroken.tasks.task import Progress

TIMED_STEPS = 4
NOTICED_SHARE = 0.01
SHOWN_CLASSES = 100
RARE = 10  # times fewer than the most frequent class


class ClassifyCheck:
    """Looks at one configuration, of a new run or of one to go on with; reads, and writes nothing."""

    def __init__(self, config: ClassifyConfig, progress: Progress, run: Path | None) -> None:
        self.config = config
        self.progress = progress
        self.run = run
        self.train = LabelledTexts(config.train_data, config)

    @property
    def sections(self) -> Sequence[Callable[[], Section]]:
        """Everything to look at before a new run, each by itself."""
        return (self.data, self.model, self.lengths, self.duplicates, self.leakage, self.rates)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """The targets of the examples trained on."""
        return self.train.targets[self.train.chosen]

    @cached_property
    def courses(self) -> Courses:
        """Plans, steps and rates of both phases."""
        return courses_of(self.config, self.targets)

    @property
    def total_steps(self) -> int:
        """How many steps the run has."""
        return self.courses.total_steps

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

    def data(self) -> Section:
        """Rows, classes, and how many examples of each are trained on."""
        names, lacks = self.train.class_names, self.train.unlabelled
        drawn = Counter(names[row] for row in self.train.chosen if not lacks[row])
        values = {
            "train_data": self.train.table.name,
            "rows": len(names),
            "examples": len(self.train.chosen),
            "classes": len(self.train.labels.names),
            "labels_per_text": "any number" if self.train.labels.several else "one",
            "examples_per_class": dict(sorted(drawn.items())[:SHOWN_CLASSES]),
        }
        notes = []
        if self.config.teacher is not None:
            values |= {"teacher": self.config.teacher, "without_label": int(lacks.sum())}
        if drawn:
            most, least = drawn.most_common()[0], drawn.most_common()[-1]
            if most[1] >= RARE * least[1]:
                notes.append(f"class {least[0]} has {least[1]} examples, {most[0]} has {most[1]}: see class_weight")
        return Section("data", values, {"digest": self.train.digest}, tuple(notes))

    def model(self) -> Section:
        """What is trained, and where."""
        encoder = self.encoder
        values = {
            "model": self.config.model,
            "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            "max_length": "no limit" if encoder.max_length >= NO_LIMIT else encoder.max_length,
            "head": self.config.head,
            "device": str(self.device),
        }
        return Section("model", values, warnings=tuple(encoder.notes))

    def lengths(self) -> Section:
        """How many tokens the texts have, and how many of them are cut off."""
        lengths, longest = self._lengths, self.encoder.max_length
        cut = float(np.mean(lengths > longest))
        values = {
            "p50": int(np.percentile(lengths, 50)),
            "p95": int(np.percentile(lengths, 95)),
            "max": int(lengths.max()),
            "truncated_share": cut,
        }
        notes = [f"{cut:.1%} of the texts are cut off after {longest} tokens"] if cut > NOTICED_SHARE else []
        return Section("lengths", {"tokens": values}, warnings=tuple(notes))

    def duplicates(self) -> Section:
        """Texts that repeat among the examples, above all under another label."""
        classes = defaultdict(set)
        for row in self.train.chosen:
            classes[self.train.texts[row]].add(self.train.class_names[row])
        torn = [text for text, found in classes.items() if len(found) > 1]
        values = {"repeated_texts": len(self.train.chosen) - len(classes), "texts_with_several_labels": len(torn)}
        notes = [f"{len(torn)} texts stand under different labels; the first: {torn[0][:80]!r}"] if torn else []
        return Section("duplicates", values, warnings=tuple(notes))

    def leakage(self) -> Section:
        """Texts of eval_data that are trained on."""
        if self.config.eval_data is None:
            return Section("leakage", {"eval_data": "none"})
        held_out = LabelledTexts(self.config.eval_data, self.config, self.train.labels)
        held_out.require_every_class(self.train)
        trained = {self.train.texts[row] for row in self.train.chosen}
        known = sum(text in trained for text in held_out.texts)
        values = {"eval_data": held_out.table.name, "rows": len(held_out.texts), "texts_in_train_data": known}
        notes = [f"{known:,} texts of eval_data are also trained on: metrics will flatter"] if known else []
        return Section("leakage", values, warnings=tuple(notes))

    def rates(self) -> Section:
        """Learning rates of both phases, and those that rarely work."""
        config = self.config
        first, second = config.both("body_learning_rate")
        values: dict[str, Any] = {"body": first}
        notes = []
        if config.head == "differentiable":
            values |= {"head": config.head_learning_rate, "body_in_the_second_phase": second}
            faster = second if config.end_to_end else first
            if config.head_learning_rate <= faster:
                notes.append(
                    f"head_learning_rate {config.head_learning_rate:g} is not above the encoder's {faster:g}: the head "
                    "starts from nothing and will hardly have learned"
                )
        return Section("learning rates", values, warnings=tuple(notes))

    def steps(self) -> Section:
        """How long the run is, phase by phase."""
        courses, size = self.courses, self.config.both("batch_size")[0]
        values = {
            "steps": courses.total_steps,
            "body_steps": courses.body_steps,
            "head_steps": courses.head_steps,
            "body_steps_per_epoch": courses.body.steps_per_epoch,
            "pairs_per_step" if self.config.pairs == "sampled" else "texts_per_step": size,
        }
        return Section("steps", values)

    def memory(self) -> dict[str, int]:
        """Return the bytes of weights and of one chunk's activations, the latter roughly."""
        texts = self._encoding_size
        cut = np.minimum(self._lengths, self.encoder.max_length)
        tokens = texts * cut.mean() + 3 * texts**0.5 * cut.std()
        return {"weights": weights_bytes(self.encoder), "activations": int(tokens * activation_bytes(self.encoder))}

    def time_steps(self) -> Section:
        """Measure forward and backward of a few steps of the first phase, without updating anything."""
        encoder, key = self.encoder.to(self.device).train(), derive(self.config.seed, "check")
        encoding = Encoding(self._arena, self.targets, self._encoding_size)
        nothing_taught = torch.zeros(len(self.targets), 1)  # how long a step takes does not hang on it
        loss = body_loss(self.config, self.courses.body, self.targets, nothing_taught)
        seconds = []
        for step in range(min(TIMED_STEPS, self.courses.body_steps)):
            batch = encoding(self.courses.body.draw(step).ids, 0)
            began = time.perf_counter()
            float(body_gradients(encoder, loss, batch, lambda chunk: seeded(chunk_seed(key, chunk))))
            seconds.append(time.perf_counter() - began)
            encoder.zero_grad(set_to_none=True)
        each = float(np.median(seconds[1:] or seconds))  # the first one warms up
        return Section("time", {"step_seconds": each}, {"steps_measured": len(seconds)})

    @property
    def _encoding_size(self) -> int:
        """Texts in memory at once."""
        per_pair = 2 if self.config.pairs == "sampled" else 1
        return self.config.micro_batch_size or per_pair * self.config.both("batch_size")[0]

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        """The number of tokens of every example if nothing were cut off."""
        lengths = self.encoder.fast_tokenizer(
            [self.train.texts[row] for row in self.train.chosen], "", NO_LIMIT
        ).lengths
        found: NDArray[np.int64] = np.asarray(lengths)
        return found

    @cached_property
    def _arena(self) -> Arena:
        rows = self.encoder.tokenize([self.train.texts[row] for row in self.train.chosen])
        return Arena(rows.ids.numpy(), np.concatenate([np.zeros(1, np.int64), np.cumsum(rows.lengths)]), 0)


open_check = ClassifyCheck
