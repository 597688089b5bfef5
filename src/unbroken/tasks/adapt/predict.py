"""A model's answers to the rows of a file, batch by batch: killed at any instant, the same command goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbroken.base.errors import CannotContinueError, DataError
from unbroken.base.fingerprint import digest_file
from unbroken.plan.formats import ColumnMissingError
from unbroken.plan.source import Table, read_blocks
from unbroken.run.preflight import require_output
from unbroken.store.output import GrowingOutput
from unbroken.tasks.adapt.asking import Asking, asking_of
from unbroken.tasks.adapt.conversation import Conversation
from unbroken.tasks.adapt.extracting import extraction_of
from unbroken.tasks.adapt.extraction.replies import as_labels
from unbroken.tasks.adapt.instructions import QUESTION, Reading
from unbroken.tasks.adapt.use import Answering, Found
from unbroken.tasks.rendering import rendered

if TYPE_CHECKING:
    from unbroken.run.stop import StopRequest
    from unbroken.tasks.adapt.extraction.rows import ExtractionRows

# Rows that are answered together and put down together: what a kill costs at most.
ROWS_AT_ONCE = 32
Question = tuple[tuple[str, ...], Conversation]
Advance = Callable[[int, int], object]


@dataclass(frozen=True)
class Predicted:
    """How far a prediction came: rows of the file, those answered by now, and those that an earlier process did."""

    rows: int
    done: int
    before: int

    @property
    def finished(self) -> bool:
        """Whether the output is in its place."""
        return self.done == self.rows


@dataclass(frozen=True)
class Questions:
    """The questions about some rows. Of a row: the types asked for, none without extraction, and the conversation."""

    table: Table
    inputs: Sequence[Mapping[str, Any]]
    texts: Sequence[str]
    asked: Sequence[Sequence[Question]]


class Reader:
    """Reads a file's rows as questions, a few at a time."""

    def __init__(self, path: Path, asking: Asking, column: str | None, rows_at_once: int = ROWS_AT_ONCE) -> None:
        """Take a file and how a model is asked. `column` holds the text, or the instruction, instead of the usual."""
        self.path, self.asking, self.rows_at_once = path, asking, rows_at_once
        extraction = asking.config.extraction
        self.extraction: ExtractionRows | None = None
        if extraction is not None:
            self.extraction = asking.questions()
            self.column = column or extraction.text
        else:
            columns = {QUESTION["instruction"]: column} if column else dict(asking.config.columns)
            self.settings = asking.config.model_copy(update={"columns": columns})
            self.column = column or QUESTION["prompt"]  # what the lines of a text file are

    def batches(self) -> Iterator[Questions]:
        """Yield all rows. Raises `DataError` with file, row and column of the first that cannot be asked about."""
        for table, inputs in read_blocks(self.path, self.rows_at_once, self.column):
            if self.extraction is None:
                reading = Reading.of(table, self.settings, answered=False)
                asked: list[list[Question]] = [[((), reading.prompt(table, row))] for row in range(table.num_rows)]
                yield Questions(table, inputs, [""] * table.num_rows, asked)
            else:
                try:
                    texts = table.texts(self.column)
                except ColumnMissingError as missing:
                    advice = f"did you mean --column {missing.near}?" if missing.near else "name it: --column NAME"
                    raise DataError(missing.what, why=missing.why, next_step=advice) from None
                asked = [list(self.extraction.questions(text)) if text.strip() else [] for text in texts]
                yield Questions(table, inputs, texts, asked)


def predict_file(
    model: str | os.PathLike[str],
    rows: Path,
    output: Path,
    *,
    like: str | os.PathLike[str] | None = None,
    column: str | None = None,
    keep: bool = False,
    max_new_tokens: int | None = None,
    device: str = "auto",
    stop: StopRequest | None = None,
    on_progress: Advance = lambda done, total: None,
) -> Predicted:
    """Write one JSON object a line for each row, in order; what an earlier process has done is not done again.

    `answer` is what the model says. With something to extract, `extracted` is that as labels with places in the text,
    `readable` whether every answer could be read; `keep` adds the row itself, as `input`. The finished file is byte
    for byte that of an uninterrupted prediction. All rows are read and checked first. When `stop` is asked for, the
    batch in progress is finished. Raises `ConfigError`, `DataError`, `StorageError`, `BusyError`, and
    `CannotContinueError` if what stands was begun otherwise; an earlier file at `output` then stands.
    """
    require_output(output, ".jsonl", rows)
    asking = asking_of(model, like)
    if max_new_tokens is not None:
        asking = replace(asking, config=asking.config.model_copy(update={"max_new_tokens": max_new_tokens}))
    reader = Reader(rows, asking, column)
    total = sum(batch.table.num_rows for batch in reader.batches())
    found = Found.of(model)
    terms = {
        "model": found.digest,
        "data": digest_file(rows),
        "questions": asking.digest,
        "template": found.chat(asking).digest,
        "column": column,
        "keep": keep,
        "device": device,
        "rows at once": reader.rows_at_once,
    }
    with GrowingOutput(output, terms, surroundings(device)) as growing:
        before = growing.rows
        on_progress(before, total)
        if before < total:
            answering = found.open(asking, device)
            require_same_surroundings(growing, reader, answering, device, keep=keep)
            for batch in islice(reader.batches(), growing.batches, None):
                if stop is not None and stop.requested:
                    return Predicted(total, growing.rows, before)
                growing.append(lines(answering, reader, batch, keep=keep), batch.table.num_rows)
                on_progress(growing.rows, total)
        growing.publish()
    return Predicted(total, total, before)


def lines(answering: Answering, reader: Reader, batch: Questions, *, keep: bool) -> bytes:
    """Return what is written about some rows."""
    replies = iter(answering.answers([conversation for some in batch.asked for _, conversation in some]))
    values = []
    for row, text, some in zip(batch.inputs, batch.texts, batch.asked, strict=True):
        said = list(islice(replies, len(some)))
        value: dict[str, Any] = {"input": row} if keep else {}
        value["answer"] = "\n".join(said)
        if reader.extraction is not None:
            extraction = extraction_of(text, reader.extraction, some, said)
            value["extracted"] = as_labels(extraction.annotations)
            value["readable"] = not extraction.unreadable
        values.append(value)
    return rendered(batch.table, values)


def surroundings(device: str) -> dict[str, Any]:
    """Return what can change a model's answers without anyone asking for it."""
    from unbroken.run.environment import numerics
    from unbroken.tasks.device import resolve_device

    return numerics(resolve_device(device))


def require_same_surroundings(
    growing: GrowingOutput, reader: Reader, answering: Answering, device: str, *, keep: bool
) -> None:
    """Take the number of threads that the output was begun with; if more has changed, make its last batch again.

    Raises `CannotContinueError` if that comes out otherwise.
    """
    import torch

    torch.set_num_threads(growing.surroundings["threads"])
    here = surroundings(device)
    if here == growing.surroundings or not growing.batches:
        return
    again = next(islice(reader.batches(), growing.batches - 1, None))
    if lines(answering, reader, again, keep=keep) != growing.last:
        names = ", ".join(name for name, value in here.items() if growing.surroundings.get(name) != value)
        raise CannotContinueError(
            f"{growing.path} was begun elsewhere ({names} differ), and its last rows come out otherwise here",
            why="the file would not be that of one prediction",
            next_step=f"go on where it was begun, or delete {growing.path} to begin again",
        )
