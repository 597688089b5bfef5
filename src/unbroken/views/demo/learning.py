"""What the model learned, on examples: for which words it now finds the meaning that it did not find before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unbroken import demo
from unbroken.plan.source import read_rows
from unbroken.tasks.embed.measure import open_encoder
from unbroken.tasks.ranking import nearest
from unbroken.views.demo.stage import SETTINGS

EXAMPLES = 3


@dataclass(frozen=True)
class Example:
    """A word and the meaning ranked first for it before and after training; after it is the right one."""

    term: str
    before: str
    after: str


@dataclass(frozen=True)
class Learning:
    """How many words found their meaning by training, how many lost it, and the shortest few of the former."""

    found: int
    lost: int
    examples: tuple[Example, ...]


def what_was_learned(before: Path, after: Path) -> Learning:
    """Compare the first-ranked meanings of two models on the test words."""
    rows = read_rows(demo.test_path())
    terms, glosses = rows.texts("term"), rows.texts("gloss")
    old, new = (_first(model, terms, glosses) for model in (before, after))
    right = np.arange(len(terms))
    found = np.flatnonzero((old != right) & (new == right))
    examples = [Example(terms[i], glosses[old[i]], glosses[i]) for i in found]
    shortest = sorted(examples, key=lambda example: len(example.before) + len(example.after))[:EXAMPLES]
    return Learning(len(found), int(((old == right) & (new != right)).sum()), tuple(shortest))


def _first(model: Path, terms: list[str], glosses: list[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return for each term the row of the gloss ranked first."""
    encoder = open_encoder(model, int(str(SETTINGS["max_length"])))
    return nearest(np.asarray(encoder.encode(terms)), np.asarray(encoder.encode(glosses)), 1, "cosine")[:, 0]
