"""Results on stdout: one flat JSON object, or an aligned table for people. Warnings on stderr, a line each."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO


def print_json(values: Mapping[str, Any]) -> None:
    """Print one flat object on one line."""
    print(json.dumps(dict(values), ensure_ascii=False, default=str))


def print_values(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print values as JSON, or a line each."""
    if as_json:
        print_json(values)
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a header, the first column to the left and the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *cells]))


@contextmanager
def notices(say: Callable[[str], None]) -> Iterator[None]:
    """Have every warning said by `say` in one line, once, without the line of source code it came from.

    Those meant for programmers are left out, unless Python was started with `-W` or PYTHONWARNINGS.
    """
    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            said.add(text)
            say(text)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = show
        yield
