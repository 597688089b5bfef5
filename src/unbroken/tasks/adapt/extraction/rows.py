"""Labelled rows as conversations: which types an example asks for is a function of (seed, epoch, example)."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError, DataError
from unbroken.base.fingerprint import canonical, digest
from unbroken.base.seeds import derive
from unbroken.base.stopping import poll
from unbroken.plan.formats import POLL_ROWS, ColumnMissingError
from unbroken.plan.permutation import shuffled
from unbroken.plan.source import Source, Table, content_digest, read_rows
from unbroken.tasks.adapt.conversation import Conversation, Message
from unbroken.tasks.adapt.extraction.annotations import Annotation, Event, Node, Relation
from unbroken.tasks.adapt.extraction.config import ExtractionConfig
from unbroken.tasks.adapt.extraction.conll import is_conll, read_conll
from unbroken.tasks.adapt.extraction.instructions import instructions
from unbroken.tasks.adapt.extraction.labels import Labels, wrong
from unbroken.tasks.adapt.extraction.prompts import Prompts, answer
from unbroken.tasks.adapt.extraction.schema import Schema, derived, given

DEEPKE_COLUMNS = {"entities": "entity", "relations": "relation", "events": "event"}
HELD_OUT_SEED = 0  # what held-out rows ask for does not hang on the seed of a run: runs are compared by it
TREE = "extraction"  # the root of every random choice made here


class ExtractionRows:
    """Labelled rows of one source; an example is a part of a row: some of its types, asked for at once.

    With `schema` that of training, which no other type may join. Raises `DataError` for the first bad row and
    `ConfigError` for a schema that does not fit.
    """

    def __init__(
        self,
        source: Source,
        config: ExtractionConfig,
        *,
        seed: int = 42,
        schema: Schema | None = None,
        system_prompt: str = "",
        name: str | None = None,
    ):
        self.config, self.seed = config, seed
        self.system = (Message("system", system_prompt),) if system_prompt else ()
        table, self.column = _table(source, config, name)
        self.texts = table.texts(config.text)
        self.row_digests: NDArray[np.uint64] = table.digests([config.text, self.column])
        self.labelled: list[tuple[Annotation, ...]] = _labelled(table, self.texts, config, self.column)
        self.place = Table(table.name, {}, table.lines, table.first)  # the cells themselves are not needed any more
        found = schema or given(config) or derived(config.kind, self.labelled)
        if not found.types:
            raise DataError(f"{table.name} has no label at all", next_step="give rows with some, or extraction.schema")
        self.schema = found if schema else found.named(config.names)
        self._require_known()
        self.digest = digest(canonical([content_digest(self.row_digests), self.schema.value()]))
        self.instructions = instructions(config)
        self._prompts = Prompts(self.schema, self.instructions, config.prompt_style)
        self._ends = array("q", accumulate(self._num_parts(labels) for labels in self.labelled))

    @property
    def num_rows(self) -> int:
        """The number of rows of the source."""
        return len(self.texts)

    @property
    def num_examples(self) -> int:
        """The number of examples in an epoch, the same in every epoch."""
        return self._ends[-1]

    def rows(self, examples: Sequence[int]) -> list[int]:
        """Return the row that each example is a part of."""
        return [bisect_right(self._ends, example) for example in examples]

    def locate(self, example: int) -> str:
        """Say in which file and row an example stands."""
        return self.place.locate(bisect_right(self._ends, example))

    def conversation(self, example: int, epoch: int) -> Conversation:
        """Return the question of an example in an epoch, and its answer."""
        row = bisect_right(self._ends, example)
        part = example - (self._ends[row - 1] if row else 0)
        asked = self._parts(self._asked(row, epoch))[part]
        return (
            *self.system,
            Message("user", self._prompts.question(self.texts[row], asked, self._phrasing(example, epoch))),
            Message("assistant", answer(self.schema, asked, self.labelled[row], self.config.absent == "listed")),
        )

    def prompts(self, row: int) -> list[tuple[tuple[str, ...], Conversation]]:
        """Return all that is asked of a row in evaluation: every type, always in one order and one wording."""
        return self.questions(self.texts[row])

    def questions(self, text: str) -> list[tuple[tuple[str, ...], Conversation]]:
        """Return the same for any text."""
        return [
            (
                tuple(self.schema.types[place] for place in asked),
                (*self.system, Message("user", self._prompts.question(text, asked))),
            )
            for asked in self._parts(range(len(self.schema.types)))
        ]

    def _asked(self, row: int, epoch: int) -> Sequence[int]:
        """Return the places of the types a row is asked for, in their order."""
        total, present = len(self.schema.types), {self.schema.places[one.type] for one in self.labelled[row]}
        key = derive(self.seed, TREE, "order", epoch, row)
        count = self._num_asked(len(present))
        if count == total:
            return shuffled(key, total)
        # Chosen first and mixed after: were both one order, absent types would come first more often than others.
        absent = [place for place in range(total) if place not in present]
        drawn = shuffled(derive(self.seed, TREE, "absent", epoch, row), len(absent))[: count - len(present)]
        asked = sorted([*present, *(absent[place] for place in drawn)])
        return [asked[place] for place in shuffled(key, count)]

    def _num_asked(self, present: int) -> int:
        """Return for how many types a row is asked that has `present`: at least one, and the same in every epoch."""
        absent = len(self.schema.types) - present
        return max(1, present + int(self.config.share_of_absent * absent + 0.5))

    def _num_parts(self, labels: tuple[Annotation, ...]) -> int:
        return len(self._parts(range(self._num_asked(len({one.type for one in labels})))))

    def _parts(self, asked: Sequence[int]) -> list[Sequence[int]]:
        return split(asked, self.config.at_once)

    def _phrasing(self, example: int, epoch: int) -> int:
        several = len(self.instructions)
        return derive(self.seed, TREE, "phrasing", epoch, example) % several if several > 1 else 0

    def _require_known(self) -> None:
        """Raise `DataError` for the first annotation that the schema has no place for."""
        allowed = {name: set(parts) for name, parts in self.schema.parts.items()}
        for row, labels in enumerate(self.labelled):
            for number, one in enumerate(labels, 1):
                where = f"{self.place.locate(row)}, column '{self.column}', item {number}"
                if one.type not in self.schema.places:
                    advice = f"{self.schema.hint(one.type)}; correct it, or add it to extraction.schema"
                    raise wrong(where, f"has the type '{one.type}', which is not in the schema", advice)
                for part, word in _parts_of(one, self.config.kind):
                    if part not in allowed[one.type]:
                        near = closest(str(part), map(str, allowed[one.type]))
                        advice = f"did you mean '{near}'?" if near else "correct it, or add it to extraction.schema"
                        raise wrong(
                            where, f"has the {word} {_shown(part)}, which the schema of '{one.type}' lacks", advice
                        )


def split(asked: Sequence[int], size: int | None) -> list[Sequence[int]]:
    """Return what is asked in parts of `size`, as DeepKE divides it: a rest of less than half a part joins the last."""
    if size is None:
        return [asked]
    parts = [asked[start : start + size] for start in range(0, len(asked), size)]
    if len(parts) > 1 and len(parts[-1]) < max(1, size // 2):
        parts[-2:] = [asked[(len(parts) - 2) * size :]]
    return parts


def _table(source: Source, config: ExtractionConfig, name: str | None) -> tuple[Table, str]:
    """Return the rows with their texts and labels, and the column the labels are in."""
    wanted = config.column
    if isinstance(source, str | Path) and (config.format == "conll" or is_conll(Path(source))):
        if config.kind != "ner" or config.format not in ("auto", "conll"):
            what = f"kind '{config.kind}'" if config.kind != "ner" else f"format '{config.format}'"
            raise ConfigError(
                f"{source}: a file of tokens and tags does not go with {what}",
                next_step="use kind: ner and format: conll, or a .jsonl file",
            )
        joint = "" if config.language == "zh" else " "
        return read_conll(Path(source), name or Path(source).name, (config.text, wanted), joint), wanted
    table = read_rows(source, name)
    role = {"ner": "entities", "kg": "entities", "re": "relations", "spo": "relations"}.get(config.kind, "events")
    if wanted not in table.columns and wanted == role and config.format in ("auto", "deepke"):
        wanted = DEEPKE_COLUMNS[role]
    for key, column in (("text", config.text), (role, wanted)):
        try:
            table.cells(column)
        except ColumnMissingError as missing:
            missing_name = getattr(config, key)
            raise DataError(
                f"{table.name} has no column '{missing_name}' (for {key}); it has {', '.join(table.columns)}",
                next_step=f"say which column it is: `extraction: {{{key}: {missing.near or '...'}}}`",
            ) from None
    return table, wanted


def _labelled(table: Table, texts: list[str], config: ExtractionConfig, column: str) -> list[tuple[Annotation, ...]]:
    """Return the annotations of each row. Raises `DataError` for the first that is none."""
    labels = Labels(config.kind, config.format)
    found = []
    for row, (text, cell) in enumerate(zip(texts, table.cells(column), strict=True)):
        if not row % POLL_ROWS:
            poll()
        if not text.strip():
            raise wrong(f"{table.locate(row)}, column '{config.text}'", "holds an empty text")
        found.append(labels.annotations(cell, text, f"{table.locate(row)}, column '{column}'"))
    return found


def _parts_of(one: Annotation, kind: str) -> Iterable[tuple[Any, str]]:
    """Return what the schema of a type must know of an annotation: roles, attributes, pairs of types."""
    match one:
        case Event() if kind in ("ee", "eea"):
            return [(each.role, "role") for each in one.arguments]
        case Node():
            return [(name, "attribute") for name, _ in one.attributes]
        case Relation() if kind == "spo":
            return [((one.head_type, one.tail_type), "pair of types")]
    return ()


def _shown(part: Any) -> str:
    return f"'{part}'" if isinstance(part, str) else " -> ".join(part)
