"""One checkpoint of ours, as its manifest and its state tell it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from unbroken.base.errors import UnbrokenError
from unbroken.base.reading import MAX_DOCUMENT_BYTES
from unbroken.run.findings import Section
from unbroken.run.summary import checkpoint_problems
from unbroken.store import files, layout
from unbroken.store.manifest import Manifest, read_manifest

OPTIMIZER_PREFIX = "optimizer/"  # how State names the optimizer's tensors


def describe_checkpoint(folder: Path) -> list[Section]:
    """Return what a checkpoint holds, whether every digest verifies, and what is wrong with it."""
    problems = checkpoint_problems(folder)
    try:
        manifest = read_manifest(folder)
    except UnbrokenError:
        return [Section("checkpoint", {"path": str(folder), "verifies": False}, warnings=tuple(problems))]
    state = _state(folder)
    values = {
        "path": str(folder),
        "step": manifest.step,
        "run_id": manifest.run_id,
        "phase": state.get("phase"),
        "loss": (state.get("last_record") or {}).get("loss"),
        "verifies": not problems,
        "size_bytes": sum(record.size for record in manifest.files.values()),
        "run": str(folder.resolve().parents[1]),
    }
    return [
        Section("checkpoint", {key: value for key, value in values.items() if value is not None}, {}, tuple(problems)),
        Section("tensors", _tensors(manifest)),
        Section("files", {"file": {path: _file(manifest, path) for path in sorted(manifest.files)}}),
    ]


def _tensors(manifest: Manifest) -> dict[str, Any]:
    trained = {name: record for name, record in manifest.tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
    return {
        "of_the_modules": len(trained),
        "of_the_optimizer": len(manifest.tensors) - len(trained),
        "numbers_in_the_modules": sum(math.prod(record.shape) for record in trained.values()),
        "dtypes": ", ".join(sorted({record.dtype for record in trained.values()})),
    }


def _file(manifest: Manifest, path: str) -> dict[str, Any]:
    held = sum(record.file == path for record in manifest.tensors.values())
    return {"size_bytes": manifest.files[path].size, "tensors": held or None, "digest": manifest.files[path].digest}


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads(files.read_whole(folder, layout.STATE_FILE, MAX_DOCUMENT_BYTES))
    except (UnbrokenError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}
