"""Rows as lines of JSON, whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from unbroken.base.errors import DataError
from unbroken.plan.source import CORRECT, Table


def rendered(table: Table, values: Iterable[Mapping[str, Any]]) -> bytes:
    """Return one line of JSON a value; dates and the like as text. Raises `DataError` for NaN, which JSON lacks."""
    lines = []
    for row, value in enumerate(values):
        try:
            lines.append(as_json(value).encode())
        except UnicodeEncodeError:  # half a surrogate pair in another column
            lines.append(as_json(value, ascii_only=True).encode())
        except ValueError as failure:
            raise DataError(f"{table.locate(row)}: {failure}", next_step=CORRECT) from None
    return b"".join(line + b"\n" for line in lines)


def as_json(value: Any, ascii_only: bool = False) -> str:
    """Return JSON of anything but NaN and infinities."""
    return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, default=str)
