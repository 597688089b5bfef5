"""Results on stdout: one flat JSON object, or an aligned table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


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
