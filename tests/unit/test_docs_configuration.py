"""The page of all keys is what the schema says today."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(DOCS / "make_configuration.py"))["render"]()
    assert page == made, "run python docs/make_configuration.py"
