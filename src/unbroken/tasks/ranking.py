"""How well queries find their documents: the measures of sentence-transformers' InformationRetrievalEvaluator.

Shape suffixes: Q queries, N documents of the corpus, D dimensions, K ranks (the best K documents of a query, best
first), T documents of a tile.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unbroken.base.errors import DataError
from unbroken.base.stopping import poll
from unbroken.tasks.similarity import Vectors, as_float32

Similarity = Literal["cosine", "dot"]

# A tile of scores is QUERIES_AT_ONCE x DOCUMENTS_AT_ONCE float32: 64 MB, whatever the size of the corpus.
QUERIES_AT_ONCE = 1024
DOCUMENTS_AT_ONCE = 16384

MRR_DEPTH, NDCG_DEPTH, MAP_DEPTH = 10, 10, 100


def retrieval(
    queries_QD: Vectors,
    corpus_ND: Vectors,
    relevant: Sequence[Collection[int] | NDArray[Any]],
    ks: Sequence[int] = (1, 3, 5, 10),
    similarity: Similarity = "cosine",
) -> dict[str, float]:
    """Rank the corpus for each query and return the measures averaged over queries, each in [0, 1].

    `relevant[i]` holds the corpus rows that answer query i; queries with none are left out of every average.
    Documents of equal score rank by row, lower first, so the result does not hang on the sorting algorithm.

    * `accuracy@k`, for each k of `ks`: whether a relevant document is among the best k
    * `precision@k`: relevant ones among the best k, over k (also where the corpus has fewer than k documents)
    * `recall@k`: relevant ones among the best k, over all relevant ones
    * `mrr@10`: 1 / rank of the first relevant one
    * `ndcg@10`: the sum of 1 / log2(1 + rank) over the relevant ones found, over the largest possible such sum
      (Järvelin and Kekäläinen 2002, doi 10.1145/582415.582418)
    * `map@100`: the sum of precision@rank over the relevant ones found, over min(100, number of relevant ones)

    Raises `DataError` when no query has a relevant document, or the corpus is empty.
    """
    assert len(relevant) == len(queries_QD), "one collection of relevant rows per query"
    wanted = [np.unique(np.fromiter(rows, dtype=np.int64)) for rows in relevant]
    judged = np.array([query for query, rows in enumerate(wanted) if len(rows)], dtype=np.int64)
    if not len(judged) or not len(corpus_ND):
        raise DataError(
            f"nothing to retrieve: {len(judged)} of {len(wanted)} queries have a relevant document, "
            f"the corpus has {len(corpus_ND)}",
            next_step="check that the evaluation data name documents of this corpus",
        )
    hits_QK = np.zeros((len(judged), max((MAP_DEPTH, *ks))), dtype=bool)
    for start in range(0, len(judged), QUERIES_AT_ONCE):
        tile = judged[start : start + QUERIES_AT_ONCE]
        best = nearest(queries_QD[tile], corpus_ND, hits_QK.shape[1], similarity)
        for row, (query, documents) in enumerate(zip(tile, best, strict=True), start):
            hits_QK[row, : len(documents)] = np.isin(documents, wanted[query])
    counts_Q = np.array([len(wanted[query]) for query in judged])
    return _measures(hits_QK, counts_Q, ks)


def nearest(queries_QD: Vectors, corpus_ND: Vectors, k: int, similarity: Similarity) -> NDArray[np.int64]:
    """Return for each query the rows of the min(k, N) most similar documents, best first, ties by row: [Q, K].

    Reads the corpus tile by tile. Both it and the queries may be numpy memory maps.
    """
    queries_QD = _comparable(queries_QD, similarity)
    best_scores_QK = queries_QD.new_empty(len(queries_QD), 0)
    best_rows_QK = torch.empty(len(queries_QD), 0, dtype=torch.int64, device=queries_QD.device)
    for start in range(0, len(corpus_ND), DOCUMENTS_AT_ONCE):
        poll()
        documents_TD = _comparable(corpus_ND[start : start + DOCUMENTS_AT_ONCE], similarity)
        scores_QK, rows_QK = _best(queries_QD @ documents_TD.T, k)
        # Earlier tiles hold lower rows and come first, so a stable sort keeps ties in order of row.
        scores_QK = torch.cat([best_scores_QK, scores_QK], dim=1)
        rows_QK = torch.cat([best_rows_QK, rows_QK + start], dim=1)
        best_scores_QK, order_QK = (part[:, :k] for part in scores_QK.sort(dim=1, descending=True, stable=True))
        best_rows_QK = rows_QK.gather(1, order_QK)
    return np.asarray(best_rows_QK.cpu().numpy())


def _comparable(vectors: Vectors, similarity: Similarity) -> Tensor:
    tensor = as_float32(vectors)
    return F.normalize(tensor) if similarity == "cosine" else tensor


def _best(scores_QT: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each row and their columns, by descending score, then ascending column."""
    if scores_QT.shape[1] <= k:
        scores, columns = scores_QT.sort(dim=1, descending=True, stable=True)
        return scores, columns
    # One more than asked: if it equals the last one kept, topk has chosen among equals as it pleased.
    scores_QK, columns_QK = scores_QT.topk(k + 1, dim=1)
    tied_Q = scores_QK[:, k - 1] == scores_QK[:, k]
    columns_QK[tied_Q] = scores_QT[tied_Q].sort(dim=1, descending=True, stable=True).indices[:, : k + 1]
    columns_QK = columns_QK[:, :k].sort(dim=1).values
    scores_QK, order_QK = scores_QT.gather(1, columns_QK).sort(dim=1, descending=True, stable=True)
    return scores_QK, columns_QK.gather(1, order_QK)


def _measures(hits_QK: NDArray[np.bool_], counts_Q: NDArray[np.int64], ks: Sequence[int]) -> dict[str, float]:
    """Return every measure from which ranks hit a relevant document and how many relevant ones each query has."""
    ranks_K = np.arange(1, hits_QK.shape[1] + 1)
    found_QK = hits_QK.cumsum(axis=1)
    measures = {}
    for k in ks:
        measures[f"accuracy@{k}"] = (found_QK[:, k - 1] > 0).mean()
        measures[f"precision@{k}"] = (found_QK[:, k - 1] / k).mean()
        measures[f"recall@{k}"] = (found_QK[:, k - 1] / counts_Q).mean()
    first_QK = hits_QK & (found_QK == 1)
    measures[f"mrr@{MRR_DEPTH}"] = (first_QK / ranks_K)[:, :MRR_DEPTH].sum(axis=1).mean()
    gains_K = 1 / np.log2(ranks_K[:NDCG_DEPTH] + 1)
    ideal_Q = gains_K.cumsum()[np.minimum(counts_Q, NDCG_DEPTH) - 1]
    measures[f"ndcg@{NDCG_DEPTH}"] = (hits_QK[:, :NDCG_DEPTH] @ gains_K / ideal_Q).mean()
    precision_QK = hits_QK * found_QK / ranks_K
    possible_Q = np.minimum(counts_Q, MAP_DEPTH)
    measures[f"map@{MAP_DEPTH}"] = (precision_QK[:, :MAP_DEPTH].sum(axis=1) / possible_Q).mean()
    return {name: float(value) for name, value in measures.items()}
