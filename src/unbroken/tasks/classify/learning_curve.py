"""How accuracy grows with the number of examples a class has: heads alone, on embeddings of the untuned model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unbroken.base.seeds import derive
from unbroken.base.stopping import poll
from unbroken.plan.shots import draw_shots
from unbroken.tasks.classify.baselines import HeadFitter, Texts, head_probabilities

DRAWS, DRAWS_OF_MANY = 5, 1
MANY = 5000  # examples above which one draw tells enough


@dataclass(frozen=True)
class CurvePoint:
    """`shots` examples a class (fewer where there are fewer), `examples` in all: the mean accuracy of several draws."""

    shots: int
    examples: int
    accuracy: float
    lowest: float
    highest: float
    draws: int


def sizes(most: int) -> list[int]:
    """Return 1, 2, 4, 8, ... below `most`, and `most`."""
    return [*(2**power for power in range((most - 1).bit_length())), most] if most > 1 else [most]


def num_draws(class_sizes: Sequence[int], shots: int) -> int:
    """Return how often so many examples a class are drawn; of all there are, there is one draw."""
    examples = sum(min(shots, size) for size in class_sizes)
    return DRAWS if shots < max(class_sizes) and examples <= MANY else DRAWS_OF_MANY


def num_fits(class_sizes: Sequence[int]) -> int:
    """Return how many heads a curve takes."""
    return sum(num_draws(class_sizes, shots) for shots in sizes(max(class_sizes)))


def learning_curve(
    training: Texts, held_out: Texts, fit: HeadFitter, seed: int, advance: Callable[[int], None]
) -> list[CurvePoint]:
    """Return the accuracy on `held_out` of heads fitted to 1, 2, 4, ... examples a class, and to all.

    The examples of a size are drawn several times by `seed`; in each draw those of a smaller size are among them.
    """
    assert training.embeddings is not None, "heads are fitted to embeddings"
    assert held_out.embeddings is not None, "heads are measured on embeddings"
    names = [str(label) for label in training.targets]
    class_sizes = np.bincount(training.targets).tolist()
    points = []
    for shots in sizes(max(class_sizes)):
        accuracies = []
        for draw in range(num_draws(class_sizes, shots)):
            poll()
            rows = draw_shots(names, shots, derive(seed, "report", "curve", draw))
            head = fit(training.embeddings[rows], training.targets[rows])
            found = head_probabilities(head, held_out.embeddings).argmax(axis=1)
            accuracies.append(float((found == held_out.targets).mean()))
            advance(1)
        mean = sum(accuracies) / len(accuracies)
        points.append(CurvePoint(shots, len(rows), mean, min(accuracies), max(accuracies), len(accuracies)))
    return points
