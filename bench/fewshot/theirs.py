"""SetFit's own trainer on drawn examples, in a process of its own: `python theirs.py MODEL TRAIN TEST OUT [SETTINGS]`.

SETTINGS is a JSON object of `TrainingArguments`. Writes accuracy, predictions, seconds and CPU seconds of loading, of
training and of the whole process, and versions. Nothing of Unbroken is imported: it runs where SetFit is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from measure import read, result, spent


def main() -> None:
    model, train, test, out = sys.argv[1:5]
    settings: dict[str, Any] = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
    import torch
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    marks = [spent()]
    classifier = SetFitModel.from_pretrained(model)
    rows = {name: read(path) for name, path in (("train", train), ("test", test))}
    marks.append(spent())
    arguments = TrainingArguments(
        output_dir=f"{out}.run", save_strategy="no", report_to="none", show_progress_bar=False, **settings
    )
    trainer = Trainer(model=classifier, args=arguments, train_dataset=Dataset.from_list(rows["train"]))
    trainer.train()
    marks.append(spent())
    predicted = [str(label) for label in classifier.predict([row["text"] for row in rows["test"]])]
    marks.append(spent())
    versions = {name: importlib.metadata.version(name) for name in ("setfit", "sentence-transformers", "transformers")}
    found = result(settings, marks, predicted, rows["test"]) | {
        "versions": versions | {"torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
