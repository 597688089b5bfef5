"""From files to what a batch is cut from: token arenas by role, labels, and the digests that identify the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbroken.base.config import closest
from unbroken.base.errors import DataError
from unbroken.base.fingerprint import canonical, digest, digest_file
from unbroken.plan.source import Table, content_digest, read_rows
from unbroken.tasks import cache as kept
from unbroken.tasks.embed.config import OPTIONAL_ROLES, ROLES, EmbedConfig

NEGATIVE = "negative"
SCORE = "score"


@dataclass(frozen=True)
class Summary:
    """What identifies the data, known without reading them again while the files are the same."""

    num_examples: int
    digest: str
    roles: tuple[str, ...]
    row_digests: NDArray[np.uint64]


class EmbedData:
    """The rows of one source, seen through the roles of a loss."""

    def __init__(self, source: Any, config: EmbedConfig, cache: Path | None = None, name: str | None = None) -> None:
        """Take a path or rows in memory. With `cache`, a file read before under the same roles is not read again."""
        self.source = source
        self.name = name
        self.loss = config.loss
        self.mapping = {role: _listed(config.columns.get(role, role)) for role in ROLES[config.loss]}
        self.chosen = set(config.columns)
        self.cache = cache
        self.is_kept = False

    @cached_property
    def table(self) -> Table:
        """The rows themselves, with the columns of every role.

        Raises `DataError` if the file is no longer the one that its digests, found in the cache, are of.
        """
        table = read_rows(self.source, self.name)
        if self.is_kept and self._file_key() != self._key:
            raise DataError(f"{table.name} was changed just now", next_step="run the same command again")
        return table

    @cached_property
    def _key(self) -> str | None:
        """What the file and the roles were when first looked at; None for rows that are in no file."""
        return self._file_key()

    @cached_property
    def summary(self) -> Summary:
        """Number of rows, digests and roles; raises `DataError` naming file, row and column of the first bad cell."""
        found = self._from_cache()
        if found is not None:
            self.is_kept = True
            return found
        roles = tuple(role for role in self.mapping if self._has(role))
        for role in roles:
            self.numbers(role) if role == SCORE else self.texts(role)
        if self.loss == "triplet":
            self._require_one_negative()
        rows = self.table.digests([column for role in roles for column in self.mapping[role]])
        shape = digest(canonical({"roles": roles, "rows": content_digest(rows)}))
        return Summary(self.table.num_rows, shape, roles, rows)

    def keep_in(self, cache: Path) -> None:
        """Use `cache`, which must exist, from now on; what was read goes into it, to be there on the next start."""
        summary, self.cache = self.summary, cache
        if self.is_kept or self._key is None or self._file_key() != self._key:
            return  # known already, in no file, or of a file that is another one by now
        kept.keep_array(cache / f"rows-{summary.digest}.npy", summary.row_digests)
        kept.keep_values(cache / f"data-{self._key}.json", {"digest": summary.digest, "roles": summary.roles})

    def texts(self, role: str) -> tuple[list[str], NDArray[np.int64] | None]:
        """Return all texts of a role in row order and, where rows hold several, the bounds [rows + 1] of each row."""
        columns = self.mapping[role]
        if len(columns) == 1:
            first = self.table.columns[columns[0]]
            if role == NEGATIVE and first and isinstance(first[0], list):
                lists = self.table.text_lists(columns[0])
                bounds = np.cumsum([0, *map(len, lists)], dtype=np.int64)
                return [text for row in lists for text in row], bounds
            return self.table.texts(columns[0]), None
        side_by_side = [self.table.texts(column) for column in columns]
        bounds = np.arange(self.table.num_rows + 1, dtype=np.int64) * len(columns)
        return [text for row in zip(*side_by_side, strict=True) for text in row], bounds

    def numbers(self, role: str) -> NDArray[np.float64]:
        """Return a role's numbers, one per row."""
        return self.table.numbers(self.mapping[role][0])

    def array(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return an array kept in the cache beside the arenas, or make it if it is not there or is damaged."""
        if self.cache is None:
            return make()
        path = self.cache / f"{name}-{self.summary.digest}.npy"
        array = kept.find_array(path)
        if array is None:
            array = make()
            kept.keep_array(path, array)
        return array

    def _has(self, role: str) -> bool:
        columns = self.mapping[role]
        if not columns and role in OPTIONAL_ROLES[self.loss]:
            return False  # `negative: []` leaves the role out
        missing = [column for column in columns if column not in self.table.columns]
        if not missing:
            return True
        if role in OPTIONAL_ROLES[self.loss] and role not in self.chosen:
            return False
        there = ", ".join(self.table.columns)
        near = closest(missing[0], self.table.columns)
        raise DataError(
            f"{self.table.name} has no column '{missing[0]}' (for {role}); it has {there}",
            next_step=f"say which column it is: `columns: {{{role}: {near or '...'}}}`",
        )

    def _require_one_negative(self) -> None:
        bounds = self.texts(NEGATIVE)[1]
        counts = np.ones(1, dtype=np.int64) if bounds is None else np.diff(bounds)
        if (counts != 1).any():
            row = int(np.flatnonzero(counts != 1)[0])
            raise DataError(
                f"{self.table.locate(row)}, column '{self.mapping[NEGATIVE][0]}' holds {counts[row]} negatives",
                why="the triplet loss needs exactly one per row",
                next_step="split the row, or use multiple_negatives_ranking, which takes any number",
            )

    def _file_key(self) -> str | None:
        if not isinstance(self.source, str | Path) or not Path(self.source).is_file():
            return None
        try:
            content = digest_file(Path(self.source))
        except OSError:
            return None  # reading the rows says why
        return digest(canonical([content, Path(self.source).suffixes, self.mapping, self.loss]))

    def _from_cache(self) -> Summary | None:
        key = self._key  # looked at before the rows are read
        if key is None or self.cache is None:
            return None
        found = kept.find_values(self.cache / f"data-{key}.json")
        if found is None:
            return None
        rows = kept.find_array(self.cache / f"rows-{found['digest']}.npy")
        return None if rows is None else Summary(len(rows), found["digest"], tuple(found["roles"]), rows)


def _listed(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)
