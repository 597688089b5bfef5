"""What a process has spent since it began; for both arms, so nothing but the standard library."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path


def spent() -> tuple[float, float]:
    """Return the seconds and the CPU seconds since the process began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    began = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began, used.ru_utime + used.ru_stime


def read(path: str) -> list[dict[str, str]]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def result(
    settings: dict[str, object], marks: list[tuple[float, float]], predicted: list[str], test: list[dict[str, str]]
) -> dict[str, object]:
    """Return what is recorded of one training; `marks` were taken at its start, after loading, training, predicting."""
    right = sum(found == row["label"] for found, row in zip(predicted, test, strict=True))
    return {
        "settings": settings,
        "accuracy": right / len(predicted),
        "seconds": [wall for wall, _ in marks],
        "cpu_seconds": [cpu for _, cpu in marks],
        "train_cpu_seconds": marks[2][1] - marks[1][1],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "load": os.getloadavg()[0],
        "predictions": predicted,
    }
