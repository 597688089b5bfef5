"""The code on the pages people read runs: every ```python block, in order, one namespace a page.

A block that cannot run here (a GPU, a hub) is fenced as ```py. Each page runs in a folder of its own that has a small
encoder at `path/to/minilm`, a small language model at `path/to/causal`, and rows in `train.jsonl` and `test.jsonl`;
what else a page needs, its blocks make.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import make_model_folder, make_rows
from tests.tiny_causal import make_causal_folder

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python *\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """Yield each block of a page with the number of its first line."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield text.count("\n", 0, match.start(1)) + 1, match[1]


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if list(blocks(page))]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_model_folder(tmp_path / "path" / "to" / "minilm")
    make_causal_folder(tmp_path / "path" / "to" / "causal")
    for name, rows in (("train.jsonl", make_rows(60)), ("test.jsonl", make_rows(20, seed=1))):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_on_the_page_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("page")  # dataclasses and pickling of functions look their module up by name
    monkeypatch.setitem(sys.modules, "page", module)
    for line, code in blocks(page):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), module.__dict__)


def test_there_are_pages() -> None:
    assert ROOT / "docs" / "loop.md" in PAGES
