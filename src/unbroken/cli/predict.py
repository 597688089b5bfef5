"""`unbroken predict`."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def predict(
    model: Path,
    texts: Path,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    *,
    column: str | None = None,
    proba: Annotated[bool, Parameter(negative=())] = False,
    keep: Annotated[bool, Parameter(negative=())] = False,
    like: Path | None = None,
    max_new_tokens: int | None = None,
    device: str = "auto",
    allow_pickle: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Classify texts, or have a language model answer: one JSON object a line, in the order of the rows.

    A classifier says `{"label": ..., "probability": ...}`; a language model `{"answer": ...}`, and one that extracts
    adds `extracted`, labels with their places, and `readable`. The output is there whole, or not at all. A language
    model answers batch by batch: killed, the same command goes on, and the file is byte for byte the same.

    **Examples**

        unbroken predict runs/snips questions.txt -o predicted.jsonl
        unbroken predict runs/snips inbox.csv --column body --proba --keep -o predicted.jsonl
        unbroken predict path/to/setfit-model inbox.csv --column body --allow-pickle -o predicted.jsonl
        unbroken predict path/to/smollm2 questions.jsonl -o slots.jsonl --like runs/slots

    Parameters
    ----------
    model
        A run, a checkpoint, a classifier's folder (SetFit's too), a language model's, a PEFT adapter's, a GGUF file.
    texts
        A text file with one text a line, or rows (.jsonl, .json, .csv, .tsv, .parquet; .gz). Of any size.
    output
        The file to write. Of texts with any number of labels, `label` and `probability` are lists.
    column
        Which column of the rows holds the text, or the instruction. Default: the run's.
    proba
        Of a classifier: add the probability of every label, as `probabilities`.
    keep
        Add the row itself, as `input`.
    like
        Of a language model: ask it as another one is: a run, its model folder, or a configuration file.
    max_new_tokens
        Of a language model: the longest answer. Default: the run's, else 256.
    device
        auto, cpu, cuda, cuda:1.
    allow_pickle
        Read the head of a SetFit model, which is a pickle. It is read as data: nothing in it is run.
    json
        Print what was written as one JSON object.
    """
    from unbroken.tasks.adapt.asking import is_adapted

    if is_adapted(model):
        refuse({"--proba": proba, "--allow-pickle": allow_pickle}, "classifiers")
        how = {"column": column, "keep": keep, "like": like, "max_new_tokens": max_new_tokens, "device": device}
        return answer(model, texts, output, how, json=json)
    refuse({"--like": like, "--max-new-tokens": max_new_tokens}, "language models")
    return classify(model, texts, output, column, (allow_pickle, device), json=json, proba=proba, keep=keep)


def classify(
    model: Path, texts: Path, output: Path, column: str | None, how: tuple[bool, str], *, json: bool, **what: bool
) -> int:
    """Classify the texts of a file."""
    from unbroken.bridges.folders import open_any
    from unbroken.cli.output import print_values
    from unbroken.tasks.classify.predict import predict_file, text_column

    allow_pickle, device = how
    opening = partial(open_any, model, allow_pickle=allow_pickle, device=device)
    count = predict_file(opening, texts, output, column=text_column(model) if column is None else column, **what)
    print_values({"output": str(output), "texts": count}, as_json=json)
    return 0


def answer(model: Path, rows: Path, output: Path, how: dict[str, Any], *, json: bool) -> int:
    """Have a language model answer, until that is done or someone asks for a stop."""
    from unbroken.cli.output import print_values
    from unbroken.cli.start import stop_request
    from unbroken.views.terminal import Terminal

    stop, terminal = stop_request(), Terminal(sys.stderr)
    stop.promise = "the batch in progress is finished and kept"
    with stop.listening():
        from unbroken.tasks.adapt.predict import predict_file

        done = predict_file(model, rows, output, stop=stop, on_progress=partial(terminal.progress, "answering"), **how)
        if not done.finished:
            with suppress(OSError):
                print(f"{done.done:,} of {done.rows:,} rows are done; the same command goes on", file=sys.stderr)
        values = {"output": str(output), "rows": done.rows, "done": done.done, "finished": done.finished}
        print_values(values if json else {"output": str(output), "rows": done.done}, as_json=json)
        return 0 if done.finished else stop.exit_code


def refuse(given: dict[str, Any], kind: str) -> None:
    """Raise `ConfigError` for the first option that was given and is for models of another kind."""
    from unbroken.base.errors import ConfigError

    for name, value in given.items():
        if value:
            raise ConfigError(f"{name} is for {kind}, and the model is none", next_step="leave it out")
