"""`python -m bench.adapt MODEL [CASE ...] --texts FILE --snips FILE`: LoRA training against Trainer and PEFT.

FILEs are gzipped JSON lines: texts in `text`, `gloss` or `description`, and rows of text and entities. First both sides
train a few steps from one adapter, and their losses must agree; then they are timed. `--gpu` takes random-weight Qwen
models of 0.5 to 7 billion parameters instead of MODEL, with its tokenizer, in bfloat16.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import harness
from bench.adapt import same
from bench.adapt.cases import Case
from bench.adapt.compare import compare
from bench.adapt.gpu import MODELS, random_model
from bench.harness import ArmError, Context, Result, say

GPU_BATCH, GPU_STEPS, GPU_WARM = 32, 30, 5


def main() -> None:
    given = arguments()
    out = (given.out or harness.OUT / time.strftime("adapt-%Y%m%d-%H%M%S")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # ours sets it for itself: here both have it
    context = Context(given.model.resolve(), given.texts, given.rounds, given.quick, 1.0, out)
    cases = {case.name: case for case in (mixed(given), snips(given))}
    chosen = [cases[name] for name in given.cases or cases]
    about = harness.machine() | {"model": str(context.model), "quick": given.quick}
    results: dict[str, Result] = {}
    failed = []
    for name, where, case, threads in plan(given, context, chosen):
        if f"{case.name}-same" in failed:  # what is not the same work is not worth timing
            failed.append(name)
            continue
        try:
            found = same.compare(where, case) if threads is None else compare(where, case, threads)
        except (ArmError, ValueError) as failure:
            failed.append(name)
            say(f"{name} failed: {failure}")
            continue
        results[name] = found
        from bench.__main__ import write

        write(out, about, results)
        print(f"### {found.title}\n\n{found.text}\n", flush=True)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def plan(given: argparse.Namespace, context: Context, cases: list[Case]) -> list[tuple[str, Context, Case, int | None]]:
    """Return what is to be run: name, where, which case, and the threads; None is the check that both do the same."""
    if given.gpu:
        folder = context.out / "models"
        sizes = {name: random_model(MODELS[name], context.model, folder / name) for name in given.gpu}
        return [
            (f"{size}-{case.name}", replace(context, model=model), on_gpu(case, size), threads)
            for size, model in sizes.items()
            for case in cases
            for threads in given.threads[:1]
        ]
    checks: list[tuple[str, Context, Case, int | None]] = [(f"{c.name}-same", context, c, None) for c in cases]
    if given.check:
        return checks
    return ([] if given.unchecked else checks) + [
        (f"{c.name}-{threads}", context, c, threads) for threads in given.threads for c in cases
    ]


def mixed(given: argparse.Namespace) -> Case:
    return Case("mixed", "Instruction rows of 20 to 500 tokens", given.texts, 4, 2 if given.quick else given.steps)


def snips(given: argparse.Namespace) -> Case:
    return Case("snips", "Snips extraction rows", given.snips, 8, 2 if given.quick else given.steps)


def on_gpu(case: Case, size: str) -> Case:
    title = f"{case.title}, random-weight {size}, bfloat16"
    return replace(case, title=title, device="cuda", batch=GPU_BATCH, steps=GPU_STEPS, warm=GPU_WARM)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.adapt", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a causal language model in Hugging Face's format")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="mixed, snips; default: both")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--snips", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--check", action="store_true", help="only that both sides do the same work")
    parser.add_argument("--unchecked", action="store_true", help="time without that check")
    parser.add_argument("--gpu", nargs="+", choices=MODELS, help="models of these sizes, on the GPU")
    parser.add_argument("--quick", action="store_true", help="two steps: tries the machinery, measures nothing")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    for name in given.cases:
        if name not in ("mixed", "snips"):
            parser.error(f"there is no case '{name}'; there are mixed and snips")
    return given


if __name__ == "__main__":
    main()
