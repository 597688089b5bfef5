"""Our measures against sentence-transformers 6.2's evaluators, given a model that only looks its vectors up."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unbroken.tasks import ranking
from unbroken.tasks.ranking import retrieval
from unbroken.tasks.similarity import graded, triplet_accuracy

evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
util = pytest.importorskip("sentence_transformers.util")

torch.set_num_threads(1)

SIMILARITIES = ["cosine", "dot", "euclidean", "manhattan"]


class LookUp:
    """What the evaluators ask of a model; a "text" is the name of its vector."""

    similarity_fn_name = "cosine"
    similarity = staticmethod(util.cos_sim)
    model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *ignored: None)

    def __init__(self, **columns):
        self.vectors = {f"{name}{row}": vector for name, rows in columns.items() for row, vector in enumerate(rows)}

    def encode(self, texts, convert_to_tensor=False, **ignored):
        rows = np.stack([self.vectors[text] for text in texts])
        return torch.from_numpy(rows) if convert_to_tensor else rows

    encode_query = encode_document = encode


def names(column, count):
    return [f"{column}{row}" for row in range(count)]


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def peer_retrieval(queries, corpus, relevant):
    """Ask the peer; ids sort as their rows do, for it breaks ties by id."""
    evaluator = evaluation.InformationRetrievalEvaluator(
        queries={f"{row:06}": text for row, text in enumerate(names("q", len(queries)))},
        corpus={f"{row:06}": text for row, text in enumerate(names("d", len(corpus)))},
        relevant_docs={f"{query:06}": {f"{row:06}" for row in rows} for query, rows in enumerate(relevant)},
        write_csv=False,
    )
    found = evaluator(LookUp(q=queries, d=corpus))
    return {name.removeprefix("cosine_"): value for name, value in found.items()}


@pytest.mark.parametrize(("num_queries", "num_documents"), [(1, 1), (7, 5), (40, 90), (60, 400)])
@pytest.mark.parametrize("most_relevant", [1, 12, 150])
def test_retrieval(num_queries, num_documents, most_relevant, monkeypatch):
    monkeypatch.setattr(ranking, "QUERIES_AT_ONCE", 16)
    monkeypatch.setattr(ranking, "DOCUMENTS_AT_ONCE", 128)
    generator = np.random.default_rng(num_queries + most_relevant)
    queries, corpus = gaussian(1, num_queries, 16), gaussian(2, num_documents, 16)
    counts = generator.integers(0, min(most_relevant, num_documents) + 1, num_queries)
    counts[0] = 1
    relevant = [set(generator.choice(num_documents, count, replace=False).tolist()) for count in counts]
    mine = retrieval(queries, corpus, relevant)
    assert mine == pytest.approx(peer_retrieval(queries, corpus, relevant), abs=1e-12)


def test_retrieval_with_equal_scores():
    """Signs of the axes: cosines are exact and each document has some fifty doubles, past every cut-off."""
    axes = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)
    corpus = axes[np.random.default_rng(1).integers(0, 6, 300)]
    relevant = [set(range(row, 300, 7)) for row in range(6)]
    assert retrieval(axes, corpus, relevant) == pytest.approx(peer_retrieval(axes, corpus, relevant), abs=1e-12)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("levels", [2, 6, 1000])
def test_graded(similarity, levels):
    first, second = gaussian(3, 200, 24), gaussian(4, 200, 24)
    second[50:100] = second[:50]
    first[50:100] = first[:50]  # equal pairs, so equal similarities
    scores = np.random.default_rng(5).integers(0, levels, 200) / levels
    evaluator = evaluation.EmbeddingSimilarityEvaluator(
        names("a", 200), names("b", 200), scores.tolist(), similarity_fn_names=[similarity], write_csv=False
    )
    expected = evaluator(LookUp(a=first, b=second))
    assert graded(first, second, scores, similarity) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_triplet_accuracy(similarity):
    anchors, positives, negatives = gaussian(6, 150, 24), gaussian(7, 150, 24), gaussian(8, 150, 24)
    positives[:20] = negatives[:20]
    evaluator = evaluation.TripletEvaluator(
        names("a", 150), names("p", 150), names("n", 150), similarity_fn_names=[similarity], write_csv=False
    )
    expected = evaluator(LookUp(a=anchors, p=positives, n=negatives))[f"{similarity}_accuracy"]
    mine = triplet_accuracy(anchors, positives, negatives, similarity)[f"{similarity}_accuracy"]
    assert mine == pytest.approx(expected, abs=1e-7)  # the peer averages in float32
