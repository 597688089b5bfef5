"""Labelled texts: what the labels are, which examples are drawn, and one clear line about whatever is wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbroken.base.config import closest, shown
from unbroken.base.errors import ConfigError, DataError
from unbroken.plan.shots import draw_shots
from unbroken.plan.source import Table, content_digest, read_rows
from unbroken.tasks.classify.config import ClassifyConfig

Label = str | int
SHOWN_LABELS = 5
TEXT, LABEL = "text", "label"
ROLES = (TEXT, LABEL)
UNLABELLED = -1
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Labels:
    """The classes in their order: that of the head's rows. `several` means a list of labels to a text."""

    names: tuple[Label, ...]
    several: bool
    vectors: bool = False  # given as 0/1 vectors

    @cached_property
    def places(self) -> dict[Label, int]:
        """The index of each class."""
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def places_as_text(self) -> dict[str, int]:
        """The index of each class by its text, where no other class has the same: 0 and '0' have."""
        counts = Counter(map(str, self.names))
        return {str(name): index for index, name in enumerate(self.names) if counts[str(name)] == 1}


class NoColumnError(DataError):
    """The rows lack the column of a role. `roles` says as role=column which there are, or may be meant."""

    def __init__(self, what: str, roles: Sequence[str], held_out: bool, *, next_step: str):
        super().__init__(what, next_step=next_step)
        self.roles, self.held_out = roles, held_out


class LabelledTexts:
    """The rows of one source as texts and targets. With `labels` those of training, which no others may join.

    What is trained on may lack labels where there is a teacher: its answers take their place later.
    """

    trained_on = True

    def __init__(self, source: Any, config: ClassifyConfig, labels: Labels | None = None, name: str | None = None):
        self.source, self.config, self.name = source, config, name
        self._labels = labels
        self.text_column, self.label_column = (config.columns.get(role, role) for role in (TEXT, LABEL))

    @cached_property
    def table(self) -> Table:
        """The rows themselves. Raises `DataError` if a column is missing or there is no row."""
        table = read_rows(self.source, self.name)
        named = dict(zip(ROLES, (self.text_column, self.label_column), strict=True))
        there = {role: column if column in table.columns else None for role, column in named.items()}
        meant = [f"{role}={there[role] or closest(named[role], table.columns) or 'NAME'}" for role in ROLES]
        for role, column in named.items():
            if there[role] is None and not (role == LABEL and self._taught):
                near = closest(column, table.columns)
                raise NoColumnError(
                    f"{table.name} has no column '{column}' (for {role}); it has {', '.join(table.columns)}",
                    meant,
                    held_out=self._labels is not None or not self.trained_on,
                    next_step=f"say which column it is: `columns: {{{role}: {near or '...'}}}`",
                )
        return table

    @cached_property
    def texts(self) -> list[str]:
        """Every text. Raises `DataError` for one that is empty."""
        texts = self.table.texts(self.text_column)
        for row, text in enumerate(texts):
            if not text.strip():
                raise DataError(
                    f"{self.table.locate(row)}, column '{self.text_column}' holds an empty text",
                    why="it would be an example of nothing",
                    next_step="correct it or remove the row",
                )
        return texts

    @cached_property
    def labels(self) -> Labels:
        """The classes: those given, or those that occur, in the order of numbers, also as text, or of the alphabet."""
        if self._labels is not None:
            return self._labels
        given = self.config.labels
        cells = [cell for cell, lacks in zip(self.cells, self.unlabelled, strict=True) if not lacks]
        if self.unlabelled.any():
            return self._labels_of_teacher(cells, given)
        if cells and isinstance(cells[0], list):
            return self._labels_of_lists(cells, given)
        self._require_one_kind(enumerate(cells))
        return Labels(ordered(cells) if given is None else tuple(given), several=False)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """The class of each row [n]; or for lists of labels 0 and 1 for each class [n, L]; `UNLABELLED` for none."""
        labels, lacks = self.labels, self.unlabelled
        if not labels.several:
            places = (UNLABELLED if lacks[row] else self._place(row, cell) for row, cell in enumerate(self.cells))
            return np.fromiter(places, np.int64, count=len(self.cells))
        targets = np.zeros((len(self.cells), len(labels.names)), dtype=np.int64)
        targets[lacks] = UNLABELLED
        for row, cell in enumerate(self.cells):
            if lacks[row]:
                continue
            if not isinstance(cell, list):
                raise self._refused(row, cell, "a list of labels")
            if labels.vectors:
                if len(cell) != len(labels.names) or any(value not in (0, 1) for value in cell):
                    raise self._refused(row, cell, f"{len(labels.names)} values of 0 or 1")
                targets[row] = cell
            else:
                targets[row, [self._place(row, label) for label in cell]] = 1
        return targets

    @cached_property
    def row_digests(self) -> NDArray[np.uint64]:
        """A digest of each row's text and label."""
        columns = [self.text_column, self.label_column]
        return self.table.digests([column for column in columns if column in self.table.columns])

    @cached_property
    def digest(self) -> str:
        """A digest of all rows in their order."""
        return content_digest(self.row_digests)

    @cached_property
    def chosen(self) -> NDArray[np.int64]:
        """The rows trained on: all, or those drawn. Raises `DataError` where they do not suffice."""
        names, wanted = self.class_names, self.config.samples_per_label
        if self.unlabelled.any():
            return self._all_rows()
        self._require_classes(names)
        if wanted is None:
            return np.arange(self.table.num_rows, dtype=np.int64)
        short = [(count, name) for name, count in _counts(names).items() if count < wanted]
        if short:
            count, name = min(short)
            raise DataError(
                f"{self.table.name}: samples_per_label asks for {wanted} examples of each class, and "
                f"{shown(name)} has {count}" + (f" ({len(short)} classes have too few)" if len(short) > 1 else ""),
                why="classes would be drawn unevenly",
                next_step=f"set samples_per_label to {count} or less, or add examples",
            )
        return draw_shots(names, wanted, self.config.seed)

    @cached_property
    def class_names(self) -> list[str]:
        """The class of each row as text, "" for none; of lists of labels, the set of them."""
        names = [*map(str, self.labels.names), ""]
        if not self.labels.several:
            return [names[index] for index in self.targets]
        return [", ".join(names[i] for i in np.flatnonzero(row > 0)) for row in self.targets]

    def require_like(self, training: LabelledTexts) -> str | None:
        """Read everything; return in words what of the training's classes has no row here, if any has none.

        Raises `DataError` for an empty text or a label that training does not know.
        """
        _ = self.texts
        absent = sorted(set(training.class_names) - {*self.class_names, ""}) if not self.labels.several else []
        if not absent:
            return None
        listed = ", ".join(absent[:SHOWN_LABELS]) + (", ..." if len(absent) > SHOWN_LABELS else "")
        return f"{self.table.name} has no row of {len(absent)} of the classes ({listed}): nothing is measured on them"

    def require_every_class(self, training: LabelledTexts) -> None:
        """Raise `DataError` as `require_like` does, and also for a class of the training's that no row has."""
        absent = self.require_like(training)
        if absent is not None:
            raise DataError(absent, next_step="add such rows, or leave the class out of train_data too")

    @cached_property
    def cells(self) -> list[Any]:
        """What stands in the label column, None in every row where there is none."""
        if self.label_column not in self.table.columns:
            return [None] * self.table.num_rows
        return self.table.cells(self.label_column)

    @cached_property
    def unlabelled(self) -> NDArray[np.bool_]:
        """Which rows have no label and get the teacher's answer for one."""
        return np.array([cell is None and self._taught for cell in self.cells])

    @property
    def _taught(self) -> bool:
        return self.trained_on and self.config.teacher is not None and self._labels is None

    def _all_rows(self) -> NDArray[np.int64]:
        """Take every row, some without a label. Raises `DataError` if so many of each class are to be drawn."""
        if self.config.samples_per_label is not None:
            raise DataError(
                f"{self.table.locate(int(self.unlabelled.argmax()))} has no label",
                why="samples_per_label draws by labels",
                next_step="leave out samples_per_label, or the rows without a label",
            )
        _ = self.targets
        return np.arange(self.table.num_rows, dtype=np.int64)

    def _labels_of_teacher(self, cells: Sequence[Any], given: list[Label] | None) -> Labels:
        """Return the teacher's labels, which those there are must be among."""
        from unbroken.tasks.classify.teacher import teacher_settings

        settings = teacher_settings(self.config)
        if given is not None and tuple(given) != settings.labels:
            raise ConfigError(
                f"labels: {shown(given)} are not the teacher's ({', '.join(map(str, settings.labels[:SHOWN_LABELS]))})",
                next_step="leave out labels, or give a label to every text",
            )
        vectors = settings.multi_label and are_vectors(lists_in(cells), len(settings.labels))
        return Labels(settings.labels, settings.multi_label, vectors)

    def _labels_of_lists(self, cells: Sequence[Any], given: list[Label] | None) -> Labels:
        lists = lists_in(cells)
        if are_vectors(lists):
            width = max(map(len, lists))
            if given is not None and len(given) != width:
                raise DataError(
                    f"{self.table.name}: column '{self.label_column}' holds vectors of {width} values, "
                    f"and labels gives {len(given)} names",
                    why="each place of a vector is a class",
                    next_step=f"give {width} names, or leave out labels",
                )
            return Labels(tuple(range(width)) if given is None else tuple(given), several=True, vectors=True)
        found = [(row, label) for row, cell in enumerate(cells) if isinstance(cell, list) for label in cell]
        self._require_one_kind(found)
        return Labels(ordered(label for _, label in found) if given is None else tuple(given), several=True)

    def _require_one_kind(self, labels: Iterable[tuple[int, Any]]) -> None:
        """Raise `DataError` unless the labels, each with its row, are all text or all whole numbers."""
        first: Any = None
        for row, label in labels:
            if not is_label(label) or label == "":
                raise self._refused(row, label, "a label (text or a whole number)")
            first = label if first is None else first
            if isinstance(label, str) is not isinstance(first, str):
                raise self._refused(row, label, f"a label like the first ({shown(first)})")

    def _place(self, row: int, label: Any) -> int:
        """Return the index of a label's class: the class itself, one of the same text, or that of its number."""
        labels = self.labels
        if not is_label(label):
            raise self._refused(row, label, "a label")
        place = labels.places.get(label, labels.places_as_text.get(str(label)))
        if place is not None:
            return place
        if self._numbered and WHOLE_NUMBER.fullmatch(str(label)):
            if 0 <= int(label) < len(labels.names):
                return int(label)
            raise DataError(
                f"{self.table.locate(row)}, column '{self.label_column}' holds {shown(label)}, and labels names the "
                f"classes 0 to {len(labels.names) - 1}",
                why="a number is a place among the names, counted from 0",
                next_step="correct it, or name every class in labels",
            )
        raise self._unknown(row, label)

    @cached_property
    def _numbered(self) -> bool:
        """Whether a whole number is the place of a name: names are given, and none could itself be the number."""
        names = self.labels.names
        if self.config.labels is None or tuple(self.config.labels) != names:
            return False
        return not any(WHOLE_NUMBER.fullmatch(str(name)) for name in names)

    def _unknown(self, row: int, label: Label) -> DataError:
        names = self.labels.names
        listed = ", ".join(map(str, names[:SHOWN_LABELS])) + (", ..." if len(names) > SHOWN_LABELS else "")
        kinds = {isinstance(name, str) for name in names}
        kind, others = ("text", "whole numbers") if isinstance(label, str) else ("a whole number", "text")
        alike = isinstance(label, str) in kinds
        near = closest(str(label), list(map(str, names)))
        return DataError(
            f"{self.table.locate(row)}, column '{self.label_column}' holds {shown(label)}"
            + ("" if alike else f" ({kind})")
            + f", which is none of the {len(names)} classes ({listed}{'' if alike else f': {others}'})",
            why="it could never be predicted" if self._labels is not None else "",
            next_step=f"did you mean '{near}'?" if near else "correct it or remove the row",
        )

    def _require_classes(self, names: Sequence[str]) -> None:
        counts = _counts(names)
        if self.labels.several:
            used = self.targets.sum(axis=0)
            if not used.any() or len(counts) < 2:
                raise DataError(
                    f"{self.table.name}: all {len(names)} rows have the same labels",
                    why="there is nothing to tell apart",
                    next_step="add rows with other labels",
                )
            return
        if len(counts) < 2:
            raise DataError(
                f"{self.table.name}: all {len(names)} rows are of one class ({shown(names[0])})",
                why="there is nothing to tell apart",
                next_step="add rows of another class",
            )
        single = [name for name, count in counts.items() if count == 1]
        if single:
            row = names.index(single[0])
            more = f" ({len(single)} classes have one)" if len(single) > 1 else ""
            raise DataError(
                f"{self.table.locate(row)} is the only example of class {shown(single[0])}{more}",
                why="what two texts of a class have in common cannot be learned from one",
                next_step="add an example of it, or remove the row",
            )

    def _refused(self, row: int, cell: Any, expected: str) -> DataError:
        return DataError(
            f"{self.table.locate(row)}, column '{self.label_column}' holds {shown(cell)} where {expected} is expected",
            next_step="correct it or remove the row",
        )


def is_label(value: Any) -> bool:
    """Whether a value is text or a whole number."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def ordered(labels: Iterable[Any]) -> tuple[Label, ...]:
    """Return labels of one kind once each: numbers, and texts that are all whole numbers, by size; else by alphabet."""
    found = set(labels)
    if not all(isinstance(label, str) for label in found):
        return tuple(sorted(found))
    if all(WHOLE_NUMBER.fullmatch(label) for label in found):
        return tuple(sorted(map(str, found), key=lambda label: (int(label), label)))
    return tuple(sorted(map(str, found)))


def lists_in(cells: Iterable[Any]) -> list[list[Any]]:
    """Return the cells that are lists."""
    return [cell for cell in cells if isinstance(cell, list)]


def are_vectors(lists: Sequence[list[Any]], width: int | None = None) -> bool:
    """Tell lists of 0 and 1, a value for each class (`width` of them, if known), from lists of labels.

    All are of one length of at least 2. Where one has a value twice they are meant as vectors whatever their lengths,
    since nobody gives a label twice: the one of another length is then the mistake.
    """
    if any(not is_label(value) or value not in (0, 1) for cell in lists for value in cell):
        return False
    lengths = {len(cell) for cell in lists}
    repeated = any(len(set(cell)) < len(cell) for cell in lists)
    return repeated or (len(lengths) == 1 and max(lengths) >= 2 and width in (None, *lengths))


def _counts(names: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
