from __future__ import annotations

import pytest

from unbroken.store.layout import checkpoint_name, step_of


@pytest.mark.parametrize("step", [0, 1, 500, 99_999_999, 100_000_000])
def test_a_checkpoint_name_gives_its_step_back(step: int) -> None:
    assert step_of(checkpoint_name(step)) == step


@pytest.mark.parametrize(
    "name", ["500", "000000500", "0000050x", ".tmp-00000500-1-a", ".broken-00000500-0", "", "-0000500", "٠٠٠٠٠٥٠٠"]
)
def test_other_names_are_no_checkpoints(name: str) -> None:
    assert step_of(name) is None
