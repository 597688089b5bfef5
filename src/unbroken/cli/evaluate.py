"""`unbroken evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def evaluate(
    model: Path,
    data: Path | None = None,
    *,
    loss: str | None = None,
    columns: Annotated[list[str] | None, Parameter(negative=())] = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Measure a model on held-out rows: retrieval, graded similarity or triplets, by the columns there are.

    **Examples**

        unbroken evaluate runs/debian                               on the run's own eval_data
        unbroken evaluate runs/debian debian.test.jsonl.gz --json   columns from the run
        unbroken evaluate path/to/minilm pairs.csv --columns anchor=question --columns positive=answer

    Parameters
    ----------
    model
        A run, one of its checkpoints, or a model folder.
    data
        Rows to measure on (.jsonl, .json, .csv, .tsv, .parquet; .gz). Default: the run's eval_data.
    loss
        Which kind of rows: multiple_negatives_ranking (pairs), cosent (scored pairs), triplet. Default: the run's.
    columns
        role=column; may be given several times. Default: the run's.
    json
        Print one flat JSON object.
    """
    from unbroken.cli.output import print_values
    from unbroken.tasks.embed.measure import measure

    print_values(measure(model, data, loss, pairs(columns or [])), as_json=json)
    return 0


def pairs(given: list[str]) -> dict[str, str]:
    """Return `["role=column"]` as a mapping. Raises `ConfigError` for one without a role or a column."""
    from unbroken.base.errors import ConfigError

    for pair in given:
        role, _, column = pair.partition("=")
        if not role or not column:
            raise ConfigError(f"--columns {pair}: there is no role=column", next_step="write it as anchor=question")
    return dict(pair.split("=", 1) for pair in given)
