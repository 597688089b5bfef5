"""`unbroken predict`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def predict(
    model: Path,
    texts: Path,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    *,
    column: str | None = None,
    proba: Annotated[bool, Parameter(negative=())] = False,
    keep: Annotated[bool, Parameter(negative=())] = False,
    device: str = "auto",
    allow_pickle: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Classify texts: one JSON object a line, `{"label": ..., "probability": ...}`, in the order of the texts.

    The file may be of any size; the output is there whole, or not at all.

    **Examples**

        unbroken predict runs/snips questions.txt -o predicted.jsonl
        unbroken predict runs/snips inbox.csv --column body --proba --keep -o predicted.jsonl
        unbroken predict path/to/setfit-model inbox.csv --column body --allow-pickle -o predicted.jsonl

    Parameters
    ----------
    model
        A run, one of its checkpoints, or a classifier's model folder, Unbroken's or SetFit's.
    texts
        A text file with one text a line, or rows (.jsonl, .json, .csv, .tsv, .parquet; .gz).
    output
        The file to write. Of texts with any number of labels, `label` and `probability` are lists.
    column
        Which column of the rows holds the text. Default: the run's, else text.
    proba
        Add the probability of every label, as `probabilities`.
    keep
        Add the row itself, as `input`.
    device
        auto, cpu, cuda, cuda:1.
    allow_pickle
        Read the head of a SetFit model, which is a pickle. It is read as data: nothing in it is run.
    json
        Print what was written as one JSON object.
    """
    from unbroken.bridges.folders import open_any
    from unbroken.cli.output import print_values
    from unbroken.tasks.classify.predict import predict_file, text_column

    opening = partial(open_any, model, allow_pickle=allow_pickle, device=device)
    column = text_column(model) if column is None else column
    count = predict_file(opening, texts, output, column=column, proba=proba, keep=keep)
    print_values({"output": str(output), "texts": count}, as_json=json)
    return 0
