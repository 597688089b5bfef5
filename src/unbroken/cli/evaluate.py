"""`unbroken evaluate`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from unbroken.tasks.classify.scores import ClassScore

SHOWN_METRICS = ("f1", "precision", "recall", "macro_f1", "unreadable", "loss", "perplexity")


def evaluate(
    model: Path,
    data: Path | None = None,
    *,
    loss: str | None = None,
    columns: Annotated[list[str] | None, Parameter(negative=())] = None,
    metric: Annotated[list[str] | None, Parameter(negative=())] = None,
    like: Path | None = None,
    rows: int | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Measure a model on held-out rows.

    A classifier's accuracy, F1, log loss and calibration error come with precision, recall and F1 of each class. An
    embedding model is measured by retrieval, graded similarity or triplets (with --loss a classifier's too), a
    language model by the loss of the answers and what it extracts.

    **Examples**

        unbroken evaluate runs/debian                               on the run's own eval_data
        unbroken evaluate runs/debian debian.test.jsonl.gz --json   columns from the run
        unbroken evaluate path/to/minilm pairs.csv --columns anchor=question --columns positive=answer
        unbroken evaluate runs/snips --metric f1_macro
        unbroken evaluate path/to/smollm2 snips.test.jsonl.gz --rows 100 --like runs/slots

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
    metric
        Of a classifier, what to print first; may be given several times. Default: the run's.
    like
        Of a language model: ask it as another one is, a run, its model folder, or the configuration of a run.
    rows
        Of a language model: so many rows, spread evenly. Default: all of DATA, the run's eval_rows of its own.
    json
        Print one flat JSON object, without tables.
    """
    from unbroken.cli.predict import refuse
    from unbroken.tasks.adapt.asking import is_adapted
    from unbroken.tasks.classify.predict import is_classifier

    if is_adapted(model):
        refuse({"--loss": loss, "--columns": columns, "--metric": metric}, "models of other kinds")
        return measure_answers(model, data, like, rows, json=json)
    refuse({"--like": like, "--rows": rows}, "language models")
    if loss is not None or not is_classifier(model):
        from unbroken.cli.output import print_values
        from unbroken.tasks.embed.measure import measure as measure_embeddings

        refuse_metric(metric)
        print_values(measure_embeddings(model, data, loss, pairs(columns or [])), as_json=json)
        return 0
    return measure_classes(model, data, pairs(columns or []), metric, json=json)


def measure_classes(
    model: Path, data: Path | None, roles: dict[str, str], metric: list[str] | None, *, json: bool
) -> int:
    """Measure a classifier, and print it."""
    from unbroken.base.errors import DataError
    from unbroken.cli.output import print_table, print_values
    from unbroken.tasks.classify.data import NoColumnError
    from unbroken.tasks.classify.measure import measure

    try:
        found = measure(model, None if data is None else str(data), roles, metric)
    except NoColumnError as failure:
        advice = f"say which columns they are: {columns_option(failure.roles)}"
        raise DataError(failure.what, next_step=advice) from None
    print_values(found.metrics, as_json=json)
    if not json:
        print()
        print_table(("class", "precision", "recall", "f1", "support"), map(cells, found.classes))
    return 0


def measure_answers(model: Path, data: Path | None, like: Path | None, rows: int | None, *, json: bool) -> int:
    """Measure a language model, and print it."""
    from unbroken.cli.output import print_values
    from unbroken.tasks.adapt.measure import measure
    from unbroken.views.extraction_table import extraction_text
    from unbroken.views.terminal import Terminal

    progress = Terminal(sys.stderr).progress
    found = measure(model, None if data is None else str(data), like=like, num_rows=rows, on_progress=progress)
    if json or found.scores is None:
        print_values(found.metrics, as_json=json)
        return 0
    print_values({name: found.metrics[name] for name in SHOWN_METRICS}, as_json=False)
    print()
    print(extraction_text(found.scores))
    return 0


def cells(score: ClassScore) -> tuple[str, ...]:
    """Return a line of the table of classes."""
    shares = (f"{share:.4f}" for share in (score.precision, score.recall, score.f1))
    return (str(score.name), *shares, f"{score.support:,}")


def refuse_metric(metric: list[str] | None) -> None:
    """Raise `ConfigError` for --metric with an embedding model, whose metrics follow from the rows."""
    from unbroken.base.errors import ConfigError

    if metric:
        raise ConfigError("--metric is for classifiers", next_step="leave it out: all metrics of the rows are printed")


def columns_option(roles: Sequence[str]) -> str:
    """Return the options that say which column has which role; given at all, they replace all of the run's."""
    return " ".join(f"--columns {shlex.quote(role)}" for role in roles)


def pairs(given: list[str]) -> dict[str, str]:
    """Return `["role=column"]` as a mapping. Raises `ConfigError` for one without a role or a column."""
    from unbroken.base.errors import ConfigError

    for pair in given:
        role, _, column = pair.partition("=")
        if not role or not column:
            raise ConfigError(f"--columns {pair}: there is no role=column", next_step="write it as anchor=question")
    return dict(pair.split("=", 1) for pair in given)
