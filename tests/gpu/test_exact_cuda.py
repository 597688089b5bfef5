"""The exact tier on a GPU: skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.exact.runs import assert_same_run, train
from tests.exact.test_embed import VARIANTS, values
from tests.tiny import make_model_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.mark.parametrize("variant", ["plain", "accumulation", "cosent", "triplet"])
def test_stopped_after_every_third_step(variant: str, tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model")
    asked = values(model, device="cuda", **VARIANTS[variant])
    train(asked, tmp_path / "whole")
    for last in range(1, 30, 3):
        stopped = tmp_path / f"stopped-after-{last}"
        train(asked, stopped, stop_after=last)
        assert train(asked, stopped).finished
        assert_same_run(stopped, tmp_path / "whole")
