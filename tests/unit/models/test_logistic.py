"""Heads fitted in closed form: scikit-learn's own probabilities, edges that have nothing to fit, and equal bits."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from threadpoolctl import threadpool_info

from unbroken.base.errors import ConfigError, TrainingError
from unbroken.models.classifying import LinearHead
from unbroken.models.logistic import class_weights, fit_logistic

torch.set_num_threads(1)


def sample(num_labels: int, per_label: int = 8, dimension: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(num_labels))
    targets = np.arange(num_labels * per_label) % num_labels
    centres = rng.standard_normal((num_labels, dimension))
    return centres[targets] + rng.standard_normal((len(targets), dimension)), targets


def fitted(rows: np.ndarray, targets: np.ndarray, num_labels: int, **how: Any) -> LinearHead:
    fit = fit_logistic(rows, targets, num_labels=num_labels, **how)
    shape = {key: how[key] for key in ("multi_label", "one_vs_rest", "normalize_embeddings") if key in how}
    head = LinearHead(num_labels, rows.shape[1], **shape)
    head.load_state_dict({"weight": fit.weight, "bias": fit.bias, "temperature": torch.ones(())})
    return head


def probabilities(head: LinearHead, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return head.double().probabilities(torch.from_numpy(rows).double()).numpy()


@pytest.mark.parametrize("num_labels", [2, 3, 7])
@pytest.mark.parametrize(
    "how",
    [{}, {"C": 0.03}, {"class_weight": "balanced"}, {"class_weight": {1: 5.0}}],
    ids=["default", "C", "balanced", "weights"],
)
def test_one_label_a_text_is_scikit_learns_regression(num_labels: int, how: dict[str, Any]):
    rows, targets = sample(num_labels)
    rows, targets = rows[:-3], targets[:-3]  # unequal classes, so that weights matter
    theirs = LogisticRegression(**how).fit(rows, targets)
    ours = fitted(rows, targets, num_labels, **how)
    np.testing.assert_allclose(probabilities(ours, rows), theirs.predict_proba(rows), atol=1e-6)
    assert (ours.predict(torch.from_numpy(rows)).numpy() == theirs.predict(rows)).all()


@pytest.mark.parametrize("how", [{}, {"class_weight": "balanced"}])
@pytest.mark.parametrize("strategy", [OneVsRestClassifier, MultiOutputClassifier])
def test_several_labels_are_scikit_learns_strategies(strategy: Any, how: dict[str, Any]):
    rows, targets = sample(4)
    columns = np.stack([targets == 0, targets > 1, np.arange(len(targets)) % 5 == 0], axis=1).astype(int)
    theirs = strategy(LogisticRegression(**how)).fit(rows, columns)
    expected = theirs.predict_proba(rows)
    if isinstance(expected, list):
        expected = np.stack([each[:, 1] for each in expected], axis=1)
    ours = fitted(rows, columns, 3, multi_label=True, **how)
    np.testing.assert_allclose(probabilities(ours, rows), expected, atol=1e-6)
    assert (ours.predict(torch.from_numpy(rows)).numpy() == theirs.predict(rows)).all()


@pytest.mark.parametrize("num_labels", [2, 5])
def test_one_against_the_rest_is_scikit_learns(num_labels: int):
    rows, targets = sample(num_labels)
    theirs = OneVsRestClassifier(LogisticRegression()).fit(rows, targets)
    ours = fitted(rows, targets, num_labels, one_vs_rest=True)
    np.testing.assert_allclose(probabilities(ours, rows), theirs.predict_proba(rows), atol=1e-6)
    assert (ours.predict(torch.from_numpy(rows)).numpy() == theirs.predict(rows)).all()


def test_embeddings_are_normalised_if_asked():
    rows, targets = sample(3)
    theirs = LogisticRegression().fit(rows / np.linalg.norm(rows, axis=1, keepdims=True), targets)
    ours = fitted(rows, targets, 3, normalize_embeddings=True)
    expected = theirs.predict_proba(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities(ours, rows), expected, atol=1e-6)


def test_labels_no_text_has_are_never_the_answer():
    rows, targets = sample(3)
    ours = fitted(rows, targets + (targets > 0), 5)  # labels 0, 2 and 3
    theirs = LogisticRegression().fit(rows, targets).predict_proba(rows)
    found = probabilities(ours, rows)
    assert found[:, [1, 4]].max() < 0.05
    np.testing.assert_allclose(found[:, [0, 2, 3]] / found[:, [0, 2, 3]].sum(axis=1, keepdims=True), theirs, atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"one_vs_rest": True}])
def test_one_label_only_is_always_the_answer(how: dict[str, Any]):
    rows, _ = sample(2)
    ours = fitted(rows, np.full(len(rows), 1), 3, **how)
    assert (ours.predict(torch.from_numpy(rows).float()) == 1).all()
    assert (ours.weight == 0).all()


def test_a_column_of_one_kind_says_so():
    rows, targets = sample(4)
    columns = np.stack([targets == 0, np.zeros(len(targets)), np.ones(len(targets))], axis=1)
    fit = fit_logistic(rows, columns, multi_label=True, class_weight="balanced")
    odds = math.log(len(targets) + 1)
    assert fit.bias[1:].tolist() == pytest.approx([-odds, odds])
    assert (fit.weight[1:] == 0).all()
    assert (fit.weight[0] != 0).any()
    assert fit.notes == ()


@pytest.mark.parametrize(("multi_label", "count"), [(False, "a logistic regression"), (True, "3 logistic regressions")])
def test_too_few_iterations_are_one_note(multi_label: bool, count: str):
    rows, targets = sample(3)
    targets = np.eye(3)[targets] if multi_label else targets
    fit = fit_logistic(rows, targets, multi_label=multi_label, max_iter=1)
    assert fit.notes == (f"{count} had not converged after 1 iterations: raise the head's max_iter, or lower C",)
    assert fit_logistic(rows, targets, multi_label=multi_label).notes == ()


def test_embeddings_that_are_not_finite_are_refused():
    rows, targets = sample(2)
    rows[3, 4] = np.nan
    with pytest.raises(TrainingError, match="not all finite"):
        fit_logistic(rows, targets)


def test_the_inputs_are_left_alone_and_the_result_is_float32():
    rows, targets = sample(3)
    before = rows.copy()
    rows.flags.writeable = targets.flags.writeable = False
    fit = fit_logistic(rows, targets, normalize_embeddings=True)
    assert (rows == before).all()
    assert (fit.weight.dtype, fit.bias.dtype) == (torch.float32, torch.float32)
    assert (tuple(fit.weight.shape), tuple(fit.bias.shape)) == ((3, 12), (3,))


def test_the_solver_has_one_thread_and_aligned_inputs(monkeypatch: pytest.MonkeyPatch):
    seen = []
    fit = LogisticRegression.fit

    def spy(self: Any, rows: np.ndarray, targets: np.ndarray) -> Any:
        threads = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
        seen.append((threads, rows.ctypes.data % 64, targets.ctypes.data % 64, rows.dtype, rows.flags.c_contiguous))
        return fit(self, rows, targets)

    monkeypatch.setattr(LogisticRegression, "fit", spy)
    rows, targets = sample(3)
    fit_logistic(np.asfortranarray(rows), targets)
    assert seen == [({1}, 0, 0, np.dtype(np.float64), True)]


SCRIPT = """
import sys
junk = [bytearray(int(sys.argv[1]) * 37 % 9999 + 1) for _ in range(int(sys.argv[1]))]
import hashlib
import numpy as np
from unbroken.models.logistic import fit_logistic
rng = np.random.Generator(np.random.PCG64(3))
targets = np.arange(616) % 77
memory = np.empty(616 * 384 * 4 + 64, np.uint8)[int(sys.argv[1]) % 16 :]
rows = memory[: 616 * 384 * 4].view(np.float32).reshape(616, 384)
rows[...] = rng.standard_normal(rows.shape) / 20
rows[0, 0] += np.float32(float(sys.argv[2]))
fit = fit_logistic(rows, targets, C=10.0, max_iter=30)
print(hashlib.sha256(fit.weight.numpy().tobytes() + fit.bias.numpy().tobytes()).hexdigest())
"""


def in_another_process(junk: int, threads: int, nudge: float = 0.0) -> str:
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [sys.executable, "-c", SCRIPT, str(junk), str(nudge)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_every_process_fits_the_same_bits():
    """Whatever its memory looks like, and whatever number of threads numpy's BLAS was loaded with."""
    first = in_another_process(junk=0, threads=1)
    assert {in_another_process(junk, threads) for junk, threads in ((5, 1), (12, 2), (333, 2))} == {first}
    assert in_another_process(junk=0, threads=1, nudge=1e-6) != first


def test_class_weights_are_those_of_scikit_learn():
    targets = torch.tensor([0, 0, 0, 2])
    assert class_weights(targets, 3, None) is None
    assert class_weights(targets, 3, {2: 4.0}).tolist() == [1, 1, 4]
    np.testing.assert_allclose(class_weights(targets, 3, "balanced"), [4 / 6, 1, 2])  # n / (2 classes there are * n_k)
    columns = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 1]])
    assert class_weights(columns, 3, "balanced", multi_label=True).tolist() == [2, 1, 1]
    with pytest.raises(ConfigError, match="beyond the 3"):
        class_weights(targets, 3, {3: 1.0})
