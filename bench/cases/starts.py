"""How long until training goes: from before the process starts to the end of its first step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench import figures, harness
from bench.cases.c1 import HELD_OUT, TRAINED_ON
from bench.figures import ratios, spread
from bench.harness import Context, Result, Run
from bench.rows import write_pairs

TITLE = "Starts: seconds from process start to the end of the first step, batch 32"
BATCH, STEPS, EVERY, DIE_AFTER = 32, 200, 4, 6
TINY = 64
SECONDS, LEAST = 120, 2


def run(context: Context) -> Result:
    count = 1000 if context.quick else TRAINED_ON
    pairs = context.pairs[HELD_OUT : HELD_OUT + count]
    full = write_pairs(context.work / "starts.jsonl", pairs)
    tiny = write_pairs(context.work / "tiny.jsonl", pairs[:TINY])
    arms = {"ours": harness.run_ours, "st": harness.run_theirs}

    def one_round(number: int) -> Mapping[str, Run]:
        done = {}
        for how, rows, more in (
            ("fresh", full, {"die_after": DIE_AFTER, "die_saved": True}),
            ("resumed", full, {"die_after": 1, "resume": True}),
            ("tiny", tiny, {"die_after": 1}),
        ):
            for arm, start in arms.items():
                name = f"starts-{arm}-{number}{'-tiny' if rows is tiny else ''}"
                spec = harness.train_spec(context, name, rows, BATCH, STEPS, save_steps=EVERY)
                done[f"{arm} {how}"] = start(context, name, {**spec, **more}, killed=True)
                if how != "fresh":
                    harness.remove(Path(spec["output_dir"]))
        return done

    rounds = harness.interleave(context, TITLE, one_round, seconds=SECONDS, least=LEAST)
    for done in rounds:
        for arm in arms:
            first = done[f"{arm} resumed"].events[0]["n"]
            if first <= 1:
                raise harness.ArmError(f"{arm} did not resume: its first step was {first}")
    names = {"fresh": f"fresh, {len(pairs):,} rows", "resumed": "resumed after SIGKILL", "tiny": f"fresh, {TINY} rows"}
    lines, data = [], {}
    for how, name in names.items():
        ours, theirs = ([done[f"{arm} {how}"].first_step_seconds for done in rounds] for arm in arms)
        lines.append([name, spread(ours).text(), spread(theirs).text(), spread(ratios(ours, theirs)).text(1, "x")])
        data[how] = {"ours": ours, "st": theirs}
        data[f"{how}, CPU"] = {arm: [done[f"{arm} {how}"].first_step_cpu for done in rounds] for arm in arms}
    text = (
        f"{len(rounds)} rounds, file cache warm. Resumed: killed after step {DIE_AFTER} or later, a checkpoint every "
        f"{EVERY} steps, `resume_from_checkpoint=True`. Ours tokenises all rows before the first step of a fresh run, "
        f"theirs batch by batch. {harness.others_remark(rounds)}"
    )
    head = ["s", "Unbroken", "sentence-transformers", "st / ours, paired"]
    return Result(TITLE, "\n\n".join([figures.table(head, lines), text]), {"seconds": data})
