"""Every head SetFit makes, read by Unbroken: the same predictions and probabilities?

`python heads.py write MODEL OUT` where SetFit is installed writes a folder a head and what SetFit says to eight texts;
`python heads.py compare OUT` where Unbroken is installed reads each and prints the largest difference, and fails where
a probability differs by more than 1e-5 or a prediction at all.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 1e-5
TEXTS = [
    "the river is wide",
    "a bright cloud",
    "copper engine noise",
    "paper on the table",
    "the winter morning",
    "an orange lantern",
    "stone bridge over water",
    "rain and storm today",
    "machine with gears",
    "a wooden chair",
    "cold snow in january",
    "fruit salad",
]
QUESTIONS = ["a flowing stream", "thunder", "motor oil", "sofa and bed", "frost", "apple", "", "another thing"]
WORDS = ["water", "sky", "machine", "furniture", "season", "fruit"] * 2
THREE, TWO = [0, 1, 2] * 4, [0, 1] * 6
SEVERAL = [[int(i % 2 == 0), int(i % 3 == 0), int(i % 4 == 1)] for i in range(12)]
CONSTANT = [[row[0], 0, 1, row[2]] for row in SEVERAL]
NAMES = ["a", "b", "c"]
TORCH: dict[str, Any] = {"use_differentiable_head": True}


def heads() -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """Yield name, labels of the texts, and what SetFit is told."""
    yield "texts", WORDS, {}
    yield "texts, named", WORDS, {"labels": sorted(set(WORDS))}
    yield "numbers", THREE, {}
    yield "numbers, named", THREE, {"labels": NAMES}
    yield "two", TWO, {}
    yield "two texts", [["no", "yes"][label] for label in TWO], {}
    yield "normalised", THREE, {"normalize_embeddings": True}
    yield "weighted", [0] * 7 + [1] * 3 + [2] * 2, {"head_params": {"class_weight": "balanced", "C": 3.0}}
    for strategy in ("one-vs-rest", "multi-output"):
        yield strategy, SEVERAL, {"multi_target_strategy": strategy}
    yield "one-vs-rest, named", SEVERAL, {"multi_target_strategy": "one-vs-rest", "labels": NAMES}
    yield "one-vs-rest, constant", CONSTANT, {"multi_target_strategy": "one-vs-rest"}
    yield "one-vs-rest, one label", THREE, {"multi_target_strategy": "one-vs-rest"}
    yield "one-vs-rest, two classes", TWO, {"multi_target_strategy": "one-vs-rest"}
    yield "torch", THREE, TORCH | {"head_params": {"out_features": 3}}
    yield "torch, warm", TWO, TORCH | {"head_params": {"temperature": 0.5}, "labels": ["no", "yes"]}
    yield "torch, no bias", THREE, TORCH | {"head_params": {"out_features": 3, "bias": False}}
    floats = [[float(value) for value in row] for row in SEVERAL]
    yield "torch, several", floats, TORCH | {"multi_target_strategy": "one-vs-rest", "head_params": {"out_features": 3}}


def write(model: str, out: Path) -> None:
    """Fit each head on the untrained body, save it, and write down what SetFit predicts."""
    import numpy as np
    import torch
    from setfit import SetFitModel

    for name, labels, told in heads():
        torch.manual_seed(0)
        classifier = SetFitModel.from_pretrained(model, device="cpu", **told)
        with warnings.catch_warnings(action="ignore"):
            classifier.fit(TEXTS, labels, num_epochs=3, batch_size=4, head_learning_rate=0.05, show_progress_bar=False)
        classifier.save_pretrained(out / name)
        probabilities = np.asarray(classifier.predict_proba(QUESTIONS, as_numpy=True))
        predicted = classifier.predict(QUESTIONS)
        said = {
            "probabilities": (probabilities[..., 1] if probabilities.ndim == 3 else probabilities).tolist(),
            "predicted": predicted.tolist() if hasattr(predicted, "tolist") else list(predicted),
        }
        (out / f"{name}.json").write_text(json.dumps(said), encoding="utf-8")


def compare(out: Path) -> int:
    """Print how far Unbroken is from SetFit on each head; return 1 if too far."""
    import torch

    from unbroken.bridges.setfit import read_setfit
    from unbroken.models.encoder import Encoder

    failed = 0
    for place in sorted(out.glob("*.json")):
        said = json.loads(place.read_bytes())
        with warnings.catch_warnings(action="ignore"):
            found = read_setfit(place.with_suffix(""), allow_pickle=True)
        embeddings = Encoder.from_pretrained(found.encoder).encode(QUESTIONS, convert_to_numpy=False)
        with torch.no_grad():
            probabilities, predicted = found.head.probabilities(embeddings), found.head.predict(embeddings)
        labels = found.settings.labels
        ours = predicted.int().tolist() if found.settings.multi_label else [labels[index] for index in predicted]
        largest = float((probabilities - torch.tensor(said["probabilities"])).abs().max())
        same = ours == said["predicted"]
        failed += not same or largest > LARGEST
        print(f"{place.stem:26} {largest:.1e}  {'same predictions' if same else 'OTHER PREDICTIONS'}")
    return int(failed > 0)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(compare(Path(sys.argv[2])))
