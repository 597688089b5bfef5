"""The exact tier on a GPU: skipped where there is none."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.exact import test_adapt
from tests.exact.runs import assert_same_run, train
from tests.exact.test_embed import VARIANTS, values
from tests.tiny import make_model_folder
from tests.tiny_causal import make_causal_folder

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


@pytest.mark.parametrize("variant", ["adapters", "accumulation", "packing", "every weight", "activations made again"])
def test_language_models_stopped_after_every_third_step(variant: str, tmp_path: Path) -> None:
    model = make_causal_folder(tmp_path / "model")
    asked = test_adapt.values(model, device="cuda", **test_adapt.VARIANTS[variant])
    train(asked, tmp_path / "whole")
    for last in range(1, test_adapt.STEPS, 3):
        stopped = tmp_path / f"stopped-after-{last}"
        train(asked, stopped, stop_after=last)
        assert train(asked, stopped).finished
        assert_same_run(stopped, tmp_path / "whole")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_adapters_of_a_quantised_model_stopped_halfway(bits: str, tmp_path: Path) -> None:
    model = make_causal_folder(tmp_path / "model")
    asked = test_adapt.values(model, device="cuda", quantization=bits)
    train(asked, tmp_path / "whole")
    train(asked, tmp_path / "stopped", stop_after=test_adapt.STEPS // 2)
    assert train(asked, tmp_path / "stopped").finished
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
