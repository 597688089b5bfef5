"""Training the rows in use against training the whole table, family by family, in chunks, with dropout."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tests.pairs.test_encoder import BUCKETED, PACKED, SMALL, load, save_random
from unbroken.base.seeds import chunk_seed
from unbroken.models.bert import Bert
from unbroken.models.encoder import Encoder
from unbroken.models.ragged import Ragged
from unbroken.models.vocabulary import use_active_rows
from unbroken.step.adamw import AdamW
from unbroken.step.generators import seeded
from unbroken.step.gradients import cached_gradients
from unbroken.step.losses import multiple_negatives_ranking
from unbroken.step.update import update
from unbroken.store.tensors import read_file

RATE, STEPS, CHUNKS, ROWS = 1e-3, 6, 3, 4
USED = np.array([2, 3, 5, 8, 13, 21, 34, 40, 41, 55, 70, 89])
FAMILIES = PACKED | BUCKETED
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "mlp_dropout")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_folder(folder: Path, config: Any) -> Path:
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.1)
    save_random(folder, config)
    return folder


class Training:
    """A model in training; the table whole, or only its rows in use."""

    def __init__(self, folder: Path, *, active: bool, max_grad_norm: float | None) -> None:
        self.encoder = load(folder, torch.float32).train()
        if active:
            use_active_rows(self.encoder, USED)
        if isinstance(self.encoder.backbone.model, Bert):  # elsewhere the whole table sums chunks in another order
            self.encoder.reuse_table_gradients()
        self.moved = {name: p for name, p in self.encoder.named_parameters() if p.requires_grad}
        self.optimizer = AdamW([{"params": list(self.moved.values())}], lr=RATE)
        self.max_grad_norm = max_grad_norm

    def step(self, number: int) -> tuple[float, float]:
        """Make a step; return the loss and the gradient's norm."""
        draw = np.random.default_rng(number)
        lengths = draw.integers(1, 9, (CHUNKS, ROWS))
        chunks = [Ragged.from_lists([draw.choice(USED, size=n).tolist() for n in chunk]) for chunk in lengths]

        def scope(chunk: int) -> AbstractContextManager[None]:
            return seeded(chunk_seed(1, number * 10 + chunk))

        def loss(embeddings_ND: Tensor) -> Tensor:
            half = len(embeddings_ND) // 2
            return multiple_negatives_ranking(embeddings_ND[:half], embeddings_ND[half:])

        value = float(cached_gradients(self.encoder.embed, loss, chunks, scope))
        return value, update(self.optimizer, self.moved, RATE, self.max_grad_norm)

    @torch.no_grad()
    def adopt(self, whole: Training) -> None:
        """Take over weights and moments of a training of the whole table."""
        for name, parameter in self.moved.items():
            other, rows = whole.moved[name.replace(".active", "")], slice(None)
            if name not in whole.moved:
                rows = self.encoder.get_submodule(name.removesuffix(".active.weight")).ids
            parameter.copy_(other[rows])
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                theirs = whole.optimizer.state[other][slot]
                value.copy_(theirs if slot == "step" else theirs[rows])


def values(encoder: Encoder) -> dict[str, Tensor]:
    """Every tensor of the model folder, as trained so far."""
    return {name: tensor for name, tensor in encoder.state_dict().items() if not encoder.is_extra(name)}


def table_of(encoder: Encoder) -> str:
    """The name of the table of token vectors."""
    table: Any = encoder.backbone.model.get_input_embeddings()  # type: ignore[operator]
    return next(name for name, parameter in encoder.named_parameters() if parameter is table.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_clipping_every_bit_is_that_of_the_whole_table(family: str, tmp_path: Path) -> None:
    """A row's gradient is summed in the order of the tokens either way, and AdamW goes element by element."""
    folder = random_folder(tmp_path, FAMILIES[family]())
    whole, rows = (Training(folder, active=active, max_grad_norm=None) for active in (False, True))
    for number in range(STEPS):
        assert whole.step(number)[0] == rows.step(number)[0]
    start, expected, found = values(load(folder, torch.float32)), values(whole.encoder), values(rows.encoder)
    assert found.keys() == expected.keys() == start.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    table = table_of(rows.encoder)
    unused = np.setdiff1d(np.arange(97), USED)
    assert torch.equal(found[table][unused], start[table][unused])
    assert not torch.isclose(found[table][USED], start[table][USED], rtol=0, atol=RATE / 100).all(1).any()


@pytest.mark.parametrize("width", [32, 20])
def test_with_clipping_a_step_differs_by_the_last_bit_at_most(width: int, tmp_path: Path) -> None:
    """From the same state: where a row is no multiple of the processor's vectors, the norm is summed in another order
    and the kernel's scalar tail falls on other numbers.

    Running on freely would not show it: where a gradient is nothing but rounding (a key's bias), Adam makes a
    step of it.
    """
    folder = random_folder(tmp_path, transformers.BertConfig(**(SMALL | {"hidden_size": width})))
    whole, rows = (Training(folder, active=active, max_grad_norm=0.05) for active in (False, True))
    for number in range(STEPS):
        (loss, norm), (same, near) = whole.step(number), rows.step(number)
        assert loss == same
        assert norm > 0.05, "nothing was clipped"
        assert near == pytest.approx(norm, rel=3e-7)
        expected = values(whole.encoder)
        for name, tensor in values(rows.encoder).items():
            torch.testing.assert_close(tensor, expected[name], rtol=3e-7, atol=RATE * 1e-6)
        rows.adopt(whole)


def test_moments_are_as_many_as_rows_in_use(tmp_path: Path) -> None:
    folder = random_folder(tmp_path, FAMILIES["bert"]())
    rows = Training(folder, active=True, max_grad_norm=1.0)
    rows.step(0)
    shapes = {name: tuple(rows.optimizer.state[parameter]["exp_avg"].shape) for name, parameter in rows.moved.items()}
    assert shapes["backbone.model.embeddings.word_embeddings.active.weight"] == (len(USED), 32)
    assert "backbone.model.embeddings.word_embeddings.weight" not in shapes


def test_a_batch_with_other_tokens_is_that_of_the_whole_table(tmp_path: Path) -> None:
    """Trained rows are found where they are, all others in the table, without anything written into it."""
    folder = random_folder(tmp_path, FAMILIES["bert"]())
    whole, rows = (Training(folder, active=active, max_grad_norm=None) for active in (False, True))
    for training in (whole, rows):
        training.step(0)
    table = rows.encoder.get_parameter(table_of(rows.encoder))
    before = table.clone()
    draw = np.random.default_rng(9)
    texts = Ragged.from_lists([draw.integers(0, 97, size=n).tolist() for n in (1, 5, 9, 30)])
    with torch.no_grad():
        assert torch.equal(rows.encoder.eval().embed(texts), whole.encoder.eval().embed(texts))
        assert torch.equal(table, before), "looking rows up wrote into the table"
        assert not torch.equal(rows.encoder.state_dict()[table_of(rows.encoder)], before)
        assert rows.encoder.write_back()
        assert torch.equal(rows.encoder.embed(texts), whole.encoder.embed(texts))


def test_a_saved_folder_is_the_trained_model_for_sentence_transformers(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "base", FAMILIES["bert"]())
    rows = Training(folder, active=True, max_grad_norm=1.0)
    rows.step(0)
    encoder = rows.encoder.eval()
    encoder.save_pretrained(tmp_path / "saved")
    files = [read_file(place, "model.safetensors").tensors for place in (folder, tmp_path / "saved")]
    assert files[0].keys() == files[1].keys()
    texts = ["river stone", "a castle of paper", "zzz"]
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(theirs.encode(texts), encoder.encode(texts), atol=1e-5, rtol=0)
    untrained = SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(texts)
    assert np.abs(untrained - encoder.encode(texts)).max() > 1e-3, "the control: training moved them"


@pytest.mark.minilm
def test_minilm_is_trained_to_the_same_bits(minilm: Path) -> None:
    """With clipping: its rows are whole vectors of any processor."""
    whole, rows = (Training(minilm, active=active, max_grad_norm=1.0) for active in (False, True))
    for number in range(3):
        loss, norm = whole.step(number)
        assert norm > 1.0, "nothing was clipped"
        assert rows.step(number) == (loss, norm)
    expected = values(whole.encoder)
    for name, tensor in values(rows.encoder).items():
        assert torch.equal(tensor, expected[name]), name
