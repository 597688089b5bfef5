"""Draw the examples: `python -m bench.fewshot.splits DATA OUT`, where DATA holds the Snips, Banking77 and WordNet rows.

Writes `NAME.test.jsonl` and `NAME-SHOTS-SEED.train.jsonl`; with `--pools`, the rows of the training pools that no draw
of seeds 0 to 2 took, as `NAME.pool.jsonl`: settings are chosen on those, never on test rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from unbroken.base.fingerprint import digest
from unbroken.plan.shots import draw_shots

Row = dict[str, str]
SHOTS = {"snips": (8, 16), "banking77": (8,), "wordnet": (8, 64)}
SEEDS = (0, 1, 2)
WORDNET_TEST_SHARE = 40  # one noun in so many, by the hash of its id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name, shots in SHOTS.items():
        pool, test = rows_of(given.data, name)
        write(given.out / f"{name}.test.jsonl", test)
        labels = [row["label"] for row in pool]
        taken: set[int] = set()
        for count in shots:
            for seed in SEEDS:
                ids = draw_shots(labels, count, seed)
                taken.update(ids.tolist())
                write(given.out / f"{name}-{count}-{seed}.train.jsonl", (pool[i] for i in ids))
        write(given.out / f"{name}.pool.jsonl", (row for i, row in enumerate(pool) if i not in taken))


def rows_of(data: Path, name: str) -> tuple[list[Row], list[Row]]:
    """Return the pool that training examples are drawn from, and the test rows."""
    if name != "wordnet":
        pool, test = (read(data / f"{name}.{part}.jsonl.gz") for part in ("train", "test"))
        return [keep(row) for row in pool], [keep(row) for row in test]
    pool, test = [], []
    for row in read(data / "wordnet.jsonl.gz"):
        if row["label"].startswith("noun.") and row["label"] != "noun.Tops":
            chosen = int(digest(row["id"].encode()), 16) % WORDNET_TEST_SHARE == 0
            (test if chosen else pool).append({"text": f"{row['words'][0]}: {row['gloss']}", "label": row["label"]})
    return pool, test


def keep(row: Row) -> Row:
    """Return what a classifier sees of a row."""
    return {"text": row["text"], "label": row["label"]}


def read(path: Path) -> list[Row]:
    """Return the rows of a gzipped file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
