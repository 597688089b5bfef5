"""SetFit's own trainer on drawn examples, in a process of its own: `python theirs.py MODEL TRAIN TEST OUT [SETTINGS]`.

SETTINGS is a JSON object of `TrainingArguments`. Writes accuracy, predictions, seconds and CPU seconds of loading, of
training and of the whole process, and versions. Nothing of Unbroken is imported: it runs where SetFit is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


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
    right = sum(found == row["label"] for found, row in zip(predicted, rows["test"], strict=True))
    versions = {name: importlib.metadata.version(name) for name in ("setfit", "sentence-transformers", "transformers")}
    result = {
        "settings": settings,
        "accuracy": right / len(predicted),
        "seconds": [wall for wall, _ in marks],
        "cpu_seconds": [cpu for _, cpu in marks],
        "train_cpu_seconds": marks[2][1] - marks[1][1],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": versions | {"torch": torch.__version__},
        "predictions": predicted,
    }
    Path(out).write_text(json.dumps(result), encoding="utf-8")


def read(path: str) -> list[dict[str, str]]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def spent() -> tuple[float, float]:
    """Return the seconds and the CPU seconds since the process began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    began = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began, used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
