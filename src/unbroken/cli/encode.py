"""`unbroken encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def encode(
    model: Path,
    texts: Path,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    *,
    column: str = "text",
    prompt: str | None = None,
    normalize: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Turn texts into embeddings, one row of a NumPy file per text, in order.

    **Examples**

        unbroken encode runs/debian questions.txt -o questions.npy
        unbroken encode path/to/minilm corpus.jsonl.gz --column body --normalize -o corpus.npy

    Parameters
    ----------
    model
        A run, one of its checkpoints, or a model folder.
    texts
        A text file with one text a line, or rows (.jsonl, .csv, .tsv, .parquet; .gz).
    output
        The .npy file to write: float32, [texts, dimensions].
    column
        Which column of the rows holds the text.
    prompt
        Text put before every text. Default: the model's own default prompt, if it has one.
    normalize
        Scale every embedding to length one.
    json
        Print what was written as one JSON object.
    """
    from unbroken.cli.output import print_values
    from unbroken.tasks.embed.measure import encode_file

    shape = encode_file(model, texts, output, column=column, prompt=prompt, normalize=normalize)
    print_values({"output": str(output), "texts": shape[0], "dimensions": shape[1]}, as_json=json)
    return 0
