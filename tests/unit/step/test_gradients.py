"""Chunks against the whole batch: the same gradients, the same draws, in a fixed order."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unbroken.base.seeds import chunk_seed
from unbroken.step.generators import seeded
from unbroken.step.gradients import accumulated, cached_gradients
from unbroken.step.losses import multiple_negatives_ranking

torch.set_num_threads(1)

TEXTS, WIDTH = 14, 6


def scope(index):
    return seeded(chunk_seed(99, index))


def network(dtype, dropout=0.0):
    with seeded(5):
        return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)).to(dtype)


def texts(dtype):
    with seeded(6):
        return torch.randn(TEXTS, WIDTH).to(dtype)


class Contrastive(nn.Module):
    """A loss with a parameter and a random draw of its own, over anchors and positives in one tensor."""

    def __init__(self, dtype):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5, dtype=dtype))
        self.draws = []

    def forward(self, embeddings):
        self.draws.append(torch.rand(1).item())
        anchors, positives = embeddings.chunk(2)
        return multiple_negatives_ranking(anchors, positives, scale=3.0) * self.temperature + self.temperature**2


def gradients(*modules):
    return [parameter.grad for module in modules for parameter in module.parameters()]


def plain(dtype):
    model, loss = network(dtype), Contrastive(dtype)
    value = loss(model(texts(dtype)))
    value.backward()
    return value.detach(), gradients(model, loss)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 13, 14])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_chunks_give_the_gradient_of_the_whole_batch(size, dtype, tolerance):
    expected_value, expected = plain(dtype)
    model, loss = network(dtype), Contrastive(dtype)
    value = cached_gradients(model, loss, texts(dtype).split(size), scope)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected_value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradients(model, loss), expected, rtol=tolerance, atol=tolerance)


def test_one_chunk_is_to_the_bit_the_plain_forward_and_backward():
    expected_value, expected = plain(torch.float32)
    model, loss = network(torch.float32), Contrastive(torch.float32)
    value = cached_gradients(model, loss, [texts(torch.float32)], scope)
    assert torch.equal(value, expected_value)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients(model, loss), expected, strict=True))


def test_gradients_are_added_to_what_is_there():
    model, loss = network(torch.float64), Contrastive(torch.float64)
    chunks = texts(torch.float64).split(4)
    cached_gradients(model, loss, chunks, scope)
    once = [gradient.clone() for gradient in gradients(model, loss)]
    cached_gradients(model, loss, chunks, scope)
    torch.testing.assert_close(gradients(model, loss), [2 * gradient for gradient in once])


def test_the_second_forward_repeats_the_first_ones_dropout_to_the_bit():
    model, loss = network(torch.float32, dropout=0.5), Contrastive(torch.float32)
    outputs: dict[int, list[torch.Tensor]] = {}

    def encode(chunk):
        index, rows = chunk
        outputs.setdefault(index, []).append(model(rows))
        return outputs[index][-1]

    chunks = list(enumerate(texts(torch.float32).split(4)))  # three of four rows and one of two
    cached_gradients(encode, loss, chunks, scope)
    assert {index: len(passes) for index, passes in outputs.items()} == {0: 2, 1: 2, 2: 2, 3: 1}
    assert all(torch.equal(passes[0], passes[-1]) for passes in outputs.values())
    assert not torch.equal(outputs[0][0], model(chunks[0][1])), "dropout must have been on"


def test_the_same_step_twice_gives_the_same_bits_whatever_was_drawn_between():
    results = []
    for _ in range(2):
        model, loss = network(torch.float32, dropout=0.3), Contrastive(torch.float32)
        value = cached_gradients(model, loss, texts(torch.float32).split(4), scope)
        results.append([value, *gradients(model, loss), torch.tensor(loss.draws)])
        torch.rand(3)
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_the_order_of_work_is_as_documented():
    events = []

    @contextmanager
    def noting(index):
        events.append(index)
        yield

    model, loss = network(torch.float32), Contrastive(torch.float32)
    cached_gradients(model, loss, texts(torch.float32).split(4), noting)
    first_pass, the_loss, last_backward, second_pass = [0, 1, 2, 3], [4], [3], [0, 1, 2]
    assert events == first_pass + the_loss + last_backward + second_pass


def test_a_chunk_may_be_anything():
    model = network(torch.float64)
    words = {"a": texts(torch.float64)[0], "b": texts(torch.float64)[1]}
    value = cached_gradients(
        lambda chunk: model(torch.stack([words[letter] for letter in chunk])), torch.var, ["ab", "b", "ba"], scope
    )
    assert value > 0
    assert all(gradient is not None for gradient in gradients(model))


def test_a_failing_encoder_leaves_grad_mode_on():
    def broken(chunk):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached_gradients(broken, torch.sum, [1, 2], scope)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("size", [1, 4, 14])
def test_accumulated_chunks_give_the_gradient_of_the_mean(size):
    targets = texts(torch.float64)[:, :4]
    expected = network(torch.float64)
    expected_value = F.mse_loss(expected(texts(torch.float64)), targets)
    expected_value.backward()

    model = network(torch.float64)
    chunks = list(zip(texts(torch.float64).split(size), targets.split(size), strict=True))
    weights = [len(rows) / TEXTS for rows, _ in chunks]
    value = accumulated(lambda chunk: F.mse_loss(model(chunk[0]), chunk[1]), chunks, weights, scope)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected_value.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(model), gradients(expected), rtol=1e-12, atol=1e-12)


def test_accumulated_chunks_draw_what_their_scope_gives_them():
    model = network(torch.float32)
    draws = []

    def loss(chunk):
        draws.append(torch.rand(1).item())
        return model(chunk).sum()

    accumulated(loss, texts(torch.float32).split(7), [1.0, 1.0], scope)
    with scope(0):
        first = torch.rand(1).item()
    with scope(1):
        second = torch.rand(1).item()
    assert draws == [first, second]


def test_a_weight_for_every_chunk():
    with pytest.raises(ValueError, match="shorter"):
        accumulated(lambda chunk: torch.ones(1, requires_grad=True), [1, 2], [1.0], lambda index: nullcontext())
