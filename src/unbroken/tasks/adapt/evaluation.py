"""How good a language model is on held-out rows: the loss of their answers, and what it extracts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from unbroken.base.fingerprint import canonical, digest
from unbroken.base.stopping import poll
from unbroken.models.causal import CausalLM
from unbroken.tasks.adapt.batches import Chunk, Encoding
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.encoding import encoded, spread

TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class Evaluation:
    """Measures a model on fixed rows, `eval_rows` of them, each taken as the first epoch has it.

    `extract`, where there is something to extract, gives what generated answers are worth.
    """

    encoding: Encoding
    config: AdaptConfig
    extract: Callable[[CausalLM], dict[str, float]] | None = None

    @property
    def identity(self) -> str:
        """What is measured on what: an evaluation found on disk counts only if this is the same."""
        config = self.config
        measured = [self.encoding.rows.digest, self.encoding.chat.digest, config.loss_on, config.max_length]
        extraction = None if config.extraction is None else config.extraction.model_dump()
        return digest(canonical([*measured, config.eval_rows, config.max_new_tokens, extraction]))

    def measure(self, lm: CausalLM) -> dict[str, float]:
        """Return the metrics of `lm`, by name; it is left in the mode it was found in."""
        training = lm.training
        lm.eval()
        try:
            found = {} if self.extract is None else self.extract(lm)
            return found | self._loss(lm)
        finally:
            lm.train(training)

    def _loss(self, lm: CausalLM) -> dict[str, float]:
        """Return the mean loss of all target tokens, and its exponential."""
        total, count = 0.0, 0
        with torch.inference_mode():
            for chunk in self._chunks():
                poll()
                total += float(lm.loss(chunk.ids, chunk.lengths, chunk.targets)) * chunk.num_targets
                count += chunk.num_targets
        loss = total / count
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def _chunks(self) -> list[Chunk]:
        """Return the examples measured in chunks of about as many tokens, those of like length together."""
        encoding = self.encoding
        chosen = spread(encoding.rows.num_examples, self.config.eval_rows)
        texts = [encoded(encoding.rows, encoding.chat, self.config, example) for example in chosen]
        texts.sort(key=lambda text: len(text.ids))
        ends = np.cumsum([len(text.ids) for text in texts]) // TOKENS_AT_ONCE
        cuts = np.flatnonzero(np.diff(ends)) + 1
        return [Chunk.of(texts[i:j]) for i, j in zip([0, *cuts], [*cuts, len(texts)], strict=True)]
