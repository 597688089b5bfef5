"""How good a classifier is on held-out texts: what share is right, class by class, and what its probabilities mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unbroken.base.fingerprint import canonical, digest
from unbroken.models.calibration import expected_calibration_error, log_loss
from unbroken.models.encoder import Encoder
from unbroken.tasks.classify.data import LabelledTexts
from unbroken.tasks.classify.scores import Floats, decide, macro_f1, one_hot


@dataclass(frozen=True)
class Evaluation:
    """Measures classifiers on fixed rows; `data` shares its classes with the training's."""

    data: LabelledTexts

    @property
    def identity(self) -> str:
        """What is measured on what: an evaluation found on disk counts only if this is the same."""
        return digest(canonical(["classify", self.data.digest]))

    def measure(self, encoder: Encoder, probabilities: Callable[[Encoder, list[str]], Floats]) -> dict[str, float]:
        """Return the metrics, by name, of what gives each text the probabilities of the classes."""
        return measures(probabilities(encoder, self.data.texts), self.data.targets)


def measures(probabilities_NL: Floats, targets: NDArray[np.int64]) -> dict[str, float]:
    """Return accuracy, F1 and how far the probabilities can be trusted.

    `targets` are class indices [N], or 0 and 1 for each class [N, L]: then a class is predicted from 0.5 on, and
    accuracy asks for all of a text's labels.
    """
    several = targets.ndim == 2
    found_NL, truth_NL = decide(probabilities_NL, several), one_hot(targets, probabilities_NL.shape[1])
    right_L, found_L, wanted_L = ((found_NL & truth_NL).sum(axis=0), found_NL.sum(axis=0), truth_NL.sum(axis=0))
    return {
        "accuracy": float((found_NL == truth_NL).all(axis=1).mean()),
        "f1_macro": float(macro_f1(right_L, found_L, wanted_L)),
        "f1_micro": float(2 * right_L.sum() / max(1, (found_L + wanted_L).sum())),
        "log_loss": log_loss(probabilities_NL, targets),
        "calibration_error": expected_calibration_error(probabilities_NL, targets),
    }
