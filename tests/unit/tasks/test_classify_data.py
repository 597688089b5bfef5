"""Labels of every kind, and one clear line, with exit code 3, about what cannot be learned from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unbroken.base.errors import ConfigError, DataError
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.data import LabelledTexts, Labels

ROWS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(8)]


def config(**changes: Any) -> ClassifyConfig:
    return ClassifyConfig.from_values({"model": "m", "output_dir": "o", "train_data": "t"} | changes)


def read(rows: list[dict[str, Any]], **changes: Any) -> LabelledTexts:
    return LabelledTexts(rows, config(**changes))


def test_text_labels_in_the_order_of_the_alphabet() -> None:
    data = read([{"text": "x", "label": name} for name in ("b", "a", "b", "a")])
    assert data.labels.names == ("a", "b")
    assert data.targets.tolist() == [1, 0, 1, 0]


def test_numbers_are_labels_in_their_order() -> None:
    data = read([{"text": "x", "label": number} for number in (10, 9, 10, 9)])
    assert data.labels.names == (9, 10)


def test_names_for_lists_and_vectors() -> None:
    named = read([{"text": "x", "label": ["b", "a"]}, {"text": "y", "label": []}, {"text": "z", "label": ["a"]}])
    assert named.labels.names == ("a", "b")
    assert named.targets.tolist() == [[1, 1], [0, 0], [1, 0]]
    vectors = read([{"text": "x", "label": [1, 0]}, {"text": "y", "label": [0, 1]}], labels=["first", "second"])
    assert vectors.labels.names == ("first", "second")
    assert vectors.class_names == ["first", "second"]


def lists(*labels: list[Any], **changes: Any) -> LabelledTexts:
    return read([{"text": "x", "label": label} for label in labels], **changes)


def test_lists_of_whole_numbers_are_labels() -> None:
    data = lists([10], [20, 30], [])
    assert (data.labels.names, data.labels.vectors) == ((10, 20, 30), False)
    assert data.targets.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("labels", "vectors"),
    [
        (([1, 0], [0, 1]), True),
        (([0, 1, 1], [1, 1, 0]), True),
        (([1], [0]), False),  # one value each
        (([0, 1], [1]), False),  # of two lengths
        (([0, 1], [1, 2]), False),  # the first row alone would do
        (([], [1, 0]), False),
    ],
)
def test_vectors_are_told_by_the_whole_column(labels: tuple[list[int], ...], vectors: bool) -> None:
    assert lists(*labels).labels.vectors is vectors


def test_labels_that_look_like_a_vector_in_one_row() -> None:
    data = lists([0, 1], [1, 2])
    assert data.labels.names == (0, 1, 2)
    assert data.targets.tolist() == [[1, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("number", [int, str])
def test_numbers_may_have_names(number: Any) -> None:
    names = ["negative", "neutral", "positive"]
    data = read([{"text": "x", "label": number(i)} for i in (2, 0, 1, 2, 0, 1)], labels=names)
    assert data.labels.names == tuple(names)
    assert data.targets.tolist() == [2, 0, 1, 2, 0, 1]
    assert data.class_names[0] == "positive"
    held_out = LabelledTexts([{"text": "y", "label": number(1)}], data.config, data.labels)
    assert held_out.class_names == ["neutral"]
    assert lists([0], [1, 2], labels=names).targets.tolist() == [[1, 0, 0], [0, 1, 1]]


def test_numbers_that_are_names_are_those() -> None:
    assert read([{"text": "x", "label": i} for i in (1, 2)], labels=[2, 1]).targets.tolist() == [1, 0]


def test_names_that_were_not_given_have_no_numbers() -> None:
    training = read(ROWS)
    held_out = LabelledTexts([{"text": "x", "label": 0}], config(), training.labels)
    with pytest.raises(DataError, match=r"holds 0 \(a whole number\), which is none of the 2 classes \(a, b: text\)"):
        held_out.require_like(training)


@pytest.mark.parametrize(("kind", "other"), [(int, str), (str, int)])
def test_numbers_and_their_text_are_one_class(kind: Any, other: Any) -> None:
    training = read([{"text": "x", "label": kind(i)} for i in (0, 0, 1, 1)])
    held_out = LabelledTexts([{"text": "x", "label": other(1)}], config(), training.labels)
    assert held_out.targets.tolist() == [1]


def test_a_text_that_is_no_class_s_alone_is_refused() -> None:
    labels = Labels((0, "0", "1"), several=False)
    assert LabelledTexts([{"text": "x", "label": 0}], config(), labels).targets.tolist() == [0]
    assert LabelledTexts([{"text": "x", "label": "0"}], config(), labels).targets.tolist() == [1]
    assert LabelledTexts([{"text": "x", "label": 1}], config(), labels).targets.tolist() == [2]
    with pytest.raises(DataError, match="holds true where a label is expected"):
        _ = LabelledTexts([{"text": "x", "label": True}], config(), labels).targets


def test_texts_that_are_numbers_are_in_the_order_of_numbers() -> None:
    assert read([{"text": "x", "label": str(i)} for i in (10, 9, -1)]).labels.names == ("-1", "9", "10")
    assert read([{"text": "x", "label": label} for label in ("10", "9", "a")]).labels.names == ("10", "9", "a")
    assert lists(["10"], ["9", "10"]).labels.names == ("9", "10")


def test_drawn_examples_are_the_same_for_a_seed() -> None:
    one, again, other = (read(ROWS, samples_per_label=2, seed=seed).chosen.tolist() for seed in (1, 1, 4))
    assert one == again
    assert one != other
    assert np.bincount(read(ROWS).targets[one]).tolist() == [2, 2]


REFUSED = {
    "one class only": ([{"text": "x", "label": "a"}] * 3, {}, "all 3 rows are of one class ('a')"),
    "a class with one example": ([*ROWS, {"text": "x", "label": "c"}], {}, "row 9 is the only example of class 'c'"),
    "empty text": ([*ROWS, {"text": " ", "label": "a"}], {}, "row 9, column 'text' holds an empty text"),
    "no label column": ([{"text": "x"}], {}, "has no column 'label'"),
    "label null": ([*ROWS, {"text": "x", "label": None}], {}, "row 9, column 'label' holds null"),
    "label empty": ([*ROWS, {"text": "x", "label": ""}], {}, "row 9, column 'label' holds ''"),
    "mixed labels": ([*ROWS, {"text": "x", "label": 3}], {}, "row 9, column 'label' holds 3 where a label like"),
    "a fraction": ([{"text": "x", "label": 0.5}], {}, "where a label (text or a whole number) is expected"),
    "a bool": ([{"text": "x", "label": True}], {}, "where a label (text or a whole number) is expected"),
    "more asked than there are": (ROWS, {"samples_per_label": 5}, "asks for 5 examples of each class, and 'a' has 4"),
    "not among the names": (ROWS, {"labels": ["a", "c"]}, "holds 'b', which is none of the 2 classes (a, c)"),
    "a vector too short": (
        [{"text": "x", "label": [1, 0, 0]}, {"text": "y", "label": [1, 0]}],
        {},
        "row 2, column 'label' holds [1, 0] where 3 values of 0 or 1",
    ),
    "names for other vectors": (
        [{"text": "x", "label": [1, 0, 0]}, {"text": "y", "label": [0, 1, 0]}],
        {"labels": ["a", "b"]},
        "column 'label' holds vectors of 3 values, and labels gives 2 names",
    ),
    "lists of two kinds": (
        [{"text": "x", "label": [10]}, {"text": "y", "label": ["a"]}],
        {},
        "row 2, column 'label' holds 'a' where a label like the first (10)",
    ),
    "a null in a list": ([{"text": "x", "label": ["a", None]}], {}, "row 1, column 'label' holds null where a label"),
    "a number without a name": (
        [{"text": "x", "label": number} for number in (0, 1, 2)],
        {"labels": ["a", "b"]},
        "row 3, column 'label' holds 2, and labels names the classes 0 to 1",
    ),
    "a negative number": ([{"text": "x", "label": -1}], {"labels": ["a", "b"]}, "labels names the classes 0 to 1"),
    "a number where names are numbers": (
        [{"text": "x", "label": number} for number in (0, 1)],
        {"labels": ["1", "2"]},
        "row 1, column 'label' holds 0 (a whole number), which is none of the 2 classes (1, 2: text)",
    ),
    "all the same lists": ([{"text": "x", "label": ["a"]}] * 3, {}, "all 3 rows have the same labels"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case: str) -> None:
    rows, changes, message = REFUSED[case]
    data = read(rows, **changes)
    with pytest.raises(DataError) as refusal:
        _ = (data.texts, data.chosen)
    assert message in str(refusal.value)
    assert refusal.value.exit_code == 3
    assert refusal.value.next_step


def test_evaluation_data_with_an_unknown_label() -> None:
    training = read(ROWS)
    held_out = LabelledTexts([{"text": "x", "label": "aa"}], config(), training.labels)
    with pytest.raises(DataError, match=r"holds 'aa', which is none of the 2 classes \(a, b\); it could never be"):
        held_out.require_like(training)


def test_evaluation_data_without_a_class() -> None:
    training = read(ROWS)
    held_out = LabelledTexts([{"text": "x", "label": "a"}], config(), training.labels)
    assert "no row of 1 of the classes (b)" in str(held_out.require_like(training))
    with pytest.raises(DataError, match=r"no row of 1 of the classes \(b\): nothing is measured") as refusal:
        held_out.require_every_class(training)
    assert refusal.value.exit_code == 3


REFUSED_KEYS = {
    "end to end without gradients": ({"end_to_end": True}, "add `head: differentiable`"),
    "iterations of texts": ({"pairs": "all", "num_iterations": 5}, "num_iterations counts pairs"),
    "pairs for a loss of batches": ({"pairs": "sampled", "loss": "batch_all_triplet"}, "needs batches"),
    "decay of rows that are not trained": ({"weight_decay": 0.1}, "active_vocabulary: false"),
    "calibration on nothing": ({"calibrate": True}, "add `eval_data: FILE`"),
    "the best of one head": ({"load_best_model_at_end": True, "eval_data": "e"}, "a logistic regression has one"),
    "no metric": ({"metric_for_best_model": "acuracy"}, "did you mean 'accuracy'?"),
    "no metric to show": ({"metric": "f1_makro"}, "metric: 'f1_makro' is not measured; did you mean 'f1_macro'?"),
    "a list with no metric": ({"metric": ["accuracy", "bleu"]}, "metric: 'bleu' is not measured; give one of accuracy"),
    "a weight of nothing": ({"class_weight": {"a": 1.0, "b": 0.0}}, "the weight of 'b' is 0.0: give finite numbers"),
    "a negative weight": ({"class_weight": {1: -2}}, "the weight of 1 is -2: give finite numbers above 0"),
    "an infinite weight": ({"class_weight": {"a": float("inf")}}, "the weight of 'a' is inf: give finite numbers"),
    "a weight that is no number": ({"class_weight": {"a": float("nan")}}, "the weight of 'a' is nan: give finite"),
    "a learning rate of nothing": ({"body_learning_rate": [2e-5, 0.0]}, "give numbers above 0"),
    "three batch sizes": ({"batch_size": [1, 2, 3]}, "batch_size"),
    "another tool's name": ({"learning_rate": 1e-5}, "did you mean 'body_learning_rate'?"),
    "a role of embeddings": ({"columns": {"anchor": "text"}}, "a classifier reads text and label, not 'anchor'"),
}


@pytest.mark.parametrize("case", REFUSED_KEYS, ids=str)
def test_keys_refused(case: str) -> None:
    changes, message = REFUSED_KEYS[case]
    with pytest.raises(ConfigError) as refusal:
        config(**changes)
    assert message in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_metrics_and_weights_that_there_are() -> None:
    found = config(metric=["log_loss", "f1_macro"], class_weight={"a": 1e-3, 2: 3})
    assert (found.metric, found.class_weight) == (["log_loss", "f1_macro"], {"a": 1e-3, "2": 3.0})


def test_what_is_left_open_follows_from_the_kind_of_pairs() -> None:
    ours, theirs = config(), config(num_iterations=20)
    assert (ours.pairs, theirs.pairs) == ("all", "sampled")
    assert (theirs.batch_size, theirs.num_epochs, theirs.body_learning_rate) == ((16, 2), (1, 16), (2e-5, 1e-5))
    assert (theirs.loss, theirs.dropout) == ("cosine_similarity", None)
    assert ours.both("batch_size")[0] == 64
    assert config(batch_size=[8, 4]).both("batch_size") == (8, 4)
    assert config(num_epochs=1).min_steps == 1  # who says how many passes means it
    assert config(num_epochs=None).min_steps == 24
