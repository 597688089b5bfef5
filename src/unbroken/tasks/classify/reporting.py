"""How a report is made: the run's model, then the base model, each loaded once, then the heads and baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unbroken.base.errors import ConfigError
from unbroken.base.stopping import poll
from unbroken.models.classifying import ClassifierSettings, read_classifier
from unbroken.models.encoder import Encoder
from unbroken.models.folder import NoModelError
from unbroken.models.identity import model_digest
from unbroken.models.inference import encode_texts
from unbroken.models.progress import progress
from unbroken.run import environment
from unbroken.tasks.classify import baselines, learning_curve, mislabelled
from unbroken.tasks.classify.baselines import HeadFitter, Texts, head_probabilities
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.data import LabelledTexts
from unbroken.tasks.classify.evaluation import measures
from unbroken.tasks.classify.heads import EVALUATED_AT_ONCE
from unbroken.tasks.classify.report import LISTED_SUSPECTS, THE_RUN, Mislabelled, Report
from unbroken.tasks.classify.scores import (
    MOST_IN_MATRIX,
    Bools,
    Floats,
    class_scores,
    confidence_bins,
    confusion_matrix,
    decide,
    largest_confusions,
    one_hot,
    score,
)
from unbroken.tasks.classify.weights import weights_by_place
from unbroken.tasks.contract import resolve_threads
from unbroken.tasks.device import resolve_device
from unbroken.tasks.origin import resolve_model

SEVERAL_LEFT_OUT = (
    "no confusions, curve or suspected mistakes: with several labels to a text, no label is taken for one other"
)
NO_ROWS = "nothing is measured: the run has no eval_data; give a file: unbroken report RUN FILE"


@dataclass
class Reporting:
    """One report in the making."""

    root: Path
    document: Mapping[str, Any]
    config: ClassifyConfig
    training: LabelledTexts
    held_out: LabelledTexts | None
    show_progress: bool | None
    notes: list[str]
    left_out: list[str] = field(default_factory=list)

    def report(self, model: Path) -> Report:
        """Return the report of the run whose finished model is in `model`."""
        environment.pin(resolve_threads(self.config, self.document["contract"]))
        names = tuple(map(str, self.training.labels.names))
        several = self.training.labels.several
        chosen = self.training.chosen
        values: dict[str, Any] = {
            "run": str(self.root),
            "model": self.config.model,
            "train_data": self.training.table.name,
            "examples": len(chosen),
            "labels": names,
            "several": several,
        }
        settings, probabilities_NL = self.classify(model)
        truth_NL: Bools | None = None
        if self.held_out is not None:
            truth_NL = one_hot(self.held_out.targets, len(names))
            values |= self.measured(probabilities_NL, truth_NL, names)
        else:
            self.left_out.append(NO_ROWS)
        if several:
            self.left_out.append(SEVERAL_LEFT_OUT)
        values |= self.compared(settings, decide(probabilities_NL, several), truth_NL, names)
        return Report(**values, left_out=self.left_out, notes=self.notes)

    def classify(self, model: Path) -> tuple[ClassifierSettings, Floats]:
        """Return the finished model's settings, and its probabilities [N, L] for the held-out texts."""
        encoder = self.open(str(model))
        settings, head = read_classifier(model, encoder.dimension)
        if self.held_out is None:
            return settings, np.zeros((0, len(settings.labels)))
        return settings, head_probabilities(head, self.embeddings(encoder, self.held_out.texts))

    def measured(self, probabilities_NL: Floats, truth_NL: Bools, names: tuple[str, ...]) -> dict[str, Any]:
        """Return what the held-out rows say about the run's model alone."""
        assert self.held_out is not None, "there are rows to measure on"
        several = self.training.labels.several
        found_NL = decide(probabilities_NL, several)
        values: dict[str, Any] = {
            "eval_data": self.held_out.table.name,
            "rows": len(truth_NL),
            "measures": measures(probabilities_NL, self.held_out.targets),
            "classes": class_scores(found_NL, truth_NL, names),
            "bins": confidence_bins(probabilities_NL, truth_NL, several),
        }
        if several:
            return values
        matrix_LL = confusion_matrix(found_NL, truth_NL)
        if len(names) <= MOST_IN_MATRIX:
            values["matrix"] = matrix_LL.tolist()
        values["confusions"] = largest_confusions(matrix_LL, probabilities_NL, truth_NL, self.held_out.texts, names)
        return values

    def compared(
        self, settings: ClassifierSettings, found_NL: Bools, truth_NL: Bools | None, names: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return the scores of the run and the baselines, the curve, and the training texts that look mislabelled."""
        training, held_out = self.texts()
        if training.embeddings is None and truth_NL is None:
            return {}
        fit = HeadFitter(settings, weights_by_place(self.config.class_weight, self.training.labels))
        embedded, several = training.embeddings is not None, self.training.labels.several
        of_texts = baselines.ON_TEXTS | (baselines.on_embeddings(fit) if embedded else {})
        fits = 0 if truth_NL is None else len(of_texts)
        if embedded and not several:
            fits += mislabelled.num_folds(len(training.texts))
            fits += 0 if truth_NL is None else learning_curve.num_fits(np.bincount(training.targets).tolist())
        values: dict[str, Any] = {}
        with progress("Fitting heads and baselines", fits, self.show_progress) as advance:
            if truth_NL is not None:
                scores = {THE_RUN: score(found_NL, truth_NL, self.config.seed)}
                for name, baseline in of_texts.items():
                    poll()
                    decided_NL = baseline(training, held_out, len(names))
                    scores[name] = score(decided_NL, truth_NL, self.config.seed, best_NL=found_NL)
                    advance(1)
                values["scores"] = scores
            if embedded and not several:
                values |= self.suspected(training, fit, names, advance)
                if truth_NL is not None:
                    curve = learning_curve.learning_curve(training, held_out, fit, self.config.seed, advance)
                    values["curve"] = curve
        return values

    def suspected(
        self, training: Texts, fit: HeadFitter, names: tuple[str, ...], advance: Callable[[int], None]
    ) -> dict[str, Any]:
        """Return how many training texts look mislabelled, and the likeliest, with the rows they stand in."""
        assert training.embeddings is not None, "texts are judged by their embeddings"
        probabilities_NL = mislabelled.held_out_probabilities(
            training.embeddings, training.targets, fit, self.config.seed, advance
        )
        found, rows = mislabelled.suspects(probabilities_NL, training.targets), self.training.chosen
        listed = [
            Mislabelled(
                row=int(rows[one.row]) + 1,
                where=self.training.table.locate(int(rows[one.row])),
                text=training.texts[one.row],
                label=names[one.label],
                suggested=names[one.suggested],
                probability=one.probability,
                suggested_probability=one.suggested_probability,
                stands_out=one.stands_out,
            )
            for one in found[:LISTED_SUSPECTS]
        ]
        standing_out = sum(one.stands_out for one in found)
        return {"mislabelled": listed, "disagreeing": len(found), "standing_out": standing_out}

    def texts(self) -> tuple[Texts, Texts]:
        """Return the drawn examples and the held-out texts, with the base model's embeddings if it can be had."""
        chosen = self.training.chosen
        mine, targets = [self.training.texts[row] for row in chosen], self.training.targets[chosen]
        others = self.held_out.texts if self.held_out else []
        truth = self.held_out.targets if self.held_out else targets[:0]
        folder = self.base_model()
        if folder is None:
            return Texts(mine, targets), Texts(others, truth)
        encoder = self.open(folder)
        return (
            Texts(mine, targets, self.embeddings(encoder, mine)),
            Texts(others, truth, self.embeddings(encoder, others) if others else None),
        )

    def base_model(self) -> str | None:
        """Return the folder of the base model as the run recorded it; if it is gone or another, say what is missing."""
        missing = "what is made with it is left out (embedding baselines, curve, suspected mistakes)"
        way_out = "if it has moved, say where it is: --set model=FOLDER"
        try:
            folder = resolve_model(self.config.model, self.root).model
            digest = model_digest(folder)
        except (NoModelError, OSError):
            self.left_out.append(f"the base model {self.config.model} is gone, so {missing}; {way_out}")
            return None
        if digest != self.document["contract"]["model"]["digest"]:
            self.left_out.append(f"the model at {self.config.model} is not the one the run began with, so {missing}")
            return None
        return folder

    def open(self, folder: str) -> Encoder:
        """Load an encoder on the run's device, or if that is not here on what there is."""
        device = resolve_device("auto")
        with suppress(ConfigError):
            device = resolve_device(self.config.device)
        return Encoder.from_pretrained(folder, max_length=self.config.max_length, device=device)

    def embeddings(self, encoder: Encoder, texts: list[str]) -> Tensor:
        """Return the embeddings [N, D] of texts as training and evaluation make them, on the CPU."""
        return encode_texts(
            encoder,
            texts,
            prompt=encoder.resolve_prompt(),
            batch_size=EVALUATED_AT_ONCE,
            normalize=False,
            truncate_dim=None,
            show_progress=self.show_progress,
        ).cpu()
