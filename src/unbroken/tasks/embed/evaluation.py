"""How good an embedding model is on held-out rows: by retrieval, graded similarity or triplets, as the loss asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unbroken.base.fingerprint import canonical, digest
from unbroken.models.encoder import Encoder
from unbroken.tasks.embed.config import EmbedConfig
from unbroken.tasks.embed.data import NEGATIVE, SCORE, EmbedData
from unbroken.tasks.ranking import retrieval
from unbroken.tasks.similarity import graded, triplet_accuracy


@dataclass(frozen=True)
class Evaluation:
    """Measures an encoder on fixed rows."""

    data: EmbedData
    config: EmbedConfig

    @property
    def identity(self) -> str:
        """What is measured on what: an evaluation found on disk counts only if this is the same."""
        return digest(canonical([self.data.summary.digest, self.config.loss, self.config.prompts]))

    def measure(self, encoder: Encoder) -> dict[str, float]:
        """Return the metrics of `encoder`, by name."""
        match self.config.loss:
            case "cosent":
                scores = self.data.numbers(SCORE)
                return graded(self._embed(encoder, "sentence1"), self._embed(encoder, "sentence2"), scores)
            case "triplet":
                roles = ("anchor", "positive", "negative")
                return triplet_accuracy(*(self._embed(encoder, role) for role in roles))
            case _:
                return self._retrieval(encoder)

    def _retrieval(self, encoder: Encoder) -> dict[str, float]:
        """Each distinct anchor is a query; its positives are to be found among all distinct positives and negatives."""
        anchors, _ = self.data.texts("anchor")
        positives, _ = self.data.texts("positive")
        negatives = self.data.texts(NEGATIVE)[0] if NEGATIVE in self.data.summary.roles else []
        query_of = {text: index for index, text in enumerate(dict.fromkeys(anchors))}
        document_of = {text: index for index, text in enumerate(dict.fromkeys([*positives, *negatives]))}
        relevant: list[set[int]] = [set() for _ in query_of]
        for anchor, positive in zip(anchors, positives, strict=True):
            relevant[query_of[anchor]].add(document_of[positive])
        prompts = self.config.prompts
        queries = encoder.encode(list(query_of), prompt=prompts.get("anchor", ""))
        corpus = encoder.encode(list(document_of), prompt=prompts.get("positive", ""))
        return retrieval(np.asarray(queries), np.asarray(corpus), relevant)

    def _embed(self, encoder: Encoder, role: str) -> Any:
        return np.asarray(encoder.encode(self.data.texts(role)[0], prompt=self.config.prompts.get(role, "")))
