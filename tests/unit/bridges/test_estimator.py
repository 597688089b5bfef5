"""`unbroken.Classifier` among scikit-learn's own: searches, pipelines, cross-validation, and folders in and out."""

from __future__ import annotations

import copy
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from tests.tiny import WORDS, make_model_folder

import unbroken
from unbroken.base.errors import CannotContinueError, ConfigError, DataError, UnbrokenError
from unbroken.bridges.estimator import OWN
from unbroken.bridges.setfit import PickleWarning
from unbroken.models.encoder import Encoder
from unbroken.run.stop import StopRequest

NAMES = ["red", "green", "blue"]


def corpus(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts whose words tell their class."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS[10 * (i % 3) :][:10], k=5)) for i in range(count)]
    return texts, [NAMES[i % 3] for i in range(count)]


X, Y = corpus(30)
HELD_OUT, TRUTH = corpus(12, seed=1)
MATRIX = np.array([[i % 2, i // 2 % 2, int(i % 3 == 0)] for i in range(30)])
SETS = [[name for name, applies in zip(NAMES, row, strict=True) if applies] for row in MATRIX.tolist()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def quick(model: Path, **changes: Any) -> unbroken.Classifier:
    return unbroken.Classifier(
        model, **{"batch_size": 8, "max_steps": 4, "body_learning_rate": 1e-3, "seed": 0, "threads": 1} | changes
    )


@pytest.fixture(scope="module")
def fitted(model: Path) -> unbroken.Classifier:
    return quick(model).fit(X, Y)


@pytest.fixture(scope="module")
def several(model: Path) -> unbroken.Classifier:
    return quick(model).fit(X, MATRIX)


def test_importing_unbroken_does_not_import_scikit_learn() -> None:
    script = "import sys, unbroken; assert 'Classifier' in dir(unbroken); print('sklearn' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"


def test_every_parameter_is_a_key_of_the_configuration(model: Path) -> None:
    keys = unbroken.Classifier(model).get_params().keys() - set(OWN)
    assert keys <= unbroken.ClassifyConfig.model_fields.keys()
    assert len(keys) > 20


def test_it_learns_and_answers_as_estimators_do(fitted: unbroken.Classifier) -> None:
    assert is_classifier(fitted)
    assert fitted.classes_.tolist() == ["blue", "green", "red"]
    found, probabilities = fitted.predict(HELD_OUT), fitted.predict_proba(HELD_OUT)
    assert found.tolist() == fitted.classes_[probabilities.argmax(axis=1)].tolist()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-14)
    assert fitted.score(HELD_OUT, TRUTH) == np.mean(found == np.array(TRUTH))
    assert fitted.score(X, Y) > 0.6
    assert fitted.ended_.finished


def test_what_was_left_open_is_what_a_configuration_leaves_open(
    model: Path, tmp_path: Path, fitted: unbroken.Classifier
) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(X, Y, strict=True)]
    values = {"batch_size": 8, "max_steps": 4, "body_learning_rate": 1e-3, "seed": 0, "threads": 1}
    config = unbroken.ClassifyConfig(model=str(model), output_dir=str(tmp_path / "run"), train_data=rows, **values)
    assert unbroken.train(config).finished
    again = unbroken.Classifier.from_pretrained(tmp_path / "run")
    np.testing.assert_array_equal(again.predict_proba(HELD_OUT), fitted.predict_proba(HELD_OUT))


def test_parameters_are_kept_as_given_and_cloned(model: Path) -> None:
    given = {"batch_size": (8, 4), "class_weight": {"red": 2.0}, "settings": {"max_grad_norm": 0.5}}
    one = quick(model, **given)
    other = clone(one.set_params(max_steps=3))
    assert other.get_params() == one.get_params()
    assert other.batch_size == (8, 4)
    assert other.fit(X, Y).get_params() == one.get_params()


def test_numbers_of_numpy_are_numbers(model: Path) -> None:
    plain = quick(model, class_weight={3: 2.0, 7: 1.0, 11: 1.0})
    labels = np.array([3, 7, 11])[[NAMES.index(name) for name in Y]]
    weights = {np.int64(3): np.float32(2.0), np.int64(7): 1.0, np.int64(11): 1.0}
    numpy = quick(model, max_steps=np.int64(4), batch_size=np.int64(8), class_weight=weights)
    expected = plain.fit(X, labels.tolist()).predict_proba(HELD_OUT)
    np.testing.assert_array_equal(numpy.fit(X, labels).predict_proba(HELD_OUT), expected)
    assert numpy.classes_.tolist() == [3, 7, 11]
    assert numpy.predict(HELD_OUT).dtype == np.int64
    other = quick(model).fit(X, labels)
    assert not np.array_equal(other.predict_proba(HELD_OUT), expected)  # the weights have a part in it


@pytest.mark.parametrize("kind", [np.array, lambda x: np.array(x, dtype=object), pd.Series, tuple])
def test_texts_and_labels_in_any_sequence(kind: Any, model: Path, fitted: unbroken.Classifier) -> None:
    again = quick(model).fit(kind(X), kind(Y))
    np.testing.assert_array_equal(again.predict_proba(kind(HELD_OUT)), fitted.predict_proba(HELD_OUT))
    assert again.predict(kind(HELD_OUT)).tolist() == fitted.predict(HELD_OUT).tolist()


def test_cross_validation_pipelines_and_searches(model: Path) -> None:
    scores = cross_val_score(quick(model), np.array(X), Y, cv=3, error_score="raise")
    assert scores.shape == (3,)
    assert scores.mean() > 0.5
    losses = cross_val_score(quick(model), X, Y, cv=2, scoring="neg_log_loss", error_score="raise")
    assert np.isfinite(losses).all()
    shouted = make_pipeline(FunctionTransformer(lambda texts: [text.upper() for text in texts]), quick(model))
    grid = {"classifier__max_steps": np.array([1, 4]), "classifier__class_weight": ["balanced"]}
    search = GridSearchCV(shouted, grid, cv=2, error_score="raise").fit(X, Y)
    assert search.best_params_["classifier__max_steps"] in (1, 4)
    assert search.predict(HELD_OUT).shape == (12,)


def test_any_number_of_labels(model: Path, several: unbroken.Classifier) -> None:
    assert several.classes_.tolist() == [0, 1, 2]
    found = several.predict(X)
    assert found.tolist() == (several.predict_proba(X) >= 0.5).astype(int).tolist()
    assert several.score(X, MATRIX) == np.mean((found == MATRIX).all(axis=1))
    folds = cross_val_predict(quick(model), X, MATRIX, cv=3)
    assert folds.shape == MATRIX.shape


@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, pd.DataFrame, np.ndarray.tolist, lambda m: m.astype(bool)])
def test_a_matrix_in_any_form(kind: Any, model: Path, several: unbroken.Classifier) -> None:
    again = quick(model).fit(X, kind(MATRIX))
    np.testing.assert_array_equal(again.predict_proba(X), several.predict_proba(X))
    assert again.score(X, kind(MATRIX)) == several.score(X, MATRIX)


def test_lists_and_sets_of_labels(model: Path, several: unbroken.Classifier) -> None:
    lists, sets = quick(model).fit(X, SETS), quick(model).fit(X, [set(names) for names in SETS])
    assert lists.classes_.tolist() == ["blue", "green", "red"]
    np.testing.assert_array_equal(lists.predict_proba(X), sets.predict_proba(X))
    columns = [NAMES.index(name) for name in lists.classes_]
    assert lists.score(X, SETS) == sets.score(X, [set(names) for names in SETS])
    assert lists.score(X, SETS) == np.mean((lists.predict(X) == MATRIX[:, columns]).all(axis=1))
    with pytest.raises(DataError, match=r"y\[1\] holds 'purple', which is none of the 3 classes"):
        lists.score(X[:2], [["red"], ["purple"]])


def test_names_for_the_columns_of_a_matrix(model: Path) -> None:
    named = quick(model, labels=NAMES).fit(X, MATRIX)
    assert named.classes_.tolist() == NAMES


@pytest.mark.parametrize("several_labels", [False, True])
def test_saved_and_read_again_it_is_the_same_to_the_bit(
    several_labels: bool, fitted: unbroken.Classifier, several: unbroken.Classifier, tmp_path: Path
) -> None:
    one, other = (several, fitted) if several_labels else (fitted, several)
    one.save(tmp_path / "model")
    again = unbroken.Classifier.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(HELD_OUT), one.predict_proba(HELD_OUT))
    np.testing.assert_array_equal(again.predict(HELD_OUT), one.predict(HELD_OUT))
    assert again.classes_.dtype == one.classes_.dtype
    assert again.classes_.tolist() == one.classes_.tolist()
    assert not np.array_equal(other.predict_proba(HELD_OUT), one.predict_proba(HELD_OUT))


def test_sentence_transformers_loads_what_was_saved(fitted: unbroken.Classifier, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    fitted.save(tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(HELD_OUT)
    np.testing.assert_allclose(theirs, fitted.classifier_.encoder.encode(HELD_OUT), atol=1e-5)


def test_a_copy_is_fitted_too(fitted: unbroken.Classifier) -> None:
    np.testing.assert_array_equal(copy.deepcopy(fitted).predict_proba(X), fitted.predict_proba(X))


def test_nothing_is_left_behind(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quick(model, max_steps=1).fit(X, Y)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError):
        quick(model).fit(X, ["red"] * 30)
    assert list(tmp_path.iterdir()) == []


def test_with_a_folder_a_fit_is_a_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after its second step, the fit goes on where it was, and ends with the bits of one left alone."""
    run = tmp_path / "run"

    def stop_after_two(self: StopRequest) -> bool:
        journal = run / "journal.jsonl"
        if journal.exists() and journal.read_text().count('"kind":"step"') >= 2:
            self.signal = self.signal or signal.SIGTERM
            self.ask("the test")
        return self.requested

    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "before_step", stop_after_two)
        with pytest.raises(SystemExit) as stopped:
            quick(model, output_dir=run).fit(X, Y)
    assert stopped.value.code == 75
    fitted = quick(model, output_dir=run).fit(X, Y)
    assert fitted.ended_.proof["segments"] == 2
    np.testing.assert_array_equal(fitted.predict_proba(HELD_OUT), quick(model).fit(X, Y).predict_proba(HELD_OUT))
    before = (run / "journal.jsonl").read_bytes()
    assert quick(model, output_dir=run).fit(X, Y).ended_.finished
    assert (run / "journal.jsonl").read_bytes() == before  # there was nothing left to do
    with pytest.raises(CannotContinueError, match="the training data are not those"):
        quick(model, output_dir=run).fit(X, Y[1:] + Y[:1])
    with pytest.raises(CannotContinueError, match="max_steps"):
        quick(model, output_dir=run, max_steps=3).fit(X, Y)


def test_ctrl_c_is_ctrl_c(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an `Exception`, which cross-validation would take for a bad score."""

    def interrupt(self: StopRequest) -> bool:
        self.signal = signal.SIGINT
        self.ask("the test")
        return True

    monkeypatch.setattr(StopRequest, "before_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(quick(model), X, Y, cv=2)


def test_not_fitted_yet(model: Path, tmp_path: Path) -> None:
    for use in (
        lambda: quick(model).predict(X),
        lambda: quick(model).predict_proba(X),
        lambda: quick(model).score(X, Y),
        lambda: quick(model).save(tmp_path / "x"),
    ):
        with pytest.raises(NotFittedError):
            use()


@pytest.mark.parametrize(
    ("texts", "labels", "line"),
    [
        ("river", Y, "X is a single text; give a list of texts"),
        (X[:3], Y[:2], "X has 3 texts and y 2 labels; give one for each"),
        ([*X[:2], None], Y[:3], r"X\[2\] is null, where a text is expected"),
        ([*X[:2], 7], Y[:3], r"X\[2\] is 7, where a text is expected"),
        ([], [], "X holds no text"),
        (np.array(X)[:, None], Y, "X has 2 dimensions, where a list of texts is expected"),
        (pd.DataFrame({"text": X}), Y, r"X has 2 dimensions.*; give one column of it: X\['text'\]"),
        ([*X[:3], " "], Y[:4], "row 4, column 'text' holds an empty text"),
        (X, ["red"] * 30, "all 30 rows are of one class"),
        (X, [*Y[:29], "purple"], "is the only example of class 'purple'"),
        (X, [*Y[:29], None], "row 30, column 'label' holds null where a label"),
        (X, np.arange(90).reshape(30, 3), "y has 3 columns and holds more than 0 and 1"),
    ],
)
def test_bad_texts_and_labels(texts: Any, labels: Any, line: str, model: Path) -> None:
    with pytest.raises(DataError, match=line):
        quick(model).fit(texts, labels)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"head": "linear"}, "head: 'linear' is not valid"),
        ({"end_to_end": True}, "end_to_end needs a head that has gradients"),
        ({"settings": {"bach_size": 4}}, "unknown key 'bach_size'; did you mean 'batch_size'"),
        ({"model": "./nowhere"}, "model: there is no folder"),
    ],
)
def test_bad_parameters(change: dict[str, Any], line: str, model: Path) -> None:
    with pytest.raises(ConfigError, match=line):
        quick(model).set_params(**change).fit(X, Y)


def test_setfit_s_folder_is_read_if_its_pickle_may_be(model: Path, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "setfit")
    embeddings = Encoder.from_pretrained(folder).encode(X)
    head = LogisticRegression().fit(embeddings, Y)
    joblib.dump(head, folder / "model_head.pkl")
    (folder / "config_setfit.json").write_text(json.dumps({"normalize_embeddings": False, "labels": None}))
    with pytest.raises(ConfigError, match="is a pickle"):
        unbroken.Classifier.from_pretrained(folder)
    with pytest.warns(PickleWarning):
        found = unbroken.Classifier.from_pretrained(folder, allow_pickle=True)
    assert found.predict(X).tolist() == head.predict(embeddings).tolist()
    np.testing.assert_allclose(found.predict_proba(X), head.predict_proba(embeddings), atol=1e-5)
    found.save(tmp_path / "ours")
    assert not list((tmp_path / "ours").rglob("*.pkl"))
    again = unbroken.Classifier.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(again.predict_proba(X), found.predict_proba(X))


def test_a_folder_without_a_classifier(model: Path) -> None:
    with pytest.raises(UnbrokenError, match="is an embedding model, without a classifier"):
        unbroken.Classifier.from_pretrained(model)
