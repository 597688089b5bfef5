"""A report of a small run: its figures are the run's own, it says what is missing, and it writes nothing."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.exact.runs import train
from tests.exact.test_classify import labelled, several, values
from tests.tiny import make_model_folder
from tests.unit.cli.bad_input import listing

import unbroken
from unbroken.base.errors import CannotContinueError, ConfigError, DataError
from unbroken.plan.shots import draw_shots
from unbroken.tasks.classify import reporting
from unbroken.tasks.classify.report import THE_RUN, Report, report
from unbroken.views import classify_report as view

BASELINES = ["majority", "tfidf_regression", "untuned_nearest_neighbour", "untuned_regression"]
HELD_OUT = labelled(40, seed=1)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    make_model_folder(root / "tiny")
    rows = {"train": labelled(), "test": HELD_OUT, "several": several(), "several_test": several(20)}
    for name, found in rows.items():
        write(root / f"{name}.jsonl", found)
    files = {"train_data": str(root / "train.jsonl"), "eval_data": str(root / "test.jsonl"), "samples_per_label": 5}
    assert train(values(root / "tiny", **files), root / "run").finished
    return root


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def made(workplace: Path) -> Report:
    before = listing(workplace / "run")
    found = report(workplace / "run")
    assert listing(workplace / "run") == before, "a report writes nothing into the run"
    return found


def text_of(found: Report) -> str:
    screen = Console(width=110, highlight=False, file=io.StringIO(), record=True)
    view.show(found, screen)
    return screen.export_text()


def test_the_figures_are_those_of_the_run(made: Report, workplace: Path) -> None:
    """What `train` measured after its last step, to the bit."""
    last = max((workplace / "run" / "eval").iterdir(), key=lambda path: path.name)
    recorded = json.loads(last.read_text(encoding="utf-8"))
    flat = made.flat()
    assert {name: flat[name] for name in made.measures} == {name: recorded["metrics"][name] for name in made.measures}
    assert made.scores[THE_RUN].accuracy == flat["accuracy"]
    assert made.scores[THE_RUN].f1_macro == pytest.approx(flat["f1_macro"])
    assert flat["accuracy_low"] < flat["accuracy"] < flat["accuracy_high"]


def test_everything_is_there(made: Report) -> None:
    flat = json.loads(json.dumps(made.flat()))
    assert list(made.scores) == [THE_RUN, *BASELINES]
    for name in BASELINES:
        assert flat[f"baselines.{name}.accuracy"] + flat[f"baselines.{name}.ahead"] == pytest.approx(flat["accuracy"])
        assert flat[f"baselines.{name}.ahead_low"] <= flat[f"baselines.{name}.ahead_high"]
    assert np.sum(flat["confusion_matrix"]) == 40
    assert np.trace(flat["confusion_matrix"]) / 40 == flat["accuracy"]
    assert sum(one["count"] for one in flat["confusions"]) == 40 - np.trace(flat["confusion_matrix"])
    assert [flat[f"classes.class {k}.support"] for k in range(3)] == [10, 10, 20]
    assert sum(one["count"] for one in flat["confidence"]) == 40
    assert [flat[f"shots.{shots}.examples"] for shots in (1, 2, 4, 5)] == [3, 6, 12, 15]
    assert flat["shots.5.accuracy"] == flat["baselines.untuned_regression.accuracy"]
    rows = labelled()
    for one in flat["mislabelled"]:
        assert rows[one["row"] - 1] == {"text": one["text"], "label": one["label"]}
        assert one["where"] == f"train.jsonl: line {one['row']}"
        assert one["suggested"] != one["label"]
    assert flat["mislabelled"], "random texts are never labelled alike"
    assert flat["left_out"] == flat["notes"] == []


def test_the_list_of_suspects_may_be_cut_but_not_their_number(
    made: Report, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made.mislabelled is not None
    assert made.disagreeing == len(made.mislabelled) > 2
    assert made.standing_out == sum(one.stands_out for one in made.mislabelled)
    monkeypatch.setattr(reporting, "LISTED_SUSPECTS", 2)
    cut = report(workplace / "run")
    assert cut.mislabelled == made.mislabelled[:2]
    assert (cut.disagreeing, cut.standing_out) == (made.disagreeing, made.standing_out)


def test_the_same_again(made: Report, workplace: Path) -> None:
    assert unbroken.report(workplace / "run").flat() == made.flat()


def test_other_rows(workplace: Path) -> None:
    """Texts that were trained on are told of; those of the file that were not drawn are new."""
    rows = labelled()
    drawn = draw_shots([row["label"] for row in rows], 5, 7)
    found = report(workplace / "run", HELD_OUT[:10] + rows)
    assert found.rows == 40
    assert f"{len(drawn)} texts of" in found.notes[0]


def test_without_rows_only_the_training_is_looked_at(workplace: Path, tmp_path: Path) -> None:
    train(values(workplace / "tiny", train_data=str(workplace / "train.jsonl")), tmp_path / "run")
    found = report(tmp_path / "run")
    assert found.mislabelled
    assert not found.scores
    assert found.curve == ()
    assert "nothing is measured" in " ".join(found.left_out)
    assert "unbroken report RUN FILE" in text_of(found)


def test_rows_that_calibrated_the_model_are_told(workplace: Path, tmp_path: Path) -> None:
    files = {"train_data": str(workplace / "train.jsonl"), "eval_data": str(workplace / "test.jsonl")}
    train(values(workplace / "tiny", **files, calibrate=True), tmp_path / "run")
    assert "chose the step or the temperature" in report(tmp_path / "run").notes[0]
    assert report(tmp_path / "run", HELD_OUT[:25]).notes == []


def test_several_labels(workplace: Path, tmp_path: Path) -> None:
    files = {"train_data": str(workplace / "several.jsonl"), "eval_data": str(workplace / "several_test.jsonl")}
    train(values(workplace / "tiny", **files), tmp_path / "run")
    found = report(tmp_path / "run")
    assert list(found.scores) == [THE_RUN, *BASELINES]
    assert found.matrix is None
    assert found.mislabelled is None
    assert "with several labels to a text" in " ".join(found.left_out)
    assert sum(one.count for one in found.bins) == 20 * 3
    text = text_of(found)
    assert "micro-F1" in text
    assert "all labels of a text" in text


def test_the_base_model_moved(workplace: Path, made: Report, tmp_path: Path) -> None:
    """What needs it is left out and said; where it is now can be said; another one does not pass for it."""
    shutil.copytree(workplace, tmp_path / "there")
    there = tmp_path / "there"
    gone = values(there / "gone", train_data=str(there / "train.jsonl"), eval_data=str(there / "test.jsonl"))
    shutil.move(there / "tiny", there / "gone")
    train(gone | {"samples_per_label": 5}, there / "new")
    shutil.move(there / "gone", there / "elsewhere")
    found = report(there / "new")
    assert list(found.scores) == [THE_RUN, *BASELINES[:2]]
    assert found.mislabelled is None
    assert "is gone" in found.left_out[0]
    assert "--set model=FOLDER" in found.left_out[0]
    again = report(there / "new", inputs={"model": str(there / "elsewhere")}).flat()
    expected = made.flat()
    assert {key: again[key] for key in again if key != "run"} == {
        key: expected[key] for key in expected if key != "run"
    }
    make_model_folder(there / "other", seed=1)
    other = report(there / "new", inputs={"model": str(there / "other")})
    assert "is not the one the run began with" in other.left_out[0]
    assert list(other.scores) == [THE_RUN, *BASELINES[:2]]


def test_refused(workplace: Path, tmp_path: Path) -> None:
    run = workplace / "run"
    rows = labelled()
    rows[4] = rows[4] | {"text": "something else"}
    write(tmp_path / "changed.jsonl", rows)
    with pytest.raises(CannotContinueError, match=r"the first row that differs is row 5; .* --set train_data=FILE"):
        report(run, inputs={"train_data": str(tmp_path / "changed.jsonl")})
    with pytest.raises(ConfigError, match="seed cannot be set here"):
        report(run, inputs={"seed": 3})
    with pytest.raises(DataError, match="'class 9', which is none of the 3 classes"):
        report(run, [{"text": "x", "label": "class 9"}])
    with pytest.raises(ConfigError, match="report is of finished models"):
        report(f"{run}@8")
    asked = values(workplace / "tiny", train_data=str(workplace / "train.jsonl"))
    train(asked, tmp_path / "half", stop_after=3)
    with pytest.raises(ConfigError, match=r"has no finished model yet; let it finish: unbroken train"):
        report(tmp_path / "half")


def test_as_text(made: Report) -> None:
    text = text_of(made)
    for part in (
        "How good it is",
        "Classes",
        "Confusions",
        "probabilities be trusted",
        "How accuracy grows",
        "mislabelled",
    ):
        assert part in text
    assert f"{made.scores[THE_RUN].accuracy:.4f}" in text
    assert "\x1b" not in text


def test_data_cannot_steer_the_terminal(made: Report) -> None:
    """Neither rich's markup nor control characters in a text or a label mean anything."""
    assert view.plain("[bold]a\x1b[31m\r\n\tb[/nothing]").plain == "[bold]a [31m b[/nothing]"
    assert len(view.plain("x" * 1000).plain) == view.LONGEST_TEXT


def test_many_classes_have_no_matrix(workplace: Path, tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": f"c{i % 15:02}"} for i, row in enumerate(labelled(60))]
    write(tmp_path / "train.jsonl", rows)
    files = {"train_data": str(tmp_path / "train.jsonl"), "eval_data": str(tmp_path / "train.jsonl")}
    train(values(workplace / "tiny", **files, max_steps=2, batch_size=30), tmp_path / "run")
    found = report(tmp_path / "run")
    assert found.matrix is None
    assert 0 < len(found.confusions) <= 20
    counts = [one.count for one in found.confusions]
    assert counts == sorted(counts, reverse=True)
    assert "60 texts of train.jsonl were trained on" in text_of(found)
