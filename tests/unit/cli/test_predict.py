"""`unbroken predict`, and `unbroken evaluate` of a classifier: what is printed, what is written, what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.exact.runs import train
from tests.tiny import WORDS, make_model_folder
from tests.unit.cli.bad_input import Desk

from unbroken.cli.main import run
from unbroken.tasks.classify.measure import measure
from unbroken.tasks.classify.predict import open_classifier

ROWS = [{"text": f"{WORDS[n % 30]} {WORDS[n // 10 * 10]}", "label": "abc"[n % 30 // 10]} for n in range(30)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    base = make_model_folder(place / "base")
    asked = {"task": "classify", "model": str(base), "train_data": ROWS, "max_steps": 3, "threads": 1, "seed": 0}
    assert train(asked, place / "run").finished
    return place / "run"


@pytest.fixture
def bench(desk: Desk, trained: Path) -> Desk:
    """The desk with a run in `runs/c`, and texts."""
    (desk.root / "runs").mkdir()
    (desk.root / "runs" / "c").symlink_to(trained)
    (desk.root / "texts.txt").write_text("".join(f"{row['text']}\n" for row in ROWS[:5]))
    desk.write_rows("labelled.jsonl", [dict(row) for row in ROWS])
    return desk


def printed(desk: Desk, *arguments: str) -> str:
    desk.capfd.readouterr()
    assert run(list(arguments)) == 0
    out, err = desk.capfd.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("model", ["runs/c", "runs/c/model"])
def test_a_line_for_each_text(model: str, bench: Desk) -> None:
    out = printed(bench, "predict", model, "texts.txt", "--output", "out.jsonl", "--json")
    assert json.loads(out) == {"output": "out.jsonl", "texts": 5}
    lines = [json.loads(line) for line in (bench.root / "out.jsonl").read_text().splitlines()]
    classifier, texts = open_classifier(bench.root / "runs" / "c"), [row["text"] for row in ROWS[:5]]
    assert [line["label"] for line in lines] == classifier.predict(texts)
    assert [line["probability"] for line in lines] == classifier.predict_proba(texts).max(axis=1).tolist()


def test_all_probabilities_and_the_row_itself(bench: Desk) -> None:
    rows = [{"body": row["text"], "number": n} for n, row in enumerate(ROWS)]
    bench.write_rows("rows.jsonl", rows)
    printed(bench, "predict", "runs/c", "rows.jsonl", "-o", "out.jsonl", "--column", "body", "--proba", "--keep")
    lines = [json.loads(line) for line in (bench.root / "out.jsonl").read_text().splitlines()]
    assert [line["input"] for line in lines] == rows
    assert all(line["probabilities"][line["label"]] == line["probability"] for line in lines)
    assert all(line["probability"] == max(line["probabilities"].values()) for line in lines)


def test_the_column_is_that_of_the_run(bench: Desk) -> None:
    """Also of one of its checkpoints; `--column` wins."""
    rows = [{"utt": row["text"], "intent": row["label"], "text": "river"} for row in ROWS]
    base = make_model_folder(bench.root / "base")
    asked = {"task": "classify", "model": str(base), "train_data": rows, "max_steps": 3, "threads": 1, "seed": 0}
    assert train(asked | {"columns": {"text": "utt", "label": "intent"}}, bench.root / "runs" / "renamed").finished
    bench.write_rows("utts.jsonl", rows)

    def predicted(*arguments: str) -> list[str]:
        printed(bench, "predict", *arguments, "-o", "out.jsonl", "--proba")
        return (bench.root / "out.jsonl").read_text().splitlines()

    own = predicted("runs/renamed", "utts.jsonl")
    assert own == predicted("runs/renamed/model", "utts.jsonl") == predicted("runs/c", "utts.jsonl", "--column", "utt")
    assert len(set(own)) > 1
    assert len(set(predicted("runs/renamed", "utts.jsonl", "--column", "text"))) == 1
    bench.refuses(
        3,
        "labelled.jsonl: there is no column 'utt'; …say which holds the text: --column NAME",
        *("predict", "runs/renamed", "labelled.jsonl", "-o", "out"),
    )


def test_numbers_with_names_are_measured_by_them(bench: Desk) -> None:
    rows = [row | {"label": "abc".index(row["label"])} for row in ROWS]
    base = make_model_folder(bench.root / "base")
    asked = {"task": "classify", "model": str(base), "train_data": rows, "max_steps": 3, "threads": 1, "seed": 0}
    assert train(asked | {"labels": ["a", "b", "c"]}, bench.root / "runs" / "named").finished
    assert open_classifier(bench.root / "runs" / "named").labels == ("a", "b", "c")
    found = measure(bench.root / "runs" / "named", rows)
    assert found == measure(bench.root / "runs" / "named", ROWS) == measure(bench.root / "runs" / "c", ROWS)


PREDICT = {
    "model texts.txt -o out": (2, "model is an embedding model, without a classifier (classifier.json is missing); …"),
    "nowhere/at/all texts.txt -o out": (2, "model: there is no folder nowhere/at; …"),
    "runs/c texts.txt -o runs": (2, "--output runs is a folder; give the path of a .jsonl file …"),
    "runs/c texts.txt -o texts.txt": (2, "--output texts.txt is the file that is read; …"),
    "runs/c texts.txt -o pipe": (2, "--output pipe is a device or a pipe, which a file would take the place of; …"),
    "runs/c texts.txt -o no/out": (2, "--output no/out cannot be written: there is no folder no; …"),
    "runs/c texts.txt -o out --device gpu": (2, "device: 'gpu' is not known; …"),
    "runs/c texts.txt": (2, "predict: --output is missing; see `unbroken predict --help`"),
    "runs/c text.txt -o out": (3, "no file text.txt; did you mean 'texts.txt'?"),
    "runs/c labelled.jsonl -o out --column txt": (
        3,
        "labelled.jsonl: there is no column 'txt'; …did you mean --column text?",
    ),
    "runs/c pairs.jsonl -o out": (
        3,
        "pairs.jsonl: there is no column 'text'; …say which holds the text: --column NAME",
    ),
    "runs/c bad.jsonl -o out": (3, "bad.jsonl: line 2, column 'text' holds null where text is expected; …"),
    "runs/c empty.txt -o out": (3, "empty.txt is empty: it has no row of data; …"),
    "damaged texts.txt -o out": (2, "damaged/classifier.json is damaged: …"),
    "setfit texts.txt -o out": (2, "setfit/model_head.pkl is a pickle: …say allow_pickle=True, …"),
}


@pytest.mark.parametrize("typed", PREDICT)
def test_predictions_that_cannot_be(typed: str, bench: Desk) -> None:
    bench.write_rows("pairs.jsonl", [{"anchor": "river", "positive": "water"}])
    bench.place({"empty.txt": b"", "bad.jsonl": b'{"text": "river"}\n{"text": null}\n', "setfit/model_head.pkl": b"."})
    os.mkfifo(bench.root / "pipe")
    shutil.copytree(bench.root / "runs" / "c" / "model", bench.root / "damaged")
    (bench.root / "damaged" / "classifier.json").write_text("{")
    code, line = PREDICT[typed]
    bench.refuses(code, line, "predict", *typed.split())


def test_a_classifier_is_measured_by_its_labels(bench: Desk) -> None:
    found = measure(bench.root / "runs" / "c", ROWS)
    out = printed(bench, "evaluate", "runs/c", "labelled.jsonl", "--json")
    assert json.loads(out) == found.metrics
    assert list(json.loads(out)) == ["accuracy", "f1_macro", "f1_micro", "log_loss", "calibration_error"]
    out = printed(bench, "evaluate", "runs/c/model", "labelled.jsonl", "--metric", "log_loss")
    metrics, _, table = out.partition("\n\n")
    assert metrics.splitlines()[0].split() == ["log_loss", f"{found.metrics['log_loss']:.4f}"]
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["class", "precision", "recall", "f1", "support"]
    assert [line[0] for line in lines[1:]] == ["a", "b", "c"]
    assert [line[4] for line in lines[1:]] == ["10", "10", "10"]
    assert [float(line[2]) for line in lines[1:]] == [round(score.recall, 4) for score in found.classes]


def test_columns_of_other_names(bench: Desk) -> None:
    bench.write_rows("renamed.jsonl", [{"body": row["text"], "class": row["label"]} for row in ROWS])
    columns = ("--columns", "text=body", "--columns", "label=class", "--json")
    out = printed(bench, "evaluate", "runs/c", "renamed.jsonl", *columns)
    assert json.loads(out) == measure(bench.root / "runs" / "c", ROWS).metrics


def test_with_a_loss_the_encoder_is_measured(bench: Desk) -> None:
    out = printed(bench, "evaluate", "runs/c", "eval.jsonl", "--loss", "multiple_negatives_ranking", "--json")
    assert "ndcg@10" in json.loads(out)


EVALUATE = {
    "runs/c": (2, "no rows to measure runs/c on; give a file: unbroken evaluate MODEL FILE"),
    "runs/c labelled.jsonl --metric acuracy": (2, "metric: 'acuracy' is not known; did you mean 'accuracy'?"),
    "runs/c labelled.jsonl --columns anchor=text": (2, "columns: a classifier reads text and label, not 'anchor'"),
    "runs/c eval.jsonl": (
        3,
        "eval.jsonl has no column 'text' (for text); it has anchor, …; say which columns they are: "
        "--columns text=NAME --columns label=NAME",
    ),
    "runs/c labels.jsonl": (
        3,
        "labels.jsonl has no column 'label' …: --columns text=text --columns 'label=the labels'",
    ),
    "runs/c other.jsonl": (3, "other.jsonl: line 2, column 'label' holds 'd', which is none of the 3 classes …"),
    "runs/c blank.jsonl": (3, "blank.jsonl: line 1, column 'text' holds an empty text; …"),
    "model eval.jsonl --metric accuracy": (2, "--metric is for classifiers; …"),
}


@pytest.mark.parametrize("typed", EVALUATE)
def test_measurements_that_cannot_be(typed: str, bench: Desk) -> None:
    bench.write_rows("other.jsonl", [dict(ROWS[0]), {"text": "river", "label": "d"}])
    bench.write_rows("labels.jsonl", [{"text": "river", "the labels": "a"}])
    bench.write_rows("blank.jsonl", [{"text": " ", "label": "a"}])
    code, line = EVALUATE[typed]
    bench.refuses(code, line, "evaluate", *typed.split())


def test_embeddings_take_the_place_of_no_device(bench: Desk) -> None:
    os.mkfifo(bench.root / "pipe")
    bench.refuses(2, "--output pipe is a device or a pipe, …", "encode", "model", "texts.txt", "-o", "pipe")
    bench.refuses(
        2, "--output texts.txt is the file that is read; …", "encode", "model", "texts.txt", "-o", "texts.txt"
    )
