"""Retrieval measures against their definitions, query by query, and the order of documents of equal score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.base.errors import DataError
from unbroken.tasks import ranking
from unbroken.tasks.ranking import nearest, retrieval

torch.set_num_threads(1)


def by_hand(queries, corpus, relevant, ks):
    """One query at a time, in the words of the definitions; dot products of whole numbers, so scores are exact."""
    rows = []
    for query, wanted in zip(queries, relevant, strict=True):
        if not wanted:
            continue
        order = sorted(range(len(corpus)), key=lambda row: (-float(query @ corpus[row]), row))
        hits = [row in wanted for row in order] + [False] * 100
        measures = {}
        for k in ks:
            measures[f"accuracy@{k}"] = float(any(hits[:k]))
            measures[f"precision@{k}"] = sum(hits[:k]) / k
            measures[f"recall@{k}"] = sum(hits[:k]) / len(wanted)
        measures["mrr@10"] = next((1 / rank for rank, hit in enumerate(hits[:10], 1) if hit), 0.0)
        gain = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits[:10], 1) if hit)
        measures["ndcg@10"] = gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(10, len(wanted)) + 1))
        precisions = [sum(hits[:rank]) / rank for rank, hit in enumerate(hits[:100], 1) if hit]
        measures["map@100"] = sum(precisions) / min(100, len(wanted))
        rows.append(measures)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


@st.composite
def searches(draw):
    """Small whole numbers make many documents score alike; some queries want nothing, some what is not there."""
    num_queries, num_documents = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    vectors = np.random.default_rng(draw(st.integers(0, 999))).integers(-2, 3, (num_queries + num_documents, 3))
    wanted = st.sets(st.integers(0, num_documents + 3), max_size=15)
    relevant = [{draw(st.integers(0, num_documents - 1))}]
    relevant += [draw(wanted) for _ in range(num_queries - 1)]
    return vectors[:num_queries].astype(np.float32), vectors[num_queries:].astype(np.float32), relevant


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 9), st.integers(1, 45))
def test_measures_follow_their_definitions_whatever_the_tiles(search, queries_at_once, documents_at_once):
    queries, corpus, relevant = search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "QUERIES_AT_ONCE", queries_at_once)
        patch.setattr(ranking, "DOCUMENTS_AT_ONCE", documents_at_once)
        found = retrieval(queries, corpus, relevant, ks=(1, 2, 10), similarity="dot")
    assert found == pytest.approx(by_hand(queries, corpus, relevant, (1, 2, 10)), abs=1e-12)
    assert all(type(value) is float for value in found.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 60), st.integers(1, 30), st.integers(1, 4))
def test_equal_scores_rank_by_row_whatever_the_tiles(seed, documents_at_once, k, num_values):
    corpus = np.random.default_rng(seed).integers(0, num_values, (50, 1)).astype(np.float32)
    queries = np.array([[1.0], [-1.0], [0.0]], dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "DOCUMENTS_AT_ONCE", documents_at_once)
        found = nearest(queries, corpus, k, "dot")
    expected = [np.lexsort((np.arange(50), -(corpus @ query))) for query in queries]
    assert found.tolist() == [order[:k].tolist() for order in expected]


def test_the_names_and_a_perfect_ranking():
    vectors = np.eye(4, dtype=np.float32)
    found = retrieval(vectors, vectors, [{0}, {1}, {2}, {3}])
    assert found == {
        **{f"accuracy@{k}": 1.0 for k in (1, 3, 5, 10)},
        **{f"precision@{k}": pytest.approx(1 / k) for k in (1, 3, 5, 10)},
        **{f"recall@{k}": 1.0 for k in (1, 3, 5, 10)},
        "mrr@10": 1.0,
        "ndcg@10": 1.0,
        "map@100": 1.0,
    }


def test_cosine_is_blind_to_length_and_a_dot_product_is_not():
    queries, corpus = np.array([[1.0, 1.0]]), np.array([[1.0, 1.0], [9.0, 0.0]])
    assert nearest(queries, corpus, 2, "cosine").tolist() == [[0, 1]]
    assert nearest(queries, corpus, 2, "dot").tolist() == [[1, 0]]


def test_tensors_arrays_and_memory_maps_give_the_same(tmp_path):
    generator = np.random.default_rng(3)
    queries = generator.standard_normal((5, 8)).astype(np.float32)
    corpus = generator.standard_normal((30, 8)).astype(np.float32)
    relevant = [np.array([query, 2 * query + 9, query]) for query in range(5)]
    np.save(tmp_path / "corpus.npy", corpus)
    expected = retrieval(queries, corpus, relevant)
    assert retrieval(torch.from_numpy(queries), torch.from_numpy(corpus), relevant) == expected
    assert retrieval(queries, np.load(tmp_path / "corpus.npy", mmap_mode="r"), relevant) == expected
    assert retrieval(queries, corpus, [set(rows.tolist()) for rows in relevant]) == expected


def test_queries_that_want_nothing_do_not_count():
    vectors = np.eye(3, dtype=np.float32)
    assert retrieval(vectors, vectors, [{0}, set(), {2}])["accuracy@1"] == 1.0


@pytest.mark.parametrize(("relevant", "num_documents"), [([set(), set()], 2), ([{0}, {1}], 0)])
def test_nothing_to_retrieve_is_refused(relevant, num_documents):
    with pytest.raises(DataError, match="nothing to retrieve"):
        retrieval(np.ones((2, 3)), np.ones((num_documents, 3)), relevant)
