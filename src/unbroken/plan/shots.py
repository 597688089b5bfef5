"""A few examples of each class, drawn alike on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unbroken.base.seeds import derive
from unbroken.plan.permutation import permute


def draw_shots(classes: Sequence[str], per_class: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of `per_class` examples of each class, in the order of the rows.

    `classes[row]` is the row's class. The draw of one class depends on its name, its rows and the seed, so another
    class more or fewer changes nothing in it; fewer shots of a seed are among the more of it. A class with fewer rows
    than asked gives all it has: whoever asks decides whether that will do.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(classes):
        rows.setdefault(name, []).append(row)
    drawn = []
    for name, members in rows.items():
        count = min(per_class, len(members))
        places = permute(derive(seed, "shots", name), np.arange(count, dtype=np.int64), len(members))
        drawn.append(np.asarray(members, dtype=np.int64)[places])
    return np.sort(np.concatenate(drawn)) if drawn else np.zeros(0, dtype=np.int64)
