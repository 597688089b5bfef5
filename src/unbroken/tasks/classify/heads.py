"""The second phase: a head over the embeddings, fitted in closed form in one step, or trained by gradients."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from unbroken.models.calibration import fit_temperature
from unbroken.models.classifying import LinearHead, log_probabilities
from unbroken.models.encoder import Encoder
from unbroken.models.inference import encode_texts
from unbroken.models.logistic import class_weights, fit_logistic
from unbroken.run.job import Phase
from unbroken.step.adamw import AdamW
from unbroken.step.fitted import Assign
from unbroken.step.gradients import Scope, cached_gradients
from unbroken.step.losses import classification_loss
from unbroken.tasks.classify.batches import Batch, Encoding, Features
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.course import Courses
from unbroken.tasks.classify.data import LabelledTexts, Labels
from unbroken.tasks.classify.weights import weights_by_place

BODY, HEAD = "encoder", "head"
EVALUATED_AT_ONCE = 32  # texts of usual length


class HeadTraining:
    """What the second phase does: with the encoder as the first phase left it, or, end to end, with it."""

    def __init__(
        self,
        config: ClassifyConfig,
        encoder: Encoder,
        head: LinearHead,
        features: Features,
        targets: NDArray[np.int64],
        labels: Labels,
        held_out: LabelledTexts | None,
    ) -> None:
        self.config, self.encoder, self.head, self.features = config, encoder, head, features
        self.targets = torch.from_numpy(targets)
        self.held_out = held_out
        self._untrained = head.weight.detach().clone()
        self.by_place = weights_by_place(config.class_weight, labels)

    def phase(self, courses: Courses, encoding: Encoding, body: Container[str]) -> Phase:
        """Return the phase; `body` holds the names of the encoder's trained parameters."""
        config, closed = self.config, self.config.head == "logistic_regression"
        own = {f"{HEAD}.{name}" for name in ("weight", "bias", *(["temperature"] if config.calibrate else []))}
        chunks = -(-courses.head.batch_size // encoding.chunk_size)
        how: Callable[[Any, Scope], Tensor] = self.train_head
        if closed:
            how = self.fit_head
        elif config.end_to_end:
            how = self.train_both
        return Phase(
            name="head",
            end_step=courses.total_steps,
            plan=courses.head,
            optimizer=(lambda trained: Assign(trained.values())) if closed else self.optimizer,
            learning_rate=courses.head_rate,
            trains=(lambda name: name in own or name in body) if config.end_to_end else own.__contains__,
            max_grad_norm=None if closed else config.max_grad_norm,
            draws_per_step=chunks + 1,
            encode=encoding if config.end_to_end else lambda ids, epoch: ids,
            gradients=how,
        )

    def optimizer(self, trained: Mapping[str, Parameter]) -> AdamW:
        """Return AdamW over the head and, end to end, the encoder at its own rate; all of it decays, as in SetFit."""
        config = self.config
        slower = config.both("body_learning_rate")[1] / config.head_learning_rate
        mine = {name: parameter for name, parameter in trained.items() if name.startswith(f"{HEAD}.")}
        others = [parameter for name, parameter in trained.items() if name not in mine]
        groups = [{"params": others, "lr_scale": slower}] if others else []
        return AdamW(
            [*groups, {"params": list(mine.values())}],
            lr=config.head_learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.l2_weight,
        )

    def fit_head(self, ids: NDArray[np.int64], scope: Scope) -> Tensor:
        """Fit the head to all examples; leave what its tensors must become as their gradients. Returns its loss."""
        features = self.features.kept()
        weight, bias, _ = self.fitted(features)
        for parameter, value in ((self.head.weight, weight), (self.head.bias, bias)):
            parameter.grad = value.to(parameter.device)
        if self.config.calibrate:
            self.head.temperature.grad = self._temperature(weight, bias)
        logits_NL = self._logits(features, weight, bias)
        return classification_loss(logits_NL, self.targets, self.head.multi_label)

    def fitted(self, features_ND: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return the weight [L, D] and bias [L] of the logistic regression on `features_ND`, and its notes."""
        return fit_logistic(
            features_ND.cpu().numpy(),
            self.targets.numpy(),
            num_labels=len(self.head.bias),
            multi_label=self.head.multi_label,
            class_weight=self.by_place,
            normalize_embeddings=self.head.normalize_embeddings,
        )

    def train_head(self, ids: NDArray[np.int64], scope: Scope) -> Tensor:
        """Leave the gradients of a batch's loss in the head; the encoder, as it is, made the embeddings once."""
        rows = torch.from_numpy(ids)
        loss = self._loss(self.features.kept()[rows], self.targets[rows])
        loss.backward()
        return loss.detach()

    def train_both(self, batch: Batch, scope: Scope) -> Tensor:
        """Leave the gradients of a batch's loss in the head and the encoder."""
        return cached_gradients(
            self.encoder.embed, lambda embeddings: self._loss(embeddings, batch.targets), batch.chunks, scope
        )

    @torch.no_grad()
    def probabilities(self, encoder: Encoder, texts: list[str]) -> NDArray[np.float64]:
        """Return the classes' probabilities [N, L] by the head; while it has made no step, by one fitted now.

        So figures of the first phase say what a logistic regression would make of the encoder as it is.
        """
        embeddings = embedded(encoder, texts)
        if not torch.equal(self.head.weight, self._untrained):
            return self.head.probabilities(embeddings).double().cpu().numpy()
        weight, bias, _ = self.fitted(self.features.make())
        logits = self._logits(embeddings, weight, bias)
        return log_probabilities(logits, self.head.multi_label).exp().double().numpy()

    def _loss(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        weights = class_weights(self.targets, len(self.head.bias), self.by_place, self.head.multi_label)
        device = embeddings.device
        return classification_loss(
            self.head.logits(embeddings),
            targets.to(device),
            self.head.multi_label,
            None if weights is None else weights.to(device),
        )

    def _logits(self, embeddings: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return what a head of these tensors would say, on the CPU."""
        embeddings = embeddings.detach().cpu()
        if self.head.normalize_embeddings:
            embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
        return torch.nn.functional.linear(embeddings, weight, bias)

    def _temperature(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the temperature that makes the probabilities of held-out texts the most likely ones."""
        assert self.held_out is not None
        embeddings = embedded(self.encoder, self.held_out.texts)
        targets = torch.from_numpy(self.held_out.targets)
        found = fit_temperature(self._logits(embeddings, weight, bias), targets, self.head.multi_label)
        return torch.tensor(found, device=self.head.temperature.device)


def embedded(encoder: Encoder, texts: list[str]) -> Tensor:
    """Return the embeddings [N, D] of texts that are not trained on, as the finished classifier makes them."""
    return encode_texts(
        encoder,
        texts,
        prompt=encoder.resolve_prompt(),
        batch_size=EVALUATED_AT_ONCE,
        normalize=False,
        truncate_dim=None,
        show_progress=False,
    )
