"""C1: terms and their glosses from WordNet, natural lengths, multiple-negatives ranking."""

from __future__ import annotations

from bench.cases.training import Case, compare
from bench.harness import Context, Result

SMALL = Case("c1-32", "C1: WordNet term -> gloss, batch 32", batch=32, warm=3, steps=30, seconds=190)
LARGE = Case("c1-128", "C1: WordNet term -> gloss, batch 128", batch=128, warm=3, steps=12, seconds=230)
HELD_OUT = 500
TRAINED_ON = 20_000


def batch_32(context: Context) -> Result:
    return run(context, SMALL)


def batch_128(context: Context) -> Result:
    return run(context, LARGE)


def run(context: Context, case: Case) -> Result:
    held_out = context.pairs[:HELD_OUT]
    rows = context.pairs[HELD_OUT : HELD_OUT + (1000 if context.quick else TRAINED_ON)]
    return compare(context, case, rows, held_out)
