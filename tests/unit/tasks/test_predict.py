"""A finished classifier used: on texts, on files, and measured as its run measured it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, classification_report
from tests.exact.runs import train
from tests.tiny import WORDS, make_model_folder

from unbroken.base.errors import ConfigError, DataError, UnbrokenError
from unbroken.models import classifying
from unbroken.tasks.classify import predict
from unbroken.tasks.classify.measure import measure
from unbroken.tasks.classify.predict import (
    CLASSIFIER_FILE,
    ROWS_AT_ONCE,
    TextClassifier,
    is_classifier,
    open_classifier,
    predict_file,
)
from unbroken.tasks.classify.scores import class_scores, one_hot

NAMES = ("red", "green", "blue")


def labelled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts whose words tell their class."""
    draw = random.Random(seed)
    return [
        {"text": " ".join(draw.choices(WORDS[10 * (i % 3) :][:10], k=5)), "label": NAMES[i % 3], "id": i}
        for i in range(count)
    ]


def several(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [
        row | {"label": [name for place, name in enumerate(NAMES) if (row["id"] + 1) >> place & 1]}
        for row in labelled(count, seed)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(base: Path, rows: Callable[[int], list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "task": "classify",
        "model": str(base),
        "train_data": rows(30),
        "batch_size": 8,
        "max_steps": 4,
        "body_learning_rate": 1e-3,
        "threads": 1,
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Two runs, `one` label a text and `several`, each with its eval_data beside it."""
    place = tmp_path_factory.mktemp("runs")
    for name, rows in (("one", labelled), ("several", several)):
        held_out = str(write(place / f"{name}.jsonl", rows(20, seed=1)))
        assert train({**asked(base, rows), "eval_data": held_out}, place / name).finished
    return place


@pytest.fixture(scope="module")
def one(runs: Path) -> TextClassifier:
    return open_classifier(runs / "one")


@pytest.fixture(scope="module")
def many(runs: Path) -> TextClassifier:
    return open_classifier(runs / "several")


TEXTS = [row["text"] for row in labelled(12, seed=2)]


def test_the_name_of_the_file_is_the_model_s(runs: Path, base: Path) -> None:
    assert CLASSIFIER_FILE == classifying.SETTINGS_FILE
    assert is_classifier(runs / "one")
    assert is_classifier(runs / "one" / "model")
    assert not is_classifier(base)


def test_a_run_its_checkpoint_and_its_model_are_the_same_classifier(runs: Path, one: TextClassifier) -> None:
    last = max((runs / "one" / "checkpoints").glob("[0-9]*"))
    for place in (runs / "one" / "model", last):
        np.testing.assert_array_equal(open_classifier(place).predict_proba(TEXTS), one.predict_proba(TEXTS))


def test_what_is_predicted_is_what_is_likely(one: TextClassifier, many: TextClassifier) -> None:
    found = one.predict_proba(TEXTS)
    assert found.shape == (12, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert one.predict(TEXTS) == [one.labels[place] for place in found.argmax(axis=1)]
    with torch.no_grad():
        embeddings = torch.from_numpy(np.asarray(one.encoder.encode(TEXTS)))
        assert one.predict(TEXTS) == [one.labels[place] for place in one.head.predict(embeddings)]
    applies = many.predict_proba(TEXTS) >= 0.5
    assert many.predict(TEXTS) == [[many.labels[place] for place in np.flatnonzero(row)] for row in applies]
    assert one.predict_proba([]).shape == (0, 3)


@pytest.mark.parametrize("name", ["one", "several"])
def test_a_run_is_measured_as_it_measured_itself(name: str, runs: Path) -> None:
    journal = [json.loads(line) for line in (runs / name / "journal.jsonl").read_text().splitlines()]
    recorded = [record["metrics"] for record in journal if record["kind"] == "evaluation"]
    found = measure(runs / name).metrics
    assert found == recorded[-1]
    assert found != recorded[0]


def test_classes_are_scored_as_by_scikit_learn(runs: Path, one: TextClassifier) -> None:
    rows = labelled(20, seed=1)
    truth, found = [row["label"] for row in rows], one.predict([row["text"] for row in rows])
    theirs = classification_report(truth, found, output_dict=True, zero_division=0)
    scores = measure(runs / "one").classes
    assert [score.name for score in scores] == list(one.labels)
    for score in scores:
        wanted = theirs[score.name]
        assert (score.precision, score.recall) == (wanted["precision"], wanted["recall"])
        assert (score.f1, score.support) == (pytest.approx(wanted["f1-score"]), wanted["support"])


def test_a_class_that_is_nowhere_scores_nothing() -> None:
    targets, found = np.array([0, 0, 1]), np.array([0, 2, 2])
    assert [
        (s.precision, s.recall, s.f1, s.support) for s in class_scores(one_hot(found, 4), one_hot(targets, 4), "abcd")
    ] == [
        (1.0, 0.5, pytest.approx(2 / 3), 2),
        (0.0, 0.0, 0.0, 1),
        (0.0, 0.0, 0.0, 0),
        (0.0, 0.0, 0.0, 0),
    ]


def test_metrics_asked_for_come_first_and_may_be_functions(runs: Path) -> None:
    def of_texts_called_red(truth: Sequence[str], found: Sequence[str]) -> float:
        return float(np.mean([label == "red" for label in found]))

    found = measure(runs / "one", metric=["log_loss", of_texts_called_red, accuracy_score]).metrics
    assert list(found)[:4] == ["log_loss", "of_texts_called_red", "accuracy_score", "accuracy"]
    assert found["accuracy_score"] == found["accuracy"]
    assert next(iter(measure(runs / "one", metric="f1_micro").metrics)) == "f1_micro"
    found = measure(runs / "several", metric=accuracy_score).metrics
    assert found["accuracy_score"] == found["accuracy"]


def test_vectors_and_names_measure_the_same(runs: Path, many: TextClassifier, tmp_path: Path) -> None:
    rows = several(20, seed=1)
    vectors = [row | {"label": [int(name in row["label"]) for name in many.labels]} for row in rows]
    found = measure(runs / "several" / "model", str(write(tmp_path / "vectors.jsonl", vectors)))
    assert found == measure(runs / "several")
    assert measure(runs / "several", rows) == found


def test_labels_that_are_numbers_in_lists(base: Path, tmp_path: Path) -> None:
    """Trained on, saved, and measured: given as they were, and as vectors."""
    numbers = dict(zip(NAMES, (10, 20, 30), strict=True))

    def numbered(count: int, seed: int = 0) -> list[dict[str, Any]]:
        return [row | {"label": [numbers[name] for name in row["label"]]} for row in several(count, seed)]

    train(asked(base, numbered), tmp_path / "run")
    classifier = open_classifier(tmp_path / "run")
    assert (classifier.labels, classifier.multi_label) == ((10, 20, 30), True)
    rows = numbered(20, seed=1)
    vectors = [row | {"label": [int(label in row["label"]) for label in (10, 20, 30)]} for row in rows]
    assert measure(tmp_path / "run", rows) == measure(tmp_path / "run", vectors)


def test_columns_may_be_named_otherwise(runs: Path, tmp_path: Path) -> None:
    renamed = [{"body": row["text"], "class": row["label"]} for row in labelled(20, seed=1)]
    path = write(tmp_path / "renamed.jsonl", renamed)
    assert measure(runs / "one", str(path), {"text": "body", "label": "class"}) == measure(runs / "one")


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        ({"metric": "f1_makro"}, ConfigError, "metric: 'f1_makro' is not known; did you mean 'f1_macro'?"),
        ({"data": [{"text": "river", "label": "purple"}]}, DataError, "holds 'purple', which is none of the 3 classes"),
        ({"data": [{"text": " ", "label": "red"}]}, DataError, "holds an empty text"),
        ({"data": [{"text": "river"}]}, DataError, "has no column 'label'"),
        ({"columns": {"texts": "text"}}, ConfigError, "a classifier reads text and label, not 'texts'"),
    ],
)
def test_a_measurement_that_cannot_be(
    change: dict[str, Any], error: type[UnbrokenError], line: str, runs: Path
) -> None:
    with pytest.raises(error, match=line.replace("?", r"\?")):
        measure(runs / "one", **change)


def test_nothing_to_measure_on(runs: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one" / "model", tmp_path / "copy")
    with pytest.raises(ConfigError, match="no rows to measure"):
        measure(tmp_path / "copy")
    train({**asked(base, labelled), "eval_data": labelled(6)}, tmp_path / "run")
    with pytest.raises(ConfigError, match="was evaluated on 6 rows in memory; give a file"):
        measure(tmp_path / "run")


def test_texts_are_prompted_in_training_as_in_use(tmp_path: Path) -> None:
    """A head over embeddings of bare texts would be used on embeddings of prompted ones."""
    prompted = make_model_folder(tmp_path / "prompted")
    settings = {"prompts": {"topic": "winter evening "}, "default_prompt_name": "topic"}
    (prompted / "config_sentence_transformers.json").write_text(json.dumps(settings))
    plain = make_model_folder(tmp_path / "plain")
    written = [row | {"text": "winter evening " + row["text"]} for row in labelled(30)]
    train(asked(prompted, labelled), tmp_path / "of the model")
    train(asked(plain, labelled) | {"train_data": written}, tmp_path / "in the text")
    train(asked(plain, labelled), tmp_path / "without")
    heads = [open_classifier(tmp_path / name).head.weight for name in ("of the model", "in the text", "without")]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt"])
def test_a_file_is_predicted_row_by_row(ending: str, one: TextClassifier, tmp_path: Path) -> None:
    source = tmp_path / f"texts.{ending}"
    content = {
        "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
        "csv": "text\n" + "".join(text + "\n" for text in TEXTS),
        "txt": "\n".join(TEXTS),
    }
    source.write_text(content[ending])
    assert predict_file(lambda: one, source, tmp_path / "out.jsonl", proba=True) == 12
    found, probabilities = read(tmp_path / "out.jsonl"), one.predict_proba(TEXTS)
    assert [line["label"] for line in found] == one.predict(TEXTS)
    assert [line["probability"] for line in found] == probabilities.max(axis=1).tolist()
    assert [list(line["probabilities"].values()) for line in found] == probabilities.tolist()
    assert all(list(line["probabilities"]) == list(one.labels) for line in found)


def test_rows_are_kept_and_lists_are_lists(many: TextClassifier, tmp_path: Path) -> None:
    rows = [{"text": text, "label": "mine", "half": "\ud800"} for text in TEXTS]
    source = write(tmp_path / "texts.jsonl", rows)
    predict_file(lambda: many, source, tmp_path / "out.jsonl", keep=True)
    found, probabilities = read(tmp_path / "out.jsonl"), many.predict_proba(TEXTS)
    assert [line["input"] for line in found] == rows
    assert [line["label"] for line in found] == many.predict(TEXTS)
    assert [line["probability"] for line in found] == [
        [value for value in row if value >= 0.5] for row in probabilities.tolist()
    ]


def test_memory_holds_a_block_however_long_the_file(
    one: TextClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    in_file: list[int] = []
    real: Callable[..., Any] = predict.rendered

    def watched(table: Any, values: Any) -> bytes:
        sizes.append(table.num_rows)
        in_file.append(sum(path.stat().st_size for path in tmp_path.glob(".tmp-*")))
        return bytes(real(table, values))

    monkeypatch.setattr(predict, "rendered", watched)
    count = 2 * ROWS_AT_ONCE + 5
    (tmp_path / "texts.txt").write_text("".join(f"{WORDS[n % 32]}\n" for n in range(count)))
    assert predict_file(lambda: one, tmp_path / "texts.txt", tmp_path / "out.jsonl") == count
    assert sizes == [ROWS_AT_ONCE, ROWS_AT_ONCE, 5]
    assert in_file == sorted(set(in_file))  # what is predicted is written before more is read
    found = read(tmp_path / "out.jsonl")
    labels = one.predict(WORDS)
    assert len(set(labels)) > 1
    assert [line["label"] for line in found] == [labels[n % 32] for n in range(count)]


@pytest.mark.parametrize("earlier", [None, b"earlier"])
def test_a_bad_row_far_down_leaves_nothing_half_written(
    earlier: bytes | None, one: TextClassifier, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"text": "river"}] * (ROWS_AT_ONCE + 3)
    source = write(tmp_path / "texts.jsonl", [*rows, {"text": None}])
    if earlier is not None:
        (tmp_path / "out.jsonl").write_bytes(earlier)
    with pytest.raises(DataError, match=f"line {ROWS_AT_ONCE + 4}, column 'text' holds null where text is expected"):
        predict_file(lambda: one, source, tmp_path / "out.jsonl")
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != source}
    assert left == ({} if earlier is None else {"out.jsonl": earlier})


def test_no_number_that_json_lacks(one: TextClassifier, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "river", "size": 1}\n{"text": "stone", "size": NaN}\n')
    with pytest.raises(DataError, match=r"texts.jsonl: line 2: Out of range float"):
        predict_file(lambda: one, source, tmp_path / "out.jsonl", keep=True)
    assert predict_file(lambda: one, source, tmp_path / "out.jsonl") == 2


def test_the_first_rows_are_read_before_a_model(tmp_path: Path) -> None:
    def opening() -> TextClassifier:
        raise AssertionError("the model was loaded")

    with pytest.raises(DataError, match="no file"):
        predict_file(opening, tmp_path / "none.txt", tmp_path / "out.jsonl")
    (tmp_path / "texts.csv").write_text("body\nriver\n")
    with pytest.raises(DataError, match="there is no column 'text'; the columns are body"):
        predict_file(opening, tmp_path / "texts.csv", tmp_path / "out.jsonl")


def test_an_embedding_model_is_no_classifier(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is an embedding model, without a classifier .*`task: classify`"):
        open_classifier(base)
    with pytest.raises(ConfigError, match="there is no folder"):
        open_classifier(tmp_path / "nowhere")


def test_a_saved_classifier_is_the_same_to_the_bit(one: TextClassifier, many: TextClassifier, tmp_path: Path) -> None:
    for name, classifier in (("one", one), ("many", many)):
        classifier.save(tmp_path / name)
        again = open_classifier(tmp_path / name)
        assert again.settings == classifier.settings
        np.testing.assert_array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    many.save(tmp_path / "one")  # in place of an earlier model
    assert open_classifier(tmp_path / "one").multi_label


def test_a_run_s_model_and_a_saved_one_hold_the_same_bytes(runs: Path, one: TextClassifier, tmp_path: Path) -> None:
    one.save(tmp_path / "saved")
    for path in (runs / "one" / "model").rglob("*"):
        if path.is_file():
            assert (tmp_path / "saved" / path.relative_to(runs / "one" / "model")).read_bytes() == path.read_bytes()


def test_a_model_is_saved_over_nothing_else(runs: Path, one: TextClassifier, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        with pytest.raises(ConfigError, match="is there and is no model folder"):
            one.save(tmp_path / name)
    with pytest.raises(ConfigError, match="belongs to the run"):
        one.save(runs / "one" / "model")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    one.save(tmp_path / "empty")
    assert is_classifier(tmp_path / "empty")
