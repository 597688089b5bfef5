"""The limit alone: matrix products at the model's shapes over the numbers of tokens that steps have."""

from __future__ import annotations

from bench import figures, harness
from bench.harness import THREADS, Context, Result

TITLE = "GEMM rates at the model's shapes, Gflop/s (forward, input gradient and weight gradient together)"
TOKENS = [256, 512, 1024, 2048, 4096]


def run(context: Context) -> Result:
    harness.say(TITLE)
    tokens, repeats = (TOKENS[:2], 3) if context.quick else (TOKENS, 15)
    rates: dict[int, dict[str, dict[str, float]]] = {}
    for threads in (1, THREADS):
        spec = {"model": str(context.model), "tokens": tokens, "threads": threads, "repeats": repeats}
        run = harness.run_arm(context, "bench.roofline", f"gemm-{threads}", spec)
        for event in figures.of_kind(run.events, "gemm"):
            for library, rate in event["rates"].items():
                rates.setdefault(event["tokens"], {}).setdefault(library, {})[str(threads)] = rate / 1e9
    columns = [(library, str(threads)) for library in ("mkl", "onednn") for threads in (1, THREADS)]
    head = ["tokens", *(f"{library}, {threads} thread{'s' * (threads != '1')}" for library, threads in columns)]
    lines = [
        [str(count), *(f"{found[library][threads]:.0f}" if library in found else "-" for library, threads in columns)]
        for count, found in rates.items()
    ]
    return Result(TITLE, figures.table(head, lines), {"gflops": rates})
