"""Values and gradients are compared with sentence-transformers in tests/pairs; here is what that cannot show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unbroken.base.errors import ConfigError
from unbroken.models.packing import Pack
from unbroken.models.pooling import MODES, Pooling


def pooled(modes: tuple[str, ...], lengths: list[int], prompts: list[int], include_prompt: bool = True) -> torch.Tensor:
    """Pool texts whose token i of text n is the vector [n + 1, i + 1]."""
    pack = Pack.of(np.array(lengths))
    flat = [[n + 1.0, i + 1.0] for n, length in enumerate(lengths) for i in range(length)]
    packed = torch.tensor(flat).view(-1, 2)[pack.places]
    return Pooling(modes, include_prompt)(packed, pack, np.array(prompts))


def test_rows_come_back_in_input_order() -> None:
    assert pooled(("lasttoken",), [3, 1, 2], [0, 0, 0]).tolist() == [[1, 3], [2, 1], [3, 2]]
    assert pooled(("cls", "max"), [3, 1, 2], [0, 0, 0]).tolist() == [[1, 1, 1, 3], [2, 1, 2, 1], [3, 1, 3, 2]]


def test_prompts_of_several_lengths_in_one_batch_are_left_out() -> None:
    assert pooled(("mean",), [4, 4, 3], [2, 0, 1], include_prompt=False)[:, 1].tolist() == [3.5, 2.5, 2.5]
    assert pooled(("mean",), [4, 4, 3], [2, 0, 1], include_prompt=True)[:, 1].tolist() == [2.5, 2.5, 2.0]


@pytest.mark.parametrize("mode", MODES)
def test_a_text_without_tokens_pools_to_zeros(mode: str) -> None:
    vectors = pooled((mode,), [0, 2], [0, 0])
    assert vectors[0].tolist() == [0, 0]
    assert vectors[1].abs().sum() > 0


def test_a_text_that_is_only_prompt_is_finite() -> None:
    vectors = pooled(tuple(MODES), [2], [5], include_prompt=False)
    assert torch.isfinite(vectors).all()


def test_half_precision_sums_are_taken_in_float32() -> None:
    packed = torch.full((4096, 1), 100.0, dtype=torch.float16)
    pack = Pack.of(np.array([4096]))
    assert Pooling(("mean",))(packed, pack, np.array([0])).item() == 100.0
    assert Pooling(("weightedmean",))(packed, pack, np.array([0])).item() == 100.0


def test_both_styles_of_configuration_are_read() -> None:
    old = {"word_embedding_dimension": 2, "pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}
    assert Pooling.from_config(old, "here").modes == ("cls", "max")
    assert Pooling.from_config({"pooling_mode": "lasttoken", "include_prompt": False}, "here").include_prompt is False
    assert Pooling.from_config({"pooling_mode": ["mean", "cls"]}, "here").modes == ("mean", "cls")
    assert Pooling.from_config({}, "here").modes == ("mean",)
    with pytest.raises(ConfigError, match="here: unknown pooling mode 'median'; known: cls, max"):
        Pooling.from_config({"pooling_mode": "median"}, "here")
