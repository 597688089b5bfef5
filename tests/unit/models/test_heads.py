from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unbroken.base.errors import ConfigError
from unbroken.models.folder import Part
from unbroken.models.heads import Dense, build_head


def dense(**values: Any) -> Dense:
    head = build_head(Part("Dense", "2_Dense", {"in_features": 4, "out_features": 3} | values))
    assert isinstance(head, Dense)
    return head


def test_activations_are_found_by_their_full_name() -> None:
    assert isinstance(dense().activation, nn.Tanh)
    assert isinstance(dense(activation_function="torch.nn.modules.linear.Identity").activation, nn.Identity)
    assert isinstance(dense(activation_function="torch.nn.modules.activation.GELU").activation, nn.GELU)


@pytest.mark.parametrize("name", ["os.system", "torch.nn.functional.relu", "torch.nn.Nothing", None])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(ConfigError, match=r"2_Dense/config\.json: activation .* is not one of torch\.nn's"):
        dense(activation_function=name)


def test_a_residual_is_projected_only_where_widths_differ() -> None:
    vectors = torch.randn(2, 4)
    wide = dense(out_features=4, use_residual=True)
    torch.testing.assert_close(wide(vectors), torch.tanh(wide.linear(vectors)) + vectors)
    assert set(wide.state_dict()) == {"linear.weight", "linear.bias"}
    narrow = dense(use_residual=True, bias=False)
    assert set(narrow.state_dict()) == {"linear.weight", "residual.weight"}
    assert narrow(vectors).shape == (2, 3)


def test_a_missing_width_is_named() -> None:
    with pytest.raises(ConfigError, match="'out_features' is missing"):
        build_head(Part("Dense", "2_Dense", {"in_features": 4}))
