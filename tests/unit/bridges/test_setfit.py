"""SetFit's heads, pickled here by the classes SetFit uses, give SetFit's probabilities; nothing of a pickle is run.

SetFit's own head class is stood in for by one of the same name and attributes; SetFit itself is not needed.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.tiny import make_model_folder
from torch import nn

from unbroken.base.errors import ConfigError
from unbroken.bridges.setfit import PickleWarning, SetFitModel, is_setfit, read_setfit
from unbroken.models.classifying import classifier_documents, classifier_layout, read_classifier
from unbroken.models.encoder import Encoder
from unbroken.models.writing import save

torch.set_num_threads(1)

RNG = np.random.Generator(np.random.PCG64(0))
ROWS = RNG.standard_normal((30, 32)).astype(np.float32)
THREE, TWO = np.arange(30) % 3, np.arange(30) % 2
WORDS = np.array(["water", "fire", "earth"])[THREE]
COLUMNS = np.stack([THREE == 0, TWO == 0, RNG.random(30) < 0.3], axis=1).astype(int)


class SetFitHead(nn.Module):
    """What SetFit 1.2's head is made of, and how it comes to probabilities."""

    def __init__(self, labels: int, temperature: float = 1.0, bias: bool = True, multitarget: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(32, labels, bias=bias)
        self.in_features, self.out_features, self.bias = 32, labels, bias
        self.temperature, self.eps, self.multitarget = temperature, 1e-5, multitarget
        self._device = torch.device("cpu")

    @torch.no_grad()
    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        logits = self.linear(torch.from_numpy(rows)) / (self.temperature + self.eps)
        return (logits.sigmoid() if self.multitarget else logits.softmax(dim=-1)).numpy()


SetFitHead.__module__ = "setfit.modeling"  # as pickles of SetFit's own name it


@pytest.fixture(autouse=True)
def setfit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the class be found where its pickles say it is."""
    module = types.ModuleType("setfit.modeling")
    module.SetFitHead = SetFitHead  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "setfit", types.ModuleType("setfit"))
    monkeypatch.setitem(sys.modules, "setfit.modeling", module)


def setfit_folder(folder: Path, head: Any, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump(head, folder / "model_head.pkl")
    if config:
        (folder / "config_setfit.json").write_text(json.dumps({"normalize_embeddings": False, "labels": None} | config))
    return folder


def opened(folder: Path) -> SetFitModel:
    with pytest.warns(PickleWarning, match=r"model_head\.pkl is a pickle"):
        return read_setfit(folder, allow_pickle=True)


def ours(found: SetFitModel) -> np.ndarray:
    with torch.no_grad():
        return found.head.probabilities(torch.from_numpy(ROWS)).numpy()


def theirs(head: Any) -> np.ndarray:
    probabilities = head.predict_proba(ROWS)
    return (
        np.stack([each[:, 1] for each in probabilities], axis=1) if isinstance(probabilities, list) else probabilities
    )


HEADS: dict[str, tuple[Callable[[], Any], dict[str, Any], tuple[Any, ...]]] = {
    "numbers": (lambda: LogisticRegression().fit(ROWS, THREE), {}, (0, 1, 2)),
    "numbers with gaps": (lambda: LogisticRegression().fit(ROWS, THREE * 5 - 1), {}, (-1, 4, 9)),
    "texts": (lambda: LogisticRegression().fit(ROWS, WORDS), {}, ("earth", "fire", "water")),
    "named numbers": (lambda: LogisticRegression().fit(ROWS, THREE), {"labels": ["a", "b", "c"]}, ("a", "b", "c")),
    "some of the names": (lambda: LogisticRegression().fit(ROWS, TWO * 2), {"labels": ["a", "b", "c"]}, ("a", "c")),
    "names of texts are not used": (
        lambda: LogisticRegression().fit(ROWS, WORDS),
        {"labels": ["water", "fire", "earth"]},
        ("earth", "fire", "water"),
    ),
    "two": (lambda: LogisticRegression().fit(ROWS, TWO), {}, (0, 1)),
    "yes or no": (lambda: LogisticRegression().fit(ROWS, TWO == 1), {}, (0, 1)),
    "whole numbers as floats": (lambda: LogisticRegression().fit(ROWS, THREE.astype(float)), {}, (0, 1, 2)),
    "float64": (lambda: LogisticRegression().fit(ROWS.astype(np.float64), THREE), {}, (0, 1, 2)),
    "no intercept": (lambda: LogisticRegression(fit_intercept=False).fit(ROWS, THREE), {}, (0, 1, 2)),
    "weighted": (lambda: LogisticRegression(class_weight={np.int64(0): 2.0, 1: 1.0}).fit(ROWS, TWO), {}, (0, 1)),
    "one against the rest": (lambda: OneVsRestClassifier(LogisticRegression()).fit(ROWS, THREE), {}, (0, 1, 2)),
    "one against the other": (lambda: OneVsRestClassifier(LogisticRegression()).fit(ROWS, WORDS == "fire"), {}, (0, 1)),
    "several labels": (lambda: OneVsRestClassifier(LogisticRegression()).fit(ROWS, COLUMNS), {}, (0, 1, 2)),
    "several outputs": (lambda: MultiOutputClassifier(LogisticRegression()).fit(ROWS, COLUMNS), {}, (0, 1, 2)),
    "several names": (
        lambda: OneVsRestClassifier(LogisticRegression()).fit(ROWS, COLUMNS),
        {"labels": ["x", "y", "z"]},
        ("x", "y", "z"),
    ),
    "torch": (lambda: SetFitHead(3), {}, (0, 1, 2)),
    "torch, named": (lambda: SetFitHead(2, temperature=0.25), {"labels": ["no", "yes"]}, ("no", "yes")),
    "torch without bias": (lambda: SetFitHead(3, bias=False), {}, (0, 1, 2)),
    "torch, several labels": (lambda: SetFitHead(3, 2.0, multitarget=True), {}, (0, 1, 2)),
    "torch, float64": (lambda: SetFitHead(3).double().float(), {}, (0, 1, 2)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_probabilities_and_labels_are_setfits(tmp_path: Path, kind: str):
    make, config, labels = HEADS[kind]
    torch.manual_seed(1)
    head = make()
    found = opened(setfit_folder(tmp_path / "model", head, **config))
    assert found.encoder == tmp_path / "model"
    assert found.settings.labels == labels
    assert [type(label) for label in found.settings.labels] == [type(label) for label in labels]
    assert found.settings.kind == ("differentiable" if kind.startswith("torch") else "logistic_regression")
    assert found.settings.multi_label == ("several" in kind)
    np.testing.assert_allclose(ours(found), theirs(head), atol=1e-5)
    if not kind.startswith("torch"):
        predicted = found.head.predict(torch.from_numpy(ROWS)).numpy()
        expected = head.predict(ROWS)
        assert (predicted == expected if "several" in kind else theirs(head).argmax(axis=1) == predicted).all()


@pytest.mark.filterwarnings("ignore:Label:UserWarning")
def test_labels_every_or_no_text_had(tmp_path: Path):
    columns = np.stack([np.zeros(30), COLUMNS[:, 0], np.ones(30)], axis=1).astype(int)
    head = OneVsRestClassifier(LogisticRegression()).fit(ROWS, columns)
    np.testing.assert_allclose(ours(opened(setfit_folder(tmp_path / "model", head))), theirs(head), atol=1e-5)


def test_old_heads_of_one_label_against_the_rest(tmp_path: Path):
    """scikit-learn before 1.8 fitted so with `multi_class="ovr"`; what it had then is put into today's class."""
    rest = OneVsRestClassifier(LogisticRegression()).fit(ROWS, THREE)
    head = LogisticRegression().fit(ROWS, THREE)
    head.coef_ = np.concatenate([each.coef_ for each in rest.estimators_])
    head.intercept_ = np.concatenate([each.intercept_ for each in rest.estimators_])
    head.multi_class = "ovr"
    found = opened(setfit_folder(tmp_path / "model", head))
    np.testing.assert_allclose(ours(found), rest.predict_proba(ROWS), atol=1e-5)


def test_old_heads_of_two_classes_with_a_softmax(tmp_path: Path):
    head = LogisticRegression().fit(ROWS, TWO)
    head.multi_class = "multinomial"
    score = head.decision_function(ROWS)
    found = opened(setfit_folder(tmp_path / "model", head))
    np.testing.assert_allclose(ours(found)[:, 1], 1 / (1 + np.exp(-2 * score)), atol=1e-5)


def test_whether_embeddings_are_normalised_comes_along(tmp_path: Path):
    head = LogisticRegression().fit(ROWS, THREE)
    found = opened(setfit_folder(tmp_path / "model", head, normalize_embeddings=True))
    expected = head.predict_proba(ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True))
    np.testing.assert_allclose(ours(found), expected, atol=1e-5)


def test_saved_again_there_is_no_pickle_and_the_same_model(tmp_path: Path):
    folder = make_model_folder(tmp_path / "model")
    found = opened(setfit_folder(folder, LogisticRegression().fit(ROWS, WORDS), labels=["earth", "fire", "water"]))
    encoder = Encoder.from_pretrained(found.encoder)
    encoder.save_pretrained(tmp_path / "ours")
    save(tmp_path / "ours", classifier_documents(found.settings), found.head.state_dict(), classifier_layout)
    assert not list((tmp_path / "ours").rglob("*.pkl"))
    settings, head = read_classifier(tmp_path / "ours", encoder.dimension)
    assert settings == found.settings
    assert torch.equal(head.probabilities(torch.from_numpy(ROWS)), found.head.probabilities(torch.from_numpy(ROWS)))


class Harm:
    """What a pickle does that is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.place,)


def test_without_the_flag_the_pickle_is_not_even_read(tmp_path: Path):
    folder = setfit_folder(tmp_path / "model", Harm(tmp_path / "harm"))
    with pytest.raises(ConfigError, match=r"model_head\.pkl is a pickle.* say allow_pickle=True"):
        read_setfit(folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore::unbroken.bridges.setfit.PickleWarning")
def test_with_the_flag_nothing_of_the_pickle_is_run(tmp_path: Path):
    harm = Harm(tmp_path / "harm")
    trojan = LogisticRegression().fit(ROWS, THREE)
    trojan.extra = harm
    for head in (harm, [harm], trojan, np.array([harm], dtype=object)):
        folder = setfit_folder(tmp_path / "model", head)
        if head is trojan:  # what it wanted called is noted, and never looked at
            found = read_setfit(folder, allow_pickle=True)
            np.testing.assert_allclose(ours(found), trojan.predict_proba(ROWS), atol=1e-5)
        else:
            with pytest.raises(ConfigError):
                read_setfit(folder, allow_pickle=True)
        assert not (tmp_path / "harm").exists()
        joblib.load(folder / "model_head.pkl")  # the control: this runs it
        os.rmdir(tmp_path / "harm")


def other_heads() -> dict[str, tuple[Any, str]]:
    forest = RandomForestClassifier(2, random_state=0).fit(ROWS, THREE)
    chain = ClassifierChain(LogisticRegression()).fit(ROWS, COLUMNS)
    nested = OneVsRestClassifier(RandomForestClassifier(2, random_state=0)).fit(ROWS, COLUMNS)
    return {
        "forest": (forest, "RandomForestClassifier"),
        "chain": (chain, r"the head is a sklearn\.multioutput\.ClassifierChain; readable are LogisticRegression"),
        "pipeline": (make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, THREE), r"sklearn\.pipeline\.Pip"),
        "forests a label": (nested, r"RandomForestClassifier"),
        "not fitted": (LogisticRegression(), "classes_ is missing: was the head fitted"),
        "a dictionary": ({"coef_": ROWS}, "the head is a dict"),
        "nothing": (None, "the head is a NoneType"),
    }


@pytest.mark.filterwarnings("ignore::unbroken.bridges.setfit.PickleWarning")
@pytest.mark.parametrize("kind", list(other_heads()))
def test_other_heads_are_refused_by_name(tmp_path: Path, kind: str):
    head, message = other_heads()[kind]
    with pytest.raises(ConfigError, match=message) as caught:
        read_setfit(setfit_folder(tmp_path / "model", head), allow_pickle=True)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.filterwarnings("ignore::unbroken.bridges.setfit.PickleWarning")
@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda head: setattr(head, "coef_", head.coef_[:2]), {}, r"weights \(2, 32\) and biases \(3,\) for 3 labels"),
        (lambda head: setattr(head, "coef_", head.coef_ * np.nan), {}, "not every number in it is finite"),
        (lambda head: setattr(head, "intercept_", None), {}, "intercept_ is missing"),
        (lambda head: setattr(head, "classes_", head.classes_ + 0.5), {}, "neither text nor a whole number"),
        (lambda head: None, {"labels": ["a", "b"]}, "class 2 has no name among the 2"),
        (lambda head: None, {"labels": "abc"}, "'labels' is not a list"),
        (lambda head: None, {"labels": ["a", "b", "a"]}, "has each label once"),
    ],
)
def test_heads_that_do_not_fit_together_are_refused(tmp_path: Path, change: Any, config: Any, message: str):
    head = LogisticRegression().fit(ROWS, THREE)
    change(head)
    with pytest.raises(ConfigError, match=message) as caught:
        read_setfit(setfit_folder(tmp_path / "model", head, **config), allow_pickle=True)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.filterwarnings("ignore::unbroken.bridges.setfit.PickleWarning")
def test_a_number_of_names_that_is_not_the_number_of_labels(tmp_path: Path):
    head = OneVsRestClassifier(LogisticRegression()).fit(ROWS, COLUMNS)
    with pytest.raises(ConfigError, match="names 2 labels, the head has 3"):
        read_setfit(setfit_folder(tmp_path / "model", head, labels=["a", "b"]), allow_pickle=True)


def test_a_checkpoint_without_head_says_what_it_lacks(tmp_path: Path):
    folder = make_model_folder(tmp_path / "model")
    assert not is_setfit(folder)
    (folder / "config_setfit.json").write_text("{}")
    assert is_setfit(folder)
    with pytest.raises(ConfigError, match=r"model_head\.pkl is missing; SetFit's checkpoints hold the body only"):
        read_setfit(folder, allow_pickle=True)


WHOLE = {
    "regression": lambda: LogisticRegression().fit(ROWS, WORDS),
    "torch": lambda: SetFitHead(3),
}


@pytest.mark.filterwarnings("ignore::unbroken.bridges.setfit.PickleWarning")
@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str):
    folder = setfit_folder(tmp_path / "model", WHOLE[kind]())
    data = (folder / "model_head.pkl").read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        (folder / "model_head.pkl").write_bytes(data[:length])
        with pytest.raises(ConfigError):
            read_setfit(folder, allow_pickle=True)


@pytest.mark.filterwarnings("ignore::unbroken.bridges.setfit.PickleWarning")
@pytest.mark.parametrize("kind", WHOLE)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path, kind: str):
    folder = setfit_folder(tmp_path / "model", WHOLE[kind]())
    data = (folder / "model_head.pkl").read_bytes()

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), min_size=1, max_size=4))
    def damage(changes: list[tuple[int, int]]) -> None:
        damaged = bytearray(data)
        for place, value in changes:
            damaged[place] = value
        (folder / "model_head.pkl").write_bytes(damaged)
        try:
            read_setfit(folder, allow_pickle=True)
        except ConfigError as error:
            refused.append(str(error))

    refused: list[str] = []
    damage()
    assert len(refused) > 10
    assert not any("\n" in text for text in refused)


def doubled(depth: int) -> Any:
    """Something small whose text, or hash, would take for ever."""
    value: Any = ("x",)
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.filterwarnings("ignore::unbroken.bridges.setfit.PickleWarning")
def test_small_files_that_would_never_end_are_refused(tmp_path: Path):
    head = LogisticRegression().fit(ROWS, THREE)
    nest = pickle.dumps(doubled(60), protocol=4)[2:-1]  # without its first instruction and its last
    frame = nest[9:] if nest[:1] == b"\x95" else nest
    begin, end = b"\x80\x04", b"."
    hostile = {
        "a name": begin + frame + b"\x8c\x01x\x93" + end,
        "a key": begin + b"}" + frame + b"Ns" + end,
        "a member": begin + b"\x8f(" + frame + b"\x90" + end,
        "the head": begin + frame + end,
        "instructions": begin + b"N" * 1_100_000 + end,
        "notes": begin + b"N" + b"\x94" * 1_100_000 + end,
        "length": begin + b"\x8e" + (1 << 62).to_bytes(8, "little") + b"x" + end,
    }
    folder = setfit_folder(tmp_path / "model", head)
    for data in hostile.values():
        (folder / "model_head.pkl").write_bytes(data)
        with pytest.raises(ConfigError) as caught:
            read_setfit(folder, allow_pickle=True)
        assert len(str(caught.value)) < 1000


@pytest.mark.filterwarnings("ignore::unbroken.bridges.setfit.PickleWarning")
def test_an_array_larger_than_its_file_is_refused_before_it_is_made(tmp_path: Path):
    head = LogisticRegression().fit(ROWS, THREE)
    folder = setfit_folder(tmp_path / "model", head)
    data = (folder / "model_head.pkl").read_bytes()
    shape = b"K\x03K \x86"  # (3, 32)
    assert data.count(shape) == 1
    (folder / "model_head.pkl").write_bytes(
        data.replace(shape, b"\x8a\x06" + (1 << 44).to_bytes(6, "little") + b"K \x86")
    )
    with pytest.raises(ConfigError, match="more than there are"):
        read_setfit(folder, allow_pickle=True)


@pytest.mark.filterwarnings("ignore::unbroken.bridges.setfit.PickleWarning")
def test_a_pipe_is_not_waited_on(tmp_path: Path):
    folder = setfit_folder(tmp_path / "model", None)
    (folder / "model_head.pkl").unlink()
    os.mkfifo(folder / "model_head.pkl")
    with pytest.raises(ConfigError, match=r"model_head\.pkl is missing"):
        read_setfit(folder, allow_pickle=True)
