"""Rounds of ours, theirs in the same order, and theirs with all rows sorted by length; what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import harness
from bench.adapt.cases import THEIRS, Case, Inputs, make_inputs, train_ours, train_theirs
from bench.adapt.limit import training_flops
from bench.figures import Event, of_kind, ratios, spread, table, window
from bench.harness import Context, Result, Run
from bench.roofline import read_config

ARMS = ("ours", *THEIRS)
REPEATS = 9


def compare(context: Context, case: Case, threads: int) -> Result:
    """Train in all three ways, one after the other, and again until `context.runs` rounds are done."""
    inputs = make_inputs(context, case)

    def one_round(number: int) -> Mapping[str, Run]:
        name = f"{case.name}-{threads}-{number}"
        done = {"ours": train_ours(context, inputs, f"{name}-ours", threads)}
        for arm in THEIRS:
            done[arm] = train_theirs(context, inputs, f"{name}-{arm}", threads, arm)
        if case.device == "cpu":
            tokens = round(sum(inputs.lengths.tokens) / case.steps)
            spec = {"model": str(context.model), "tokens": tokens, "threads": threads, "repeats": REPEATS}
            done["gemm"] = harness.run_arm(context, "bench.adapt.limit", f"{name}-gemm", spec)
        return done

    title = f"{case.title}, {threads} thread{'s' * (threads > 1)}"
    rounds = harness.interleave(context, title, one_round, seconds=float("inf"), least=1)
    harness.remove(*context.work.glob(f"{case.name}-*.run"))
    text = "\n\n".join([describe(rounds, inputs, context.model), remarks(rounds, inputs)])
    return Result(title, text, as_data(rounds))


def counted(events: Sequence[Event], warm: int, key: str) -> int:
    """Return the tokens of the steps after the first `warm` ones; `padded` counts what fills up rows too."""
    return sum(event[key] for event in of_kind(events, "step") if event["n"] > warm)


def per_second(run: Run, warm: int) -> tuple[float, float]:
    """Return the tokens, without padding, per second of CPU time of all threads, and of the clock."""
    tokens, found = counted(run.events, warm, "tokens"), window(run.events, warm)
    return tokens / found.cpu_seconds, tokens / found.wall_seconds


def describe(rounds: Sequence[Mapping[str, Run]], inputs: Inputs, model: Path) -> str:
    """Return the table of a case: medians, and of ratios the medians of those taken round by round."""
    warm, on_gpu = inputs.case.warm, inputs.case.device != "cpu"
    runs = {arm: [one[arm] for one in rounds] for arm in ARMS}

    def line(name: str, values: Mapping[str, list[float]], digits: int, *, more_is_better: bool) -> list[str]:
        cells = [spread(values[arm]).text(digits) for arm in ARMS]
        for arm in THEIRS:
            pair = (values[arm], values["ours"]) if more_is_better else (values["ours"], values[arm])
            cells.append(spread(ratios(*pair)).text(2, "x"))
        return [name, *cells]

    speeds = {arm: [per_second(run, warm) for run in runs[arm]] for arm in ARMS}
    lines = []
    for place, name in enumerate(("tokens a CPU second", "tokens a second")):
        values = {arm: [pair[place] for pair in speeds[arm]] for arm in ARMS}
        if not (on_gpu and place == 0):
            lines.append(line(name, values, 0, more_is_better=True))
    peaks = {arm: [(run.device_bytes if on_gpu else run.peak_bytes) / 1e6 for run in runs[arm]] for arm in ARMS}
    held = "MB held on the GPU at most" if on_gpu else "MB held at most (VmHWM)"
    lines.append(line(held, peaks, 0, more_is_better=False))
    starts = {arm: [run.first_step_cpu for run in runs[arm]] for arm in ARMS}
    lines.append(line("CPU s to the end of step 1 (start-up)", starts, 1, more_is_better=False))
    whole = {arm: [run.wall_seconds for run in runs[arm]] for arm in ARMS}
    lines.append(line("s in all, start-up included", whole, 1, more_is_better=False))
    padded = [spread([100 * padding(run, warm) for run in runs[arm]]).text(0, " %") for arm in ARMS]
    lines.append(["padding, of what is computed", *padded, "", ""])
    if rates := limits(rounds, on_gpu):
        shares = [spread(share(runs[arm], inputs, model, rates)).text(0, " %") for arm in ARMS]
        lines.append([f"useful operations, of {'the GPU (MFU)' if on_gpu else 'the GEMM rate'}", *shares, "", ""])
    losses = [spread([sum(run.losses) / len(run.losses) for run in runs[arm]]).text(3) for arm in ARMS]
    lines.append(["mean loss of all steps", *losses, "", ""])
    head = ["", "Unbroken", "Trainer + PEFT, same order", "Trainer + PEFT, sorted by length"]
    return table([*head, "same order / ours", "sorted / ours"], lines)


def padding(run: Run, warm: int) -> float:
    """Return the share of padding in what a run computes."""
    return 1 - counted(run.events, warm, "tokens") / counted(run.events, warm, "padded")


def limits(rounds: Sequence[Mapping[str, Run]], on_gpu: bool) -> list[float]:
    """Return the operations per second that could be had in each round."""
    if on_gpu:
        from bench.adapt.gpu import PEAK

        return [PEAK] * len(rounds) if PEAK else []
    return [max(of_kind(one["gemm"].events, "gemm")[0]["rates"].values()) for one in rounds]


def share(runs: Sequence[Run], inputs: Inputs, model: Path, rates: Sequence[float]) -> list[float]:
    """Return the percentage of `rates` that useful operations reach, by the clock.

    Operations of the counted steps are those of all rows, by their share of the tokens: sorted rows come in another
    order.
    """
    case, lengths = inputs.case, inputs.lengths
    flops = training_flops(read_config(model), lengths, inputs.values["lora"]["r"]) / sum(lengths.tokens)
    return [100 * flops * per_second(run, case.warm)[1] / rate for run, rate in zip(runs, rates, strict=True)]


def remarks(rounds: Sequence[Mapping[str, Run]], inputs: Inputs) -> str:
    """Return what a reader must know to read the table."""
    case, lengths = inputs.case, inputs.lengths
    kind = spread([1.0] * len(rounds)).kind
    rates = [rate / 1e9 for rate in limits(rounds, False)] if case.device == "cpu" else []
    gemm = f" GEMM at the model's shapes: {spread(rates).text(0)} Gflop/s." if rates else ""
    return (
        f"{len(rounds)} interleaved rounds; median and {kind}; steps {case.warm + 1} to {case.steps} of each run, "
        f"{case.batch} rows a step, {len(lengths.tokens)} rows of {min(lengths.tokens)} to {max(lengths.tokens)} "
        f"tokens ({sum(lengths.tokens)} in all, of them {sum(lengths.targets)} predicted).{gemm} "
        f"{harness.others_remark(rounds)}"
    )


def as_data(rounds: Sequence[Mapping[str, Run]]) -> dict[str, Any]:
    return {
        arm: [
            {"events": one[arm].events, "wall_seconds": one[arm].wall_seconds, "cpu_seconds": one[arm].cpu_seconds}
            for one in rounds
        ]
        for arm in (*ARMS, "gemm")
        if all(arm in one for one in rounds)
    }
