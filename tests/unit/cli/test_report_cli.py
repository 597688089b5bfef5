"""`unbroken report`: what is printed where, pages, and what it cannot be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.exact.runs import train
from tests.exact.test_classify import labelled, values
from tests.unit.cli.bad_input import COMMAND, CONFIG, Desk

from unbroken.cli.main import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    root = tmp_path_factory.mktemp("finished")
    for name, rows in (("train", labelled()), ("test", labelled(20, seed=1))):
        text = "".join(json.dumps(row) + "\n" for row in rows).replace("class 2", "classé 2")
        (root / f"{name}.jsonl").write_text(text, encoding="utf-8")
    files = {"train_data": str(root / "train.jsonl"), "eval_data": str(root / "test.jsonl")}
    assert train(values(tiny_model, **files, max_steps=2), root / "run").finished
    return root / "run"


WRONG = {
    "report": "report: RUN is missing; see `unbroken report --help`",
    "report nowhere": "there is no nowhere; give the folder of a run",
    "report RUN --output report.pdf": "--output report.pdf: pages are .html or .md; name the file like that",
    "report RUN --output gone/report.md": (
        "--output gone/report.md cannot be written: there is no folder gone; give the path of a file in a folder …"
    ),
    "report RUN --set seed": "--set seed: there is no key=value; write it as --set batch_size=64",
    "report RUN --set seed=3": "seed cannot be set here: a run is reported on as it was; …model, train_data",
    "report RUN@2": "RUN@2: report is of finished models, not of one step; give RUN",
}


@pytest.mark.parametrize("typed", WRONG)
def test_asked_for_wrongly(typed: str, desk: Desk, finished: Path) -> None:
    (desk.root / "RUN").symlink_to(finished)
    desk.refuses(2, WRONG[typed], *typed.split())


def test_rows_that_are_not_there(desk: Desk, finished: Path) -> None:
    desk.refuses(3, "no file tset.jsonl; …", "report", str(finished), "tset.jsonl")


def test_columns_that_are_not_there(desk: Desk, finished: Path) -> None:
    """The report has no option for columns: the advice is a command that has."""
    desk.write_rows("other.jsonl", [{"texts": "river", "class": "class 1"}])
    line = (
        "other.jsonl has no column 'text' (for text); it has texts, class; rename the column, or measure without a "
        f"report: unbroken evaluate {finished} other.jsonl --columns text=texts --columns label=NAME"
    )
    desk.refuses(3, line, "report", str(finished), "other.jsonl")
    line = "eval.jsonl has no column 'text' …; put the data back, or say where they are: --set train_data=FILE"
    desk.refuses(3, line, "report", str(finished), "--set", "train_data=eval.jsonl")


def test_other_tasks_have_no_report_so_far(desk: Desk, tiny_model: Path) -> None:
    train({**CONFIG, "model": str(tiny_model), "train_data": "train.jsonl"}, desk.root / "runs" / "a")
    line = "report is for classification runs so far, and runs/a is of task embed; unbroken evaluate runs/a"
    desk.refuses(2, line, "report", "runs/a")


def test_json_is_one_object_and_the_rest_is_text_and_pages(desk: Desk, finished: Path) -> None:
    desk.capfd.readouterr()
    assert run(["report", str(finished), "--json", "--output", "report.html"]) == 0
    out, err = desk.capfd.readouterr()
    assert (out.count("\n"), err) == (1, "")
    found = json.loads(out)
    assert run(["report", str(finished), "-o", "report.md"]) == 0
    out, err = desk.capfd.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert f"{found['accuracy']:.4f}" in out
    assert (desk.root / "report.md").read_text(encoding="utf-8").splitlines()[1:-1] == out.splitlines()
    page = (desk.root / "report.html").read_text(encoding="utf-8")
    assert f"{found['accuracy']:.4f}" in page
    assert "</html>" in page
    assert not any(word in page for word in ("http:", "https:", "@import", "<script"))


def test_a_wrong_folder_is_told_before_anything_heavy_is_imported(desk: Desk) -> None:
    script = (
        "import sys; from unbroken.cli.main import run; code = run(['report', 'nowhere']); "
        "print(code, *[name for name in ('torch', 'transformers', 'sklearn') if name in sys.modules])"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout.split() == ["2"]


def test_as_a_process_in_plain_ascii(finished: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    outcome = subprocess.run([*COMMAND, "report", str(finished)], capture_output=True, env=environment, check=True)
    assert outcome.stdout.isascii()
    assert b"####" in outcome.stdout
    assert b"class? 2" in outcome.stdout
