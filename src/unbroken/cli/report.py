"""`unbroken report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def report(
    run: str,
    data: Path | None = None,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Say what a classification run came to: how good its model is, beside what costs next to nothing, where it errs.

    Accuracy and F1 with 95% intervals beside baselines trained on the same examples, each class, confusions, whether
    the probabilities can be trusted, how accuracy grows with examples, and the training texts most likely
    mislabelled. Nothing in the run is written.

    **Examples**

        unbroken report runs/snips                          on the run's own eval_data
        unbroken report runs/snips other.jsonl              on another file with the same columns
        unbroken report runs/snips --output snips.html      as a page, too (or .md)
        unbroken report runs/snips --set model=elsewhere/minilm     the base model was moved
        unbroken report runs/snips --json | jq '.mislabelled[] | select(.stands_out)'

    Parameters
    ----------
    run
        A finished run of `task: classify`.
    data
        Rows to measure on (.jsonl, .json, .csv, .tsv, .parquet; .gz). Default: the run's eval_data.
    output
        Write the report there, too: an .html or .md file.
    set_
        Say where model or train_data are now.
    json
        Print one JSON object.
    """
    from unbroken.base.config import parse_overrides
    from unbroken.base.errors import DataError
    from unbroken.cli.evaluate import columns_option
    from unbroken.cli.output import print_json
    from unbroken.tasks.classify.data import NoColumnError
    from unbroken.tasks.classify.report import report as look
    from unbroken.views import classify_report as view

    if output is not None:
        view.require_page(output)
    try:
        found = look(run, None if data is None else str(data), inputs=parse_overrides(set_ or []))
    except NoColumnError as failure:
        advice = "put the data back, or say where they are: --set train_data=FILE"
        if failure.held_out:
            file = "FILE" if data is None else shlex.quote(str(data))
            measuring = f"unbroken evaluate {shlex.quote(run)} {file} {columns_option(failure.roles)}"
            advice = f"rename the column, or measure without a report: {measuring}"
        raise DataError(failure.what, next_step=advice) from None
    if output is not None:
        view.write_page(found, output)
    print_json(found.flat()) if json else view.show(found, view.console(sys.stdout))
    return 0
