"""The rules of the house that no linter has: sizes, what starting up imports, what never appears in the source.

Which layer may import which is import-linter's part; see pyproject.toml.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "unbroken"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pydantic",
    "sklearn",
    "scipy",
    "pyarrow",
    "peft",
    "datasets",
)


def long_files(tree: ast.Module, text: str) -> Iterator[str]:
    if (lines := text.count("\n")) > MAX_FILE_LINES:
        yield f"{lines} lines in one file"


def long_functions(tree: ast.Module, text: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {lines} lines"


def code_from_data(tree: ast.Module, text: str) -> Iterator[str]:
    """Yield every place where a file or a string could become code: pickles, `torch.load`, `eval`, `exec`.

    `torch.load(..., weights_only=True)` passes here; that it stays in the bridges is `foreign_pickles`' part.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            modules = []
        if any(
            module.partition(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "marshal") for module in modules
        ):
            yield f"line {node.lineno}: imports {modules[0]}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec") or (called == "torch.load" and not weights_only(node)):
            yield f"line {node.lineno}: calls {called}"


def weights_only(call: ast.Call) -> bool:
    return any(
        keyword.arg == "weights_only" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        for keyword in call.keywords
    )


def foreign_pickles(tree: ast.Module, text: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            yield f"line {node.lineno}: torch.load"


RULES: list[Callable[[ast.Module, str], Iterator[str]]] = [long_files, long_functions, code_from_data]


def broken(rule: Callable[[ast.Module, str], Iterator[str]], *, outside: str = "") -> list[str]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        if outside and place.parts[0] == outside:
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{place}: {what}" for what in rule(ast.parse(text), text)]
    return found


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps_the_rule(rule: Callable[[ast.Module, str], Iterator[str]]) -> None:
    assert broken(rule) == []


def test_foreign_checkpoints_are_opened_only_in_the_bridges() -> None:
    assert broken(foreign_pickles, outside="bridges") == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (long_files, "x = 1\n" * (MAX_FILE_LINES + 1)),
        (long_functions, "def long():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
        (code_from_data, "import pickle"),
        (code_from_data, "from joblib import load"),
        (code_from_data, "eval('1')"),
        (code_from_data, "torch.load(path)"),
        (code_from_data, "torch.load(path, weights_only=False)"),
        (foreign_pickles, "torch.load(path, weights_only=True)"),
    ],
)
def test_a_rule_notices(rule: Callable[[ast.Module, str], Iterator[str]], text: str) -> None:
    assert len(list(rule(ast.parse(text), text))) == 1


@pytest.mark.parametrize("text", ["model.eval()", "torch.load(path, weights_only=True)", "'''No pickle.'''"])
def test_a_rule_lets_pass_what_is_meant(text: str) -> None:
    assert list(code_from_data(ast.parse(text), text)) == []


@pytest.mark.parametrize("module", ["unbroken", "unbroken.demo", "unbroken.cli.main"])
def test_starting_up_imports_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout.split() == []
