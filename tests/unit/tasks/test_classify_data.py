"""Labels of every kind, and one clear line, with exit code 3, about what cannot be learned from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unbroken.base.errors import ConfigError, DataError
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.data import LabelledTexts

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
        [{"text": "x", "label": [1, 0, 0]}, {"text": "y", "label": [1]}],
        {},
        "row 2, column 'label' holds [1] where 3 values of 0 or 1",
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


REFUSED_KEYS = {
    "end to end without gradients": ({"end_to_end": True}, "add `head: differentiable`"),
    "iterations of texts": ({"pairs": "all", "num_iterations": 5}, "num_iterations counts pairs"),
    "pairs for a loss of batches": ({"pairs": "sampled", "loss": "batch_all_triplet"}, "needs batches"),
    "decay of rows that are not trained": ({"weight_decay": 0.1}, "active_vocabulary: false"),
    "calibration on nothing": ({"calibrate": True}, "add `eval_data: FILE`"),
    "the best of one head": ({"load_best_model_at_end": True, "eval_data": "e"}, "a logistic regression has one"),
    "no metric": ({"metric_for_best_model": "acuracy"}, "did you mean 'accuracy'?"),
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


def test_what_is_left_open_follows_from_the_kind_of_pairs() -> None:
    ours, theirs = config(), config(num_iterations=20)
    assert (ours.pairs, theirs.pairs) == ("all", "sampled")
    assert (theirs.batch_size, theirs.num_epochs, theirs.body_learning_rate) == ((16, 2), (1, 16), (2e-5, 1e-5))
    assert (theirs.loss, theirs.dropout) == ("cosine_similarity", None)
    assert ours.both("batch_size")[0] == 64
    assert config(batch_size=[8, 4]).both("batch_size") == (8, 4)
    assert config(num_epochs=1).min_steps == 1  # who says how many passes means it
    assert config(num_epochs=None).min_steps == 24
