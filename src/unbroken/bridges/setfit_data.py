"""The data of a SetFit script: a `datasets.Dataset`, a pandas `DataFrame` or a list of rows, as rows with names.

None of those libraries is imported. A label is a text, a whole number (perhaps with names beside it), or a 0/1 vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError, DataError
from unbroken.plan.shots import draw_shots
from unbroken.plan.source import Table, read_rows

TEXT, LABEL = "text", "label"


@dataclass(frozen=True)
class Rows:
    """Texts and labels of one dataset; `labels` as they stand in it, `names` those of a `ClassLabel` column."""

    table: Table
    texts: list[str]
    labels: list[Any]
    label_column: str
    names: tuple[str, ...] | None

    @property
    def lists(self) -> bool:
        """Whether a text has a list of labels."""
        return any(isinstance(label, list) for label in self.labels)

    @property
    def numbers(self) -> bool:
        """Whether labels are numbers, which names may stand for."""
        return any(isinstance(label, int) for label in self.labels)

    def named(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        """Return the rows with the names of their labels in place of numbers.

        Raises `DataError` for a number that has no name.
        """
        labels = self.labels if names is None else [self._name(row, names) for row in range(len(self.labels))]
        return [{TEXT: text, LABEL: label} for text, label in zip(self.texts, labels, strict=True)]

    def _name(self, row: int, names: Sequence[str]) -> Any:
        label = self.labels[row]
        if not isinstance(label, int) or isinstance(label, bool):
            return label
        if not 0 <= label < len(names):
            raise DataError(
                f"{self.table.locate(row)}, column '{self.label_column}' holds {label}, and there are names for "
                f"0 to {len(names) - 1} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})",
                next_step="give a name for every label, or correct the row",
            )
        return names[label]


def rows_of(source: Any, column_mapping: Mapping[str, str] | None, name: str, *, labelled: bool = True) -> Rows:
    """Read a dataset by SetFit's columns, "text" and "label", or those that `column_mapping` maps to them.

    Without `labelled` there need be no labels: then they are all None. Raises `DataError` in one line otherwise.
    """
    if hasattr(source, "to_dict") and hasattr(source, "iloc"):  # a pandas DataFrame
        rows: Any = source.to_dict("records")
    else:
        rows = source
    if isinstance(source, Mapping) and not hasattr(source, "column_names"):
        raise DataError(f"{name} is a {type(source).__name__}", next_step="give one split of it, or a list of rows")
    table = read_rows(rows, name)
    text, label = columns_of(table, column_mapping, labelled)
    cells = [plain(cell) for cell in table.cells(label)] if label in table.columns else [None] * table.num_rows
    return Rows(table, table.texts(text), cells, label, class_names(source, label))


def columns_of(table: Table, mapping: Mapping[str, str] | None, labelled: bool) -> tuple[str, str]:
    """Return the columns of texts and labels. Raises `DataError` naming the one that is missing."""
    found = {TEXT: TEXT, LABEL: LABEL}
    for column, role in (mapping or {}).items():
        if role not in found:
            raise ConfigError(
                f"column_mapping: '{role}' is neither text nor label", next_step='write {"column": "text"}'
            )
        found[role] = column
    for role, column in found.items():
        if column not in table.columns and (labelled or role == TEXT):
            near = closest(column, table.columns)
            raise DataError(
                f"{table.name} has no column '{column}'; it has {', '.join(table.columns)}",
                next_step=f'say which it is: column_mapping={{"{near or "..."}": "{role}"}}',
            )
    return found[TEXT], found[LABEL]


def class_names(source: Any, column: str) -> tuple[str, ...] | None:
    """Return the names a `ClassLabel` column of a `datasets.Dataset` has, None where there are none."""
    features = getattr(source, "features", None)
    names = getattr(features[column], "names", None) if isinstance(features, Mapping) and column in features else None
    return None if names is None else tuple(map(str, names))


def plain(cell: Any) -> Any:
    """Return numpy's numbers and arrays as Python's."""
    if isinstance(cell, list):
        return [plain(value) for value in cell]
    return cell.tolist() if hasattr(cell, "tolist") else cell


def sample_dataset(dataset: Any, label_column: str = LABEL, num_samples: int = 8, seed: int = 42) -> Any:
    """Return `num_samples` rows of each label (all rows of a rarer one), in the order of the rows, as the same kind.

    The draw is `samples_per_label`'s: a function of the seed and the rows, on every machine the same. It is not the
    draw that SetFit makes with this seed.
    """
    if hasattr(dataset, "iloc"):
        return dataset.iloc[_drawn(list(dataset[label_column]), num_samples, seed)]
    if hasattr(dataset, "select") and hasattr(dataset, "column_names"):
        return dataset.select(_drawn(list(dataset[label_column]), num_samples, seed))
    cells = read_rows(dataset, "dataset", [label_column]).cells(label_column)
    return [dataset[row] for row in _drawn(cells, num_samples, seed)]


def _drawn(cells: Sequence[Any], num_samples: int, seed: int) -> list[int]:
    rows: list[int] = draw_shots([str(plain(cell)) for cell in cells], num_samples, seed).tolist()
    return rows


def get_templated_dataset(
    dataset: Any = None,
    candidate_labels: Sequence[str] | None = None,
    reference_dataset: str | None = None,
    template: str = "This sentence is {}",
    sample_size: int = 2,
    text_column: str = TEXT,
    label_column: str = LABEL,
    multi_label: bool = False,
) -> Any:
    """Return `dataset` with `sample_size` rows more for each label, made of its name: for a start without examples.

    Without a dataset, and for a list of rows, a list of rows. Raises `ConfigError` unless the labels are given.
    """
    if reference_dataset is not None or not candidate_labels:
        raise ConfigError(
            "get_templated_dataset makes rows of label names, and there are none",
            next_step="give candidate_labels=[...]; nothing is fetched from the hub here",
        )
    places = range(len(candidate_labels))
    made = [
        {
            text_column: template.format(name),
            label_column: [int(other == place) for other in places] if multi_label else place,
        }
        for place, name in enumerate(candidate_labels)
        for _ in range(sample_size)
    ]
    if hasattr(dataset, "add_item"):
        for row in made:
            dataset = dataset.add_item(row)
        return dataset
    return [*(dataset or []), *made]
