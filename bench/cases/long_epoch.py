"""What a resume costs late in a long epoch: a million examples, gone on with after 5 % and after 90 % of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import figures, harness
from bench.figures import ratios, spread
from bench.harness import Context, Result, Run

TITLE = "Long epoch: seconds from process start to the end of the first step, resumed in an epoch of 1,000,000 examples"
EXAMPLES, BATCH = 1_000_000, 128
PLACES = {"5 %": 0.05, "90 %": 0.9}
SECONDS, LEAST = 240, 3


def run(context: Context) -> Result:
    """Train a tiny model, made here, to 90 % of the epoch once on each side; then resume copies of those runs."""
    examples = EXAMPLES // 100 if context.quick else EXAMPLES
    steps = examples // BATCH
    every = steps // 20
    at = {name: round(share * 20) * every for name, share in PLACES.items()}
    context.work.mkdir(parents=True, exist_ok=True)
    model = make_tiny_model(context.work / "tiny.folder")
    rows = write_rows(context, examples)
    trained = {arm: _train(context, arm, model, rows, steps, every, max(at.values())) for arm in ("ours", "hf")}

    def one_round(number: int) -> Mapping[str, Run]:
        done = {}
        for name, step in at.items():
            for arm, spec in trained.items():
                done[f"{arm} {name}"] = _resume(context, arm, spec, step, f"long-{arm}-{step}-{number}")
        return done

    rounds = harness.interleave(context, TITLE, one_round, seconds=SECONDS, least=LEAST)
    lines, data = [], {}
    for name, step in at.items():
        for done in rounds:
            for arm in trained:
                first = done[f"{arm} {name}"].events[0]["n"]
                if first != step + 1:
                    raise harness.ArmError(f"{arm} did not resume after step {step}: its first step was {first}")
        ours, theirs = ([done[f"{arm} {name}"].first_step_seconds for done in rounds] for arm in trained)
        lines.append(
            [
                f"after step {step:,} ({name})",
                spread(ours).text(),
                spread(theirs).text(),
                spread(ratios(ours, theirs)).text(1, "x"),
            ]
        )
        data[name] = {"ours": ours, "hf": theirs}
    early, late = PLACES
    growth = {
        arm: spread(
            [done[f"{arm} {late}"].first_step_seconds - done[f"{arm} {early}"].first_step_seconds for done in rounds]
        )
        for arm in trained
    }
    lines.append(["late minus early, paired", growth["ours"].text(), growth["hf"].text(), ""])
    text = (
        f"{len(rounds)} rounds over {examples:,} rows, batch {BATCH}; a model of two layers of 32, so that what is "
        "measured is everything but the model. Both runs were trained to the later place and killed; each resume is "
        "from a copy. Tokens (ours) and the Arrow file (theirs) are kept from the first start. "
        f"{harness.others_remark(rounds)}"
    )
    head = ["s", "Unbroken", "Hugging Face Trainer", "hf / ours, paired"]
    return Result(TITLE, "\n\n".join([figures.table(head, lines), text]), {"seconds": data})


def _train(context: Context, arm: str, model: Path, rows: Path, steps: int, every: int, until: int) -> dict[str, Any]:
    """Train to a little after step `until`, keeping every checkpoint, and be killed there; return the spec."""
    spec = harness.train_spec(context, f"long-{arm}", rows, BATCH, steps, save_steps=every)
    spec |= {"model": str(model), "max_length": 32, "cache": str(context.work / "arrow")}
    spec |= {"save_total_limit": 1000, "shuffle": True}
    harness.say(f"{arm}: training to step {until:,} of {steps:,}")
    _run(context, arm, f"long-{arm}", {**spec, "die_after": until + 2, "die_saved": True})
    return spec


def _resume(context: Context, arm: str, spec: dict[str, Any], step: int, name: str) -> Run:
    """Go on after `step` in a copy of the run, and be killed after one step."""
    origin, copy = Path(spec["output_dir"]), context.work / f"{name}.run"
    checkpoint = f"checkpoints/{step:08}" if arm == "ours" else f"checkpoint-{step}"
    shutil.copytree(origin, copy)
    try:
        return _run(
            context,
            arm,
            name,
            {**spec, "output_dir": str(copy), "resume": str(copy / checkpoint), "die_after": step + 1},
        )
    finally:
        harness.remove(copy)


def _run(context: Context, arm: str, name: str, spec: dict[str, Any]) -> Run:
    start = harness.run_ours if arm == "ours" else harness.run_hugging_face
    return start(context, name, spec, killed=True)


def write_rows(context: Context, count: int) -> Path:
    """Write `count` different pairs made from the WordNet ones."""
    path = context.work / f"rows-{count}.jsonl"
    pairs = context.pairs
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            anchor, positive = pairs[number % len(pairs)]
            file.write(json.dumps({"anchor": f"{anchor} {number}", "positive": positive}) + "\n")
    return path


def make_tiny_model(folder: Path) -> Path:
    """Write a sentence-transformers folder: two layers of 32, a WordPiece vocabulary of letters, random weights."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [chr(code) for code in (*range(ord("0"), ord("9") + 1), *range(ord("a"), ord("z") + 1))]
    words = [*special, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    return folder
