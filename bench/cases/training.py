"""Steps of both arms over the same rows in the same order: what C0 and C1 share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import figures, harness, roofline
from bench.figures import Window, ratios, spread
from bench.harness import THREADS, Context, Result, Run
from bench.rows import Pair, Tokens, tokens_of, write_pairs

LIBRARIES = ("mkl", "onednn")


@dataclass(frozen=True)
class Case:
    """Sizes of a comparison. `warm` steps at the start are not counted; `seconds` is its share of a full run."""

    name: str
    title: str
    batch: int
    warm: int
    steps: int
    seconds: float
    least: int = 3


@dataclass
class Found:
    """What the rounds of a case brought, round by round."""

    rounds: list[Mapping[str, Run]]
    tokens: Tokens
    flops_per_step: float
    warm: int
    last: int
    ndcg: dict[str, float] = field(default_factory=dict)

    def windows(self, arm: str) -> list[Window]:
        return [figures.window(one[arm].events, self.warm, self.last) for one in self.rounds]

    def rates(self, library: str) -> list[float]:
        """Return the operations per second measured in each round, or nothing if the library is not there."""
        found = [figures.of_kind(one["gemm"].events, "gemm")[0]["rates"].get(library) for one in self.rounds]
        return [] if None in found else found

    def best_rates(self) -> list[float]:
        both = [rates for library in LIBRARIES if (rates := self.rates(library))]
        return [max(of_round) for of_round in zip(*both, strict=True)]


def compare(context: Context, case: Case, pairs: Sequence[Pair], held_out: Sequence[Pair]) -> Result:
    """Run a case; models are judged on `held_out` if there are such pairs."""
    warm, steps = (1, 4) if context.quick else (case.warm, case.steps)
    rows = write_pairs(context.work / f"{case.name}.jsonl", pairs)
    tokens = tokens_of(context.model, pairs, case.batch, warm, steps, context.max_length)
    config = roofline.read_config(context.model)
    models: dict[str, Path] = {"untrained": context.model}

    def one_round(number: int) -> Mapping[str, Run]:
        ours, theirs = (f"{case.name}-{arm}-{number}" for arm in ("ours", "st"))
        models[f"ours {number}"] = context.work / f"{ours}.run" / "model"
        models[f"st {number}"] = context.work / f"{theirs}.model"
        seed = {"seed": 42 + number}
        spec = harness.train_spec(context, ours, rows, case.batch, steps, **seed)
        their_spec = harness.train_spec(
            context, theirs, rows, case.batch, steps, save_to=str(models[f"st {number}"]), **seed
        )
        done = {"ours": harness.run_ours(context, ours, spec), "st": harness.run_theirs(context, theirs, their_spec)}
        probe = {"model": str(context.model), "tokens": [round(tokens.per_step)], "threads": THREADS, "repeats": 9}
        return done | {"gemm": harness.run_arm(context, "bench.roofline", f"{case.name}-gemm-{number}", probe)}

    rounds = harness.interleave(context, case.title, one_round, seconds=case.seconds, least=case.least)
    flops = roofline.training_flops(config, tokens.lengths) / tokens.num_steps
    found = Found(rounds, tokens, flops, warm, steps)
    if held_out:
        found.ndcg = harness.evaluate(context, models, list(held_out))
    harness.remove(*context.work.glob(f"{case.name}-*.run"), *context.work.glob(f"{case.name}-*.model"))
    return Result(case.title, describe(found), as_data(case, found))


def describe(found: Found) -> str:
    """Return the tables of a case in markdown."""
    ours, theirs, tokens = found.windows("ours"), found.windows("st"), found.tokens
    runs = {arm: [one[arm] for one in found.rounds] for arm in ("ours", "st")}
    per_step = tokens.per_step

    def row(name: str, mine: list[float], other: list[float], digits: int, unit: str) -> list[str]:
        ratio = spread(ratios(mine, other)).text(2, "x")
        return [name, spread(mine).text(digits, unit), spread(other).text(digits, unit), ratio]

    def both(of: Callable[[Window], float]) -> tuple[list[float], list[float]]:
        return [of(one) for one in ours], [of(one) for one in theirs]

    def each(of: Callable[[Run], float]) -> tuple[list[float], list[float]]:
        return [of(one) for one in runs["ours"]], [of(one) for one in runs["st"]]

    lines = [
        row("ms a step, wall", *both(lambda w: w.wall_per_step * 1e3), 0, ""),
        row("ms a step, CPU of all threads", *both(lambda w: w.cpu_per_step * 1e3), 0, ""),
        row("s to the end of step 1 (start-up)", *each(lambda run: run.first_step_seconds), 1, ""),
        row("s in all, start-up included", *each(lambda run: run.wall_seconds), 1, ""),
        row("MB held at most (VmHWM)", *each(lambda run: run.peak_bytes / 1e6), 0, ""),
    ]
    speed, their_speed = both(lambda w: per_step / w.wall_per_step)
    lines.append(["real tokens a second", spread(speed).text(0), spread(their_speed).text(0), ""])
    roof = found.best_rates()
    share = [spread(percent_of_roofline(found, windows, roof)).text(0, " %") for windows in (ours, theirs)]
    lines.append(["share of the measured GEMM rate", *share, ""])
    losses = [spread([sum(run.losses) / len(run.losses) for run in runs[arm]]).text(3) for arm in ("ours", "st")]
    lines.append(["mean loss over all steps", *losses, ""])
    if found.ndcg:
        scores = [[value for name, value in found.ndcg.items() if name.startswith(arm)] for arm in ("ours ", "st ")]
        lines.append(["nDCG@10, held-out pairs", *(spread(one).text(4) for one in scores), ""])
        lines.append(["nDCG@10, untrained", *[f"{found.ndcg['untrained']:.4f}"] * 2, ""])
    head = ["", "Unbroken", "sentence-transformers", "st / ours, paired"]
    return "\n\n".join([figures.table(head, lines), remarks(found)])


def percent_of_roofline(found: Found, windows: Sequence[Window], roof: Sequence[float]) -> list[float]:
    """Return, round by round, the useful operations a second as a percentage of the GEMM rate of the same round."""
    return [100 * found.flops_per_step / one.wall_per_step / rate for one, rate in zip(windows, roof, strict=True)]


def remarks(found: Found) -> str:
    tokens, steps = found.tokens, found.last - found.warm
    rates = [
        f"{library} {spread(rates).text(0, '')}" for library in LIBRARIES if (rates := _giga(found.rates(library)))
    ]
    commits = [
        sum(found.warm <= event["n"] < found.last for event in figures.of_kind(one["ours"].events, "saved"))
        for one in found.rounds
    ]
    kind = spread([1.0] * len(found.rounds)).kind
    return (
        f"{len(found.rounds)} interleaved rounds; median and {kind}; steps {found.warm + 1} to {found.last} of each "
        f"run, {tokens.per_step:.0f} real tokens a step (padded column by column: "
        f"{tokens.padded / tokens.num_steps:.0f}). Useful operations: {found.flops_per_step / 1e9:.1f} G a step. "
        f"GEMM at the model's shapes, {THREADS} threads, Gflop/s: {', '.join(rates)}. "
        f"Commits of ours within the {steps} steps: {commits}. {harness.others_remark(found.rounds)}"
    )


def _giga(rates: Sequence[float]) -> list[float]:
    return [rate / 1e9 for rate in rates]


def as_data(case: Case, found: Found) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    for arm in ("ours", "st"):
        runs = [one[arm] for one in found.rounds]
        windows = found.windows(arm)
        arms[arm] = {
            "wall_ms_per_step": [one.wall_per_step * 1e3 for one in windows],
            "cpu_ms_per_step": [one.cpu_per_step * 1e3 for one in windows],
            "first_step_seconds": [run.first_step_seconds for run in runs],
            "wall_seconds": [run.wall_seconds for run in runs],
            "peak_bytes": [run.peak_bytes for run in runs],
            "others_share": [run.others_share for run in runs],
            "percent_of_roofline": percent_of_roofline(found, windows, found.best_rates()),
            "losses": [run.losses for run in runs],
            "events": [run.events for run in runs],
        }
    return {
        "case": case.name,
        "batch": case.batch,
        "arms": arms,
        "gemm_flops_per_second": {library: found.rates(library) for library in LIBRARIES},
        "flops_per_step": found.flops_per_step,
        "tokens_per_step": found.tokens.per_step,
        "padded_tokens_per_step": found.tokens.padded / found.tokens.num_steps,
        "ndcg@10": found.ndcg,
    }
