"""A table of which some rows are trained: what is looked up, written back, saved, and refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tiny import make_model_folder
from unbroken.base.errors import ConfigError
from unbroken.models import vocabulary
from unbroken.models.arena import Arena
from unbroken.models.encoder import Encoder
from unbroken.models.lookup import Lookup
from unbroken.models.vocabulary import ActiveTable, use_active_rows, used_ids

USED = np.array([0, 3, 4, 7, 19])
TABLE = "backbone.model.embeddings.word_embeddings"


def table(kind: type[nn.Embedding] = nn.Embedding, padding_idx: int | None = None) -> nn.Embedding:
    weight = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    return kind(20, 16, padding_idx, _weight=weight) if kind is nn.Embedding else Lookup(20, 16, padding_idx, weight)


def trained(padding_idx: int | None = None) -> tuple[ActiveTable, Tensor]:
    """A table whose active rows have moved, and what all of it should be."""
    active = ActiveTable(table(padding_idx=padding_idx), USED)
    expected = active.weight.clone()
    with torch.no_grad():
        active.active.weight.add_(1.0)
    expected[USED] += 1.0
    return active, expected


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return Encoder.from_pretrained(make_model_folder(tmp_path / "model"))


@pytest.mark.parametrize("written_back", [False, True])
@pytest.mark.parametrize("ids", [[[3, 19], [0, 0]], [[3, 5], [18, 0]], [[1]], []], ids=str)
def test_tokens_are_found_as_they_are_by_now(ids: Any, written_back: bool) -> None:
    active, expected = trained()
    assert not written_back or active.write_back()
    tokens = torch.tensor(ids, dtype=torch.int64)
    assert torch.equal(active.eval()(tokens), expected[tokens])
    with torch.no_grad():
        assert torch.equal(active.train()(tokens), expected[tokens])


def test_a_pass_with_and_one_without_gradients_see_the_same() -> None:
    """As the two passes of cached gradients do."""
    active, _ = trained()
    tokens = torch.tensor([3, 19, 3])
    with torch.no_grad():
        first = active.train()(tokens)
    assert torch.equal(first, active(tokens))


def test_a_token_without_a_trained_row_is_refused_in_training() -> None:
    active, _ = trained()
    with pytest.raises(ConfigError, match="token 5 is trained on, but the row of its embedding is not"):
        active.train()(torch.tensor([[3, 5]]))


@pytest.mark.parametrize("token", [-1, 20])
def test_a_token_beyond_the_table_is_no_row(token: int) -> None:
    active, _ = trained()
    with pytest.raises(IndexError):
        active.eval()(torch.tensor([token]))


@pytest.mark.parametrize("kind", [nn.Embedding, Lookup])
@pytest.mark.parametrize("padding_idx", [None, 3, 5])
def test_gradients_are_those_of_the_whole_table(kind: type[nn.Embedding], padding_idx: int | None) -> None:
    whole = table(kind, padding_idx)
    active = ActiveTable(table(kind, padding_idx), USED)
    tokens, into = torch.tensor([3, 19, 3, 7, 0]), torch.randn(5, 16)
    for looked_up in (whole(tokens), active(tokens)):
        torch.autograd.backward(looked_up, into)
    assert whole.weight.grad is not None
    assert active.active.weight.grad is not None
    assert torch.equal(active.active.weight.grad, whole.weight.grad[USED])
    assert active.weight.grad is None


def test_an_evaluation_with_gradients_reaches_the_trained_rows_only() -> None:
    active, _ = trained()
    active.eval()(torch.tensor([3, 5, 3])).sum().backward()
    assert active.active.weight.grad is not None
    assert active.active.weight.grad[:, 0].tolist() == [0.0, 2.0, 0.0, 0.0, 0.0]
    active.weight.requires_grad_()  # as a phase does that trains every name there is
    active(torch.tensor([3, 5])).sum().backward()
    assert active.weight.grad is None


def test_writing_back_is_done_once() -> None:
    active, expected = trained()
    version = active.weight._version
    assert active.write_back()
    assert active.weight._version > version
    assert torch.equal(active.weight, expected)
    version = active.weight._version
    assert not active.write_back()
    assert active.weight._version == version, "a commit may be copying it: it is not written without need"


def test_the_sign_of_zero_is_written_back() -> None:
    active, _ = trained()
    for zero in (torch.zeros(()), -torch.zeros(())):
        with torch.no_grad():
            active.active.weight[0] = zero
        assert active.write_back()
        assert not active.write_back()


def test_the_state_dict_is_up_to_date_and_nothing_is_written_for_it() -> None:
    active, expected = trained()
    before = active.weight.clone()
    found = active.state_dict()
    assert list(found) == ["weight", "active.weight"]
    assert torch.equal(found["weight"], expected)
    assert torch.equal(active.weight, before)
    assert active.state_dict(keep_vars=True)["weight"] is active.weight
    again = ActiveTable(table(), USED)
    again.load_state_dict(found)
    assert not again.write_back()


@pytest.mark.parametrize("training", [False, True])
def test_the_encoder_keeps_its_names_and_its_mode(training: bool, encoder: Encoder) -> None:
    places = {name: encoder.layout(name) for name in encoder.state_dict()}
    whole = encoder.encode(["river stone", "a quiet garden"])
    encoder.train(training)
    encoder.reuse_table_gradients()
    active = use_active_rows(encoder, USED)
    assert encoder.backbone.model.get_submodule("embeddings.word_embeddings") is active
    assert active.training is active.active.training is training
    assert active.active.reuses_gradient
    assert {name: encoder.layout(name) for name in encoder.state_dict() if not encoder.is_extra(name)} == places
    assert [name for name in encoder.state_dict() if encoder.is_extra(name)] == [f"{TABLE}.active.weight"]
    assert [name for name, p in encoder.named_parameters() if not p.requires_grad] == [f"{TABLE}.weight"]
    np.testing.assert_array_equal(encoder.encode(["river stone", "a quiet garden"]), whole)


def test_the_encoder_writes_back_what_it_has(encoder: Encoder) -> None:
    assert not encoder.write_back()
    active = use_active_rows(encoder, USED)
    assert not encoder.write_back()
    with torch.no_grad():
        active.active.weight.add_(1.0)
    assert encoder.write_back()
    assert not encoder.write_back()


def tie(encoder: Encoder) -> None:
    encoder.backbone.model.register_parameter("output", encoder.get_parameter(f"{TABLE}.weight"))


def share(encoder: Encoder) -> None:
    encoder.heads.append(encoder.get_submodule(TABLE))


def share_the_storage(encoder: Encoder) -> None:
    encoder.backbone.model.register_parameter("output", nn.Parameter(encoder.get_parameter(f"{TABLE}.weight").detach()))


def freeze(encoder: Encoder) -> None:
    encoder.get_parameter(f"{TABLE}.weight").requires_grad_(False)


def scale(encoder: Encoder) -> None:
    class Scaled(nn.Embedding):
        pass

    encoder.get_submodule(TABLE).__class__ = Scaled


def bound(encoder: Encoder) -> None:
    encoder.get_submodule(TABLE).max_norm = 1.0


def hide(encoder: Encoder) -> None:
    encoder.backbone.model = nn.Linear(2, 2)


def take(encoder: Encoder) -> None:
    use_active_rows(encoder, USED)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (tie, r"used in several places \(backbone.model.output, backbone.model.embeddings.word_embeddings.weight\)"),
        (share, "used in several places"),
        (share_the_storage, "used in several places"),
        (freeze, "its table is frozen"),
        (scale, "its tokens are looked up by a Scaled, not by a plain table"),
        (bound, "max_norm"),
        (hide, "looked up by a NoneType"),
        (take, "looked up by a ActiveTable"),
    ],
)
def test_a_table_that_cannot_be_replaced_is_refused(change: Any, reason: str, encoder: Encoder) -> None:
    change(encoder)
    with pytest.raises(ConfigError, match=f"cannot be trained alone: .*{reason}.*; train the whole table"):
        use_active_rows(encoder, USED)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "no token is used"), ([-1, 3], "tokens -1 to 3 are used"), ([3, 89], "the table has rows 0 to 88")],
)
def test_ids_that_are_not_in_the_table_are_refused(ids: list[int], message: str, encoder: Encoder) -> None:
    before = encoder.get_submodule(TABLE)
    with pytest.raises(ConfigError, match=message):
        use_active_rows(encoder, np.array(ids, dtype=np.int64))
    assert encoder.get_submodule(TABLE) is before


def test_ids_may_come_in_any_order_and_more_than_once(encoder: Encoder) -> None:
    assert use_active_rows(encoder, np.array([7, 3, 7, 0], dtype=np.int32)).ids.tolist() == [0, 3, 7]


def test_what_a_padded_batch_looks_up_is_trained_too(encoder: Encoder) -> None:
    encoder.backbone.padding_id = 2
    assert use_active_rows(encoder, np.array([7, 3])).ids.tolist() == [2, 3, 7]


def arena(ids: NDArray[np.int32]) -> Arena:
    return Arena(ids, np.array([0, len(ids)]), 0)


def test_used_ids_of_several_arenas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "BLOCK_TOKENS", 7)
    draw = np.random.default_rng(0)
    columns = [draw.integers(0, 1000, size=size).astype(np.int32) for size in (50, 0, 7, 15)]
    expected = np.unique(np.concatenate(columns))
    np.testing.assert_array_equal(used_ids(map(arena, columns), 1000), expected)
    assert used_ids([], 1000).tolist() == []


def test_a_tokenizer_of_another_model_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer gives token 12, the model's table has rows 0 to 9"):
        used_ids([arena(np.array([3, 12, 4], dtype=np.int32))], 10)


def test_used_ids_take_memory_for_a_block_only(tmp_path: Path) -> None:
    ids = np.lib.format.open_memmap(
        tmp_path / "ids.npy", mode="w+", dtype=np.int32, shape=(8 * vocabulary.BLOCK_TOKENS,)
    )
    ids[:] = np.arange(len(ids)) % 30_000
    tracemalloc.start()
    try:
        assert len(used_ids([arena(ids)], 30_522)) == 30_000
        assert tracemalloc.get_traced_memory()[1] < ids.nbytes / 2
        tracemalloc.reset_peak()
        np.unique(ids)
        assert tracemalloc.get_traced_memory()[1] > ids.nbytes / 2, "the control: all of them at once"
    finally:
        tracemalloc.stop()
