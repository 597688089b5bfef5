"""The demo's data: everyday words and what one sense of each means, a small extract of WordNet 3.0 (see NOTICE).

Both files are gzipped JSON lines with the fields `term` and `gloss`; no term and no gloss occurs twice in the two.
`bench/data/make_wordnet_extract.py` made them.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def train_path() -> Path:
    """Return the file of 2,560 pairs to train on."""
    return FOLDER / "wordnet.train.jsonl.gz"


def test_path() -> Path:
    """Return the file of 200 pairs to evaluate on."""
    return FOLDER / "wordnet.test.jsonl.gz"
