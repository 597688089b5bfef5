"""Unbroken on drawn examples, in a process of its own: `python ours.py MODEL TRAIN TEST OUT [SETTINGS]`.

SETTINGS is a JSON object of configuration keys. It is a whole run: commits are synced to disk, the model is published
and read again for the predictions.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

from measure import read, result, spent


def main() -> None:
    model, train, test, out = sys.argv[1:5]
    settings: dict[str, Any] = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
    import torch

    import unbroken
    from unbroken.models.classifying import read_classifier
    from unbroken.models.encoder import Encoder
    from unbroken.models.inference import encode_texts

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    marks = [spent()]
    values = {"task": "classify", "model": model, "train_data": train, "output_dir": f"{out}.run"} | settings
    marks.append(spent())
    ended = unbroken.train(values | {"threads": torch.get_num_threads()}, report=lambda event: None)
    marks.append(spent())
    rows = read(test)
    encoder = Encoder.from_pretrained(ended.model)
    classifier, head = read_classifier(Path(ended.model), encoder.dimension)
    embeddings = encode_texts(
        encoder,
        [row["text"] for row in rows],
        prompt="",
        batch_size=32,
        normalize=False,
        truncate_dim=None,
        show_progress=False,
    )
    predicted = [str(classifier.labels[index]) for index in head.predict(embeddings).tolist()]
    marks.append(spent())
    versions = {name: importlib.metadata.version(name) for name in ("unbroken", "transformers", "scikit-learn")}
    found = result(settings, marks, predicted, rows) | {
        "versions": versions | {"torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
