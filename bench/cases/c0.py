"""C0, the control: every text has 64 tokens, so nothing is won by not padding. Must not be slower."""

from __future__ import annotations

from bench.cases.training import Case, compare
from bench.harness import Context, Result
from bench.rows import equal_pairs

CASE = Case("c0", "C0: equal lengths (64 tokens), batch 32", batch=32, warm=3, steps=12, seconds=180)


def run(context: Context) -> Result:
    return compare(context, CASE, equal_pairs(context.model, CASE.batch * CASE.steps), held_out=())
