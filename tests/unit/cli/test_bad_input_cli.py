"""Every mistake in a configuration: one line with file, key, cause and next action, exit 2, nothing written."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.cli.bad_input import LEFT_OUT, Desk

YAML_ADVICE = "write lines of `key: value`, indented with spaces; put text with : # { [ or a tab in quotes"
FIX = "; correct it in c.yaml"

# What is changed in a configuration that works, and the line that must come.
VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"batchsize": 3}, "c.yaml: unknown key 'batchsize'; did you mean 'batch_size'?"),
    "unknown key, nothing near": (
        {"flux": 3},
        "c.yaml: unknown key 'flux'; run `unbroken schema` for the list of keys",
    ),
    "another program's key": (
        {"per_device_train_batch_size": 8},
        "c.yaml: unknown key 'per_device_train_batch_size'; did you mean 'batch_size'?",
    ),
    "misspelt required key": (
        {"model": LEFT_OUT, "modle": "model"},
        "c.yaml: unknown key 'modle'; did you mean 'model'?",
    ),
    "task missing": ({"task": LEFT_OUT}, "c.yaml: key 'task' is missing; add `task: embed | classify | adapt`"),
    "task's key misspelt": ({"task": LEFT_OUT, "taks": "embed"}, "c.yaml: unknown key 'taks'; did you mean 'task'?"),
    "task misspelt": ({"task": "embd"}, "c.yaml: task: 'embd' is not known; did you mean 'embed'?"),
    "task of another kind": (
        {"task": "translate"},
        "c.yaml: task: 'translate' is not known; there are: embed, classify, adapt",
    ),
    "task no text": ({"task": ["embed"]}, "c.yaml: task: ['embed'] is not known; did you mean 'embed'?"),
    "model missing": (
        {"model": LEFT_OUT},
        "c.yaml: key 'model' is missing; add `model: ...` (model folder, run, checkpoint, or hub id)",
    ),
    "train_data missing": (
        {"train_data": LEFT_OUT},
        "c.yaml: key 'train_data' is missing; add `train_data: ...` (file (.jsonl, .json, .csv, "
        ".tsv, .parquet; .gz) or rows)",
    ),
    "train_data null": (
        {"train_data": None},
        "c.yaml: train_data: null is not valid; give the path of a file, a list of rows, or a dataset",
    ),
    "train_data a number": (
        {"train_data": 5},
        "c.yaml: train_data: 5 is not valid; give the path of a file, a list of rows, or a dataset",
    ),
    "train_data several files": (
        {"train_data": ["a.jsonl", "b.jsonl"]},
        "c.yaml: train_data: ['a.jsonl', 'b.jsonl'] is not valid; give one file; several can be joined into one",
    ),
    "output_dir missing": (
        {"output_dir": LEFT_OUT},
        "c.yaml: key 'output_dir' is missing; add `output_dir: ...` (the run's folder)",
    ),
    "output_dir misspelt": (
        {"output_dir": LEFT_OUT, "output_dri": "runs/a"},
        "c.yaml: unknown key 'output_dri'; did you mean 'output_dir'?",
    ),
    "output_dir a number": (
        {"output_dir": 7},
        "c.yaml: output_dir: 7 is not valid; it should be text (in quotes if it looks like a "
        "number) (the run's folder)" + FIX,
    ),
    "negative batch size": (
        {"batch_size": -4},
        "c.yaml: batch_size: -4 is not valid; it should be greater than 0 (examples per step)" + FIX,
    ),
    "batch size as text": (
        {"batch_size": "32"},
        "c.yaml: batch_size: '32' is not valid; it should be a whole number (examples per step)" + FIX,
    ),
    "batch size a fraction": (
        {"batch_size": 2.5},
        "c.yaml: batch_size: 2.5 is not valid; it should be a whole number (examples per step)" + FIX,
    ),
    "chunk larger than batch": (
        {"micro_batch_size": 8},
        "c.yaml: micro_batch_size 8 is larger than batch_size 4; batch_size is the whole batch "
        "of a step, micro_batch_size the part of it in memory at once",
    ),
    "learning rate as text": (
        {"learning_rate": "fast"},
        "c.yaml: learning_rate: 'fast' is not valid; it should be a number (peak learning rate)" + FIX,
    ),
    "learning rate null": (
        {"learning_rate": None},
        "c.yaml: learning_rate: null is not valid; it should be a number (peak learning rate)" + FIX,
    ),
    "learning rate infinite": (
        {"learning_rate": float("inf")},
        "c.yaml: learning_rate: inf is not valid; it should be a finite number (peak learning rate)" + FIX,
    ),
    "learning rate not a number": (
        {"learning_rate": float("nan")},
        "c.yaml: learning_rate: nan is not valid; it should be a finite number (peak learning rate)" + FIX,
    ),
    "warmup_ratio 2": (
        {"warmup_ratio": 2},
        "c.yaml: warmup_ratio: 2 is not valid; it should be at most 1 (share of the steps spent warming up)" + FIX,
    ),
    "yes is no boolean": (
        {"shuffle": "yes"},
        "c.yaml: shuffle: 'yes' is not valid; it should be true or false (a new order every "
        "epoch; false: the file's order)" + FIX,
    ),
    "scheduler misspelt": (
        {"lr_scheduler_type": "cosin"},
        "c.yaml: lr_scheduler_type: 'cosin' is not valid; it should be 'linear', 'cosine', "
        "'constant' or 'constant_with_warmup' (course of the learning rate after warm-up); did "
        "you mean 'cosine'?",
    ),
    "loss of other software": (
        {"loss": "MultipleNegativesRankingLoss"},
        "c.yaml: loss: 'MultipleNegativesRankingLoss' is not valid; it should be "
        "'multiple_negatives_ranking', 'cosent' or 'triplet' (what is learned from a batch); did "
        "you mean 'multiple_negatives_ranking'?",
    ),
    "loss misspelt": (
        {"loss": "tripplet"},
        "c.yaml: loss: 'tripplet' is not valid; it should be 'multiple_negatives_ranking', "
        "'cosent' or 'triplet' (what is learned from a batch); did you mean 'triplet'?",
    ),
    "scale and temperature": (
        {"scale": 20.0, "temperature": 0.05},
        "c.yaml: give scale or temperature, not both: scale = 1 / temperature",
    ),
    "scale 0": (
        {"scale": 0.0},
        "c.yaml: scale: 0.0 is not valid; it should be greater than 0 (1 / temperature of the "
        "similarities; default 20)" + FIX,
    ),
    "role of another loss": (
        {"columns": {"sentence1": "anchor"}},
        "c.yaml: loss 'multiple_negatives_ranking' reads anchor, positive, negative, not "
        "'sentence1'; it belongs to cosent",
    ),
    "role of no loss": (
        {"columns": {"query": "anchor"}},
        "c.yaml: loss 'multiple_negatives_ranking' reads anchor, positive, negative, not 'query'; name one of these",
    ),
    "prompt for no role": (
        {"prompts": {"query": "q: "}},
        "c.yaml: loss 'multiple_negatives_ranking' reads anchor, positive, negative, not 'query'; name one of these",
    ),
    "columns no mapping": (
        {"columns": "anchor"},
        "c.yaml: columns: 'anchor' is not valid; it should be lines of `name: value` (role -> "
        "column: anchor, positive, negative (one or several); or sentence1, sentence2, score)" + FIX,
    ),
    "two columns for one anchor": (
        {"columns": {"anchor": ["anchor", "positive"]}},
        "c.yaml: columns: 'anchor' of loss 'multiple_negatives_ranking' is one column, not 2; name one",
    ),
    "no column for the anchor": (
        {"columns": {"anchor": []}},
        "c.yaml: columns: 'anchor' of loss 'multiple_negatives_ranking' is one column, not 0; name one",
    ),
    "empty column": (
        {"columns": {"anchor": ""}},
        "c.yaml: columns: {'anchor': ''} is not valid; 'anchor' names no column; leave it out for the column 'anchor'",
    ),
    "triplet with two negatives": (
        {"loss": "triplet", "columns": {"negative": ["negative", "positive"]}},
        "c.yaml: columns: 'negative' of loss 'triplet' is one column, not 2; name one",
    ),
    "threads 0": (
        {"threads": 0},
        "c.yaml: threads: 0 is not valid; it should be greater than 0 or 'auto' (CPU threads; "
        "part of the run, since bits hang on it)" + FIX,
    ),
    "threads as a word": (
        {"threads": "all"},
        "c.yaml: threads: 'all' is not valid; it should be a whole number or 'auto' (CPU "
        "threads; part of the run, since bits hang on it)" + FIX,
    ),
    "device tpu": ({"device": "tpu"}, "c.yaml: device: 'tpu' is not valid; give auto, cpu, cuda or cuda:N"),
    "no such GPU": (
        {"device": "cuda:99"},
        "device: cuda:99 is not there; torch sees … GPUs; set device to cpu or auto, or install "
        "a torch with CUDA on a machine with a GPU",
    ),
    "save_total_limit 1": (
        {"save_total_limit": 1},
        "c.yaml: save_total_limit: 1 is not valid; it should be at least 2 (checkpoints kept; "
        "never under two verified ones)" + FIX,
    ),
    "best model without evaluation": (
        {"load_best_model_at_end": True},
        "c.yaml: load_best_model_at_end has nothing to choose by; add `eval_data: FILE`, or leave it out",
    ),
    "metric of no name": (
        {"metric_for_best_model": "f1", "eval_data": "eval.jsonl"},
        "c.yaml: metric_for_best_model: 'f1' is not measured for loss "
        "'multiple_negatives_ranking'; give one of ndcg@10, …",
    ),
    "metric misspelt": (
        {"metric_for_best_model": "ndcg@100", "eval_data": "eval.jsonl"},
        "c.yaml: metric_for_best_model: 'ndcg@100' is not measured for loss "
        "'multiple_negatives_ranking'; did you mean 'ndcg@10'?",
    ),
    "metric of another loss": (
        {"metric_for_best_model": "spearman_cosine"},
        "c.yaml: metric_for_best_model: 'spearman_cosine' is not measured for loss "
        "'multiple_negatives_ranking'; give one of ndcg@10, …",
    ),
    "max_length 0": (
        {"max_length": 0},
        "c.yaml: max_length: 0 is not valid; it should be greater than 0 (tokens per text; "
        "default: the model's own)" + FIX,
    ),
    "max_length beyond the model": ({"max_length": 65}, "max_length 65: this model takes 1 to 64 tokens…"),
    "seed negative": (
        {"seed": -1},
        "c.yaml: seed: -1 is not valid; it should be at least 0 (every random draw of the run follows from it)" + FIX,
    ),
    "model that is not there": (
        {"model": "./nowhere"},
        "model: there is no folder ./nowhere; give the path of a model folder or a run",
    ),
    "model deep and not there": (
        {"model": "a/b/c"},
        "model: there is no folder a/b; give the path of a model folder or a run",
    ),
    "model a file": ({"model": "train.jsonl"}, "model: train.jsonl is a file, not a model folder; give the folder"),
    "output_dir a file": ({"output_dir": "train.jsonl"}, "output_dir train.jsonl is a file; choose another folder"),
    "output_dir below a file": (
        {"output_dir": "train.jsonl/a"},
        "output_dir train.jsonl/a: …/train.jsonl is a file, not a folder; choose another output_dir",
    ),
    "output_dir in use": (
        {"output_dir": "."},
        "output_dir . holds files (c.yaml, eval.jsonl, model, ...) but is no run; choose a new or an empty folder",
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value(case: str, desk: Desk) -> None:
    changes, line = VALUES[case]
    desk.configure(**changes)
    desk.refuses(2, line)


# The whole text of c.yaml.
TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "c.yaml is empty; write `task: ...`, `model: ...` and so on into it"),
    "only a comment": (b"# to do\n", "c.yaml is empty; write `task: ...`, `model: ...` and so on into it"),
    "tabs": (
        b"task: embed\nprompts:\n\tanchor: x\n",
        "c.yaml, line 3: found character '\\t' that cannot start any token; " + YAML_ADVICE,
    ),
    "unclosed": (
        b"task: embed\nmodel: [a\nseed: 1\n",
        "c.yaml, line 3: expected ',' or ']', but got ':'; " + YAML_ADVICE,
    ),
    "colon in text": (
        b"task: embed\nmodel: a: b\n",
        "c.yaml, line 2: mapping values are not allowed here; " + YAML_ADVICE,
    ),
    "key twice": (b"task: embed\nseed: 1\nseed: 2\n", "c.yaml, line 3: key 'seed' is given twice; " + YAML_ADVICE),
    "a list": (b"- task\n- model\n", "c.yaml does not hold lines of `key: value`; see `unbroken train --help`"),
    "a word": (b"embed\n", "c.yaml does not hold lines of `key: value`; see `unbroken train --help`"),
    "a template": (b"task: embed\nmodel: {{ model }}\n", "c.yaml, line 2: a key must be a word; " + YAML_ADVICE),
    "numbers for keys": (b"1: 2\n", "c.yaml does not hold lines of `key: value`; see `unbroken train --help`"),
    "thirteenth month": (
        b"task: embed\nmodel: 2024-13-01\n",
        "c.yaml: not valid YAML: month must be in 1..12; " + YAML_ADVICE,
    ),
    "a date": (
        b"task: embed\nmodel: 2024-12-01\noutput_dir: a\ntrain_data: b\n",
        "c.yaml: model: 2024-12-01 is not valid; it should be text (in quotes if it looks like a "
        "number) (model folder, run, checkpoint, or hub id)" + FIX,
    ),
    "a tag": (
        b"task: !!python/object:os.system x\n",
        "c.yaml, line 1: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object:os.system'; " + YAML_ADVICE,
    ),
    "a control character": (
        b"task: \x00\n",
        "c.yaml: not valid YAML: unacceptable character #x0000: special characters are not allowed; " + YAML_ADVICE,
    ),
    "not UTF-8": (b"task: \xff\n", "c.yaml is not text in UTF-8; give a YAML file, or the folder of a run"),
    "nesting without end": (
        b"a: " + b"[" * 3000,
        "c.yaml: not valid YAML: maximum recursion depth exceeded…; " + YAML_ADVICE,
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_the_text(case: str, desk: Desk) -> None:
    text, line = TEXTS[case]
    desk.place({"c.yaml": text})
    desk.refuses(2, line)
