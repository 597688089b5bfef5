"""Judges models by sentence-transformers' own evaluator: all of them by the same one, on the same held-out pairs."""

from __future__ import annotations

import json
from pathlib import Path

from bench.arms.recorder import Recorder


def main() -> None:
    recorder = Recorder.from_arguments()
    spec = recorder.spec

    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    torch.set_num_threads(spec["threads"])
    rows = [json.loads(line) for line in Path(spec["eval_data"]).read_text(encoding="utf-8").splitlines()]
    evaluator = InformationRetrievalEvaluator(
        queries={str(i): row["anchor"] for i, row in enumerate(rows)},
        corpus={str(i): row["positive"] for i, row in enumerate(rows)},
        relevant_docs={str(i): {str(i)} for i in range(len(rows))},
        write_csv=False,
    )
    for name, path in spec["models"].items():
        model = SentenceTransformer(path, device="cpu")
        model.max_seq_length = spec["max_length"]
        recorder.emit("evaluated", model=name, ndcg=evaluator(model)["cosine_ndcg@10"])


if __name__ == "__main__":
    main()
