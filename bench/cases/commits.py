"""What saving costs: the same run with a commit every 10 steps and with none, ours durable (fsync), theirs as it is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from bench import figures, harness
from bench.cases.c1 import HELD_OUT
from bench.figures import spread
from bench.harness import Context, Result, Run
from bench.rows import write_pairs

TITLE = "Commits: WordNet, batch 32, a commit every 10 steps against none"
BATCH, WARM, STEPS, EVERY = 32, 5, 27, 10
SECONDS, LEAST = 180, 2
ARMS = ("ours", "st", "hf")
STALL = "ms of stall a commit"
NEVER = 1_000_000  # of ours a commit at the end remains; it is after the last step counted


def run(context: Context) -> Result:
    warm, steps, every = (1, 8, 3) if context.quick else (WARM, STEPS, EVERY)
    rows = write_pairs(context.work / "commits.jsonl", context.pairs[HELD_OUT : HELD_OUT + BATCH * steps])
    sizes: dict[str, int] = {}

    def one_round(number: int) -> Mapping[str, Run]:
        done = {}
        for saving in ("none", "saving"):
            for arm in ARMS:
                name = f"commits-{arm}-{saving}-{number}"
                spec = harness.train_spec(context, name, rows, BATCH, steps)
                if arm == "ours":
                    spec["save_steps"] = every if saving == "saving" else NEVER
                    done[f"{arm} {saving}"] = harness.run_ours(context, name, spec)
                    folder = Path(spec["output_dir"]) / "checkpoints"
                else:
                    spec["save_steps"] = every if saving == "saving" else None
                    start = harness.run_theirs if arm == "st" else harness.run_hugging_face
                    done[f"{arm} {saving}"] = start(context, name, spec)
                    folder = Path(spec["output_dir"])
                if saving == "saving":
                    sizes[arm] = newest_size(folder)
                harness.remove(Path(spec["output_dir"]))
        return done

    rounds = harness.interleave(context, TITLE, one_round, seconds=SECONDS, least=LEAST)
    counted = figures.commits_within(warm, steps, every)
    columns = {arm: costs(rounds, arm, warm, steps, counted) for arm in ARMS}
    for arm, size in sizes.items():
        columns[arm]["MB in a checkpoint"] = [size / 1e6]
    shares = [100 * ours / theirs for ours, theirs in zip(columns["ours"][STALL], columns["hf"][STALL], strict=True)]
    names = ["Unbroken", "sentence-transformers", "Hugging Face Trainer"]
    lines = [
        [name, *(spread(columns[arm][name]).text(digits(name)) if name in columns[arm] else "-" for arm in columns)]
        for name in columns["ours"]
    ]
    text = (
        f"{len(rounds)} rounds; {len(counted)} commits (after steps {counted}) within steps {warm + 1} to {steps} of "
        "each run. Added: the steps with commits minus the same steps without, over the number of commits. Stall: how "
        "long training stood still. Slowed: what of the added time is no stall. Ours is on disk (fsync) when it is "
        f"reported; theirs is in the page cache. Our stall is {spread(shares).text(1, ' %')} of the Hugging Face "
        f"Trainer's save, paired by round. {harness.others_remark(rounds)}"
    )
    data = {"arms": columns, "commits": counted, "events": [{k: r.events for k, r in done.items()} for done in rounds]}
    return Result(TITLE, "\n\n".join([figures.table(["", *names], lines), text]), data)


def costs(
    rounds: list[Mapping[str, Run]], arm: str, warm: int, last: int, counted: list[int]
) -> dict[str, list[float]]:
    """Return what a commit costs, round by round, by the name of the row."""
    found: dict[str, list[float]] = {}
    for done in rounds:
        plain, saving = (figures.window(done[f"{arm} {how}"].events, warm, last) for how in ("none", "saving"))
        added = (saving.wall_seconds - plain.wall_seconds) / len(counted)
        saved = [event for event in figures.of_kind(done[f"{arm} saving"].events, "saved") if event["n"] in counted]
        stall = statistics.mean(event["stall"] for event in saved)
        row = {
            "ms added to the wall clock by a commit": added * 1e3,
            "ms of CPU added by a commit": (saving.cpu_seconds - plain.cpu_seconds) / len(counted) * 1e3,
            STALL: stall * 1e3,
            "ms of slowed steps a commit": (added - stall) * 1e3,
            "ms a step without commits": plain.wall_per_step * 1e3,
        }
        if "write" in saved[0]:
            row["ms from the copy to the disk"] = statistics.mean(event["write"] for event in saved) * 1e3
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def digits(name: str) -> int:
    return 1 if name.startswith("ms of stall") else 0


def newest_size(folder: Path) -> int:
    """Return the bytes in the newest checkpoint of a folder of checkpoints; their own folders lie among others."""
    found = [path for path in folder.iterdir() if path.is_dir() and path.name.removeprefix("checkpoint-").isdigit()]
    newest = max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))
    return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
