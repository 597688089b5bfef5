"""The head: what it computes, and the two files it lives in, whole or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from unbroken.base.errors import ConfigError
from unbroken.models.classifying import (
    ClassifierSettings,
    LinearHead,
    classifier_documents,
    classifier_layout,
    read_classifier,
)
from unbroken.models.writing import save
from unbroken.run.state import held_tensors

torch.set_num_threads(1)

SETTINGS = ClassifierSettings("logistic_regression", ("no", "yes", "北"), 4)


def filled(head: LinearHead, temperature: float = 1.0) -> LinearHead:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
        head.bias.copy_(torch.randn(head.bias.shape, generator=generator))
        head.temperature.fill_(temperature)
    return head


def embeddings(count: int = 5, dimension: int = 4) -> torch.Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(1))


def test_a_head_begins_at_zero_and_knows_nothing():
    head = LinearHead(3, 4)
    torch.testing.assert_close(head.probabilities(embeddings()), torch.full((5, 3), 1 / 3))


def test_all_that_is_saved_is_held_by_a_checkpoint():
    head = LinearHead(3, 4)
    names = [name for name, _ in held_tensors({"head": head})]
    assert names == ["head.weight", "head.bias", "head.temperature"]
    assert {classifier_layout(name.removeprefix("head.")) for name in names} == {
        ("classifier.safetensors", "weight"),
        ("classifier.safetensors", "bias"),
        ("classifier.safetensors", "temperature"),
    }


def test_initial_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (LinearHead(3, 4).initialize(seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, torch.full((3,), 1e-2))
    wide = LinearHead(100, 200).initialize(0).weight
    assert wide.abs().max() <= (6 / 300) ** 0.5  # Glorot & Bengio 2010
    assert wide.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.02)


def test_probabilities_are_a_softmax_at_the_temperature():
    head, rows = filled(LinearHead(3, 4), temperature=2.5), embeddings()
    logits = rows @ head.weight.T + head.bias
    torch.testing.assert_close(head.logits(rows), logits)
    torch.testing.assert_close(head.probabilities(rows), (logits / 2.5).softmax(dim=-1))
    assert torch.equal(head.predict(rows), logits.argmax(dim=1))


def test_several_labels_have_a_sigmoid_each():
    head, rows = filled(LinearHead(3, 4, True), temperature=0.5), embeddings()
    probabilities = head.probabilities(rows)
    torch.testing.assert_close(probabilities, (head.logits(rows) * 2).sigmoid())
    assert torch.equal(head.predict(rows), probabilities > 0.5)


def test_one_against_the_rest_scales_sigmoids_to_one():
    head, rows = filled(LinearHead(3, 4, one_vs_rest=True)), embeddings()
    sigmoids = head.logits(rows).sigmoid()
    torch.testing.assert_close(head.probabilities(rows), sigmoids / sigmoids.sum(dim=1, keepdim=True))
    assert torch.equal(head.predict(rows), sigmoids.argmax(dim=1))


def test_a_head_may_normalise_what_it_sees():
    rows = embeddings()
    plain, normal = filled(LinearHead(3, 4)), filled(LinearHead(3, 4, normalize_embeddings=True))
    assert torch.equal(normal.logits(rows), plain.logits(rows / rows.norm(dim=1, keepdim=True)))
    assert not torch.equal(normal.logits(rows), plain.logits(rows))


def write(folder: Path, settings: ClassifierSettings, temperature: float = 1.0) -> LinearHead:
    folder.mkdir()
    head = filled(settings.head(), temperature)
    save(folder, classifier_documents(settings), head.state_dict(), classifier_layout)
    return head


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        ClassifierSettings("differentiable", (0, 7, -1), 4, normalize_embeddings=True),
        ClassifierSettings("logistic_regression", ("1", 1, "one"), 4, one_vs_rest=True),
        ClassifierSettings("differentiable", ("only",), 4, multi_label=True),
    ],
)
def test_a_classifier_is_read_as_it_was_written(tmp_path: Path, settings: ClassifierSettings):
    head = write(tmp_path / "model", settings, temperature=1.7)
    found, read = read_classifier(tmp_path / "model", dimension=4)
    assert found == settings
    assert [type(label) for label in found.labels] == [type(label) for label in settings.labels]
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in head.state_dict().items())
    assert torch.equal(read.probabilities(embeddings()), head.probabilities(embeddings()))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in read.state_dict().values())


def test_the_files_are_the_same_bytes_every_time(tmp_path: Path):
    for name in ("one", "two"):
        write(tmp_path / name, SETTINGS)
    for file in ("classifier.json", "classifier.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    header = (tmp_path / "one" / "classifier.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length])["__metadata__"] == {"format": "pt"}
    assert json.loads((tmp_path / "one" / "classifier.json").read_bytes()) == {
        "format": 1,
        "kind": "logistic_regression",
        "labels": ["no", "yes", "北"],
        "dimension": 4,
        "multi_label": False,
        "one_vs_rest": False,
        "normalize_embeddings": False,
    }


def edit(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / "classifier.json").read_bytes()) | changes
        values = {key: value for key, value in values.items() if value is not None}
        (folder / "classifier.json").write_text(json.dumps(values))

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        held = load_file(folder / "classifier.safetensors")
        change(held)
        save_file(held, folder / "classifier.safetensors", metadata={"format": "pt"})

    return apply


def flip(folder: Path, place: int) -> None:
    data = bytearray((folder / "classifier.safetensors").read_bytes())
    data[place] ^= 0xFF
    (folder / "classifier.safetensors").write_bytes(data)


def a_pipe(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


def terabyte(folder: Path) -> None:
    with open(folder / "classifier.safetensors", "r+b") as file:
        file.truncate(1 << 40)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no classifier": (lambda f: (f / "classifier.json").unlink(), r"holds no classifier: classifier\.json is missing"),
    "no weights": (lambda f: (f / "classifier.safetensors").unlink(), "safetensors cannot be read: No such file"),
    "empty settings": (lambda f: (f / "classifier.json").write_bytes(b""), r"classifier\.json is damaged"),
    "cut settings": (lambda f: (f / "classifier.json").write_bytes(b'{"format": 1, "ki'), r"classifier\.json is dam"),
    "a list": (lambda f: (f / "classifier.json").write_bytes(b"[1]"), "is not a JSON object"),
    "deep nesting": (lambda f: (f / "classifier.json").write_bytes(b"[" * 100_000), r"classifier\.json is damaged"),
    "no format": (edit(format=None), "format None; this Unbroken reads format 1"),
    "a format to come": (edit(format=2), "format 2; this Unbroken reads format 1; use the release that wrote it"),
    "another kind": (edit(kind="forest"), "a classifier of kind 'forest' is not known"),
    "kind missing": (edit(kind=None), "'kind' is missing"),
    "something more": (edit(threshold=0.3), "'threshold' is missing, unknown or of the wrong type"),
    "a word for a bool": (edit(multi_label="false"), "'multi_label' is missing, unknown or of the wrong type"),
    "labels no list": (edit(labels="abc"), "'labels' is missing, unknown or of the wrong type"),
    "a label twice": (edit(labels=["a", "b", "a"]), "has each label once"),
    "a label that is none": (edit(labels=["a", "b", 1.5]), "texts or whole numbers"),
    "a label true": (edit(labels=["a", "b", True]), "texts or whole numbers"),
    "one label": (edit(labels=["a"]), "1 labels are too few"),
    "labels missing": (edit(labels=["a", "b"]), "does not hold the tensors classifier.json"),
    "both ways": (edit(multi_label=True, one_vs_rest=True), "with multi_label it has no meaning"),
    "no dimension": (edit(dimension=0), "embeddings of 0 numbers"),
    "another dimension": (edit(dimension=5), "embeddings of 5 numbers, but the encoder beside it makes 4"),
    "a dimension beyond all": (edit(dimension=1 << 60), "but the encoder beside it makes 4"),
    "cut weights": (lambda f: os.truncate(f / "classifier.safetensors", 60), r"has 60 bytes, but 3 labels"),
    "a hole of a terabyte": (terabyte, r"has 1,099,511,627,776 bytes, but 3 labels"),
    "a broken header": (lambda f: flip(f, 20), r"classifier\.safetensors is damaged"),
    "a huge header": (lambda f: flip(f, 5), r"classifier\.safetensors is damaged"),
    "other names": (tensors(lambda t: t.update(scale=t.pop("bias"))), "does not hold the tensors classifier.json"),
    "a tensor more": (tensors(lambda t: t.update(more=torch.zeros(1))), "does not hold the tensors classifier.json"),
    "turned round": (tensors(lambda t: t.update(weight=t["weight"].T.contiguous())), "does not hold the tensors"),
    "half precision": (
        tensors(lambda t: t.update({key: value.half() for key, value in t.items()})),
        "does not hold the tensors classifier.json",
    ),
    "whole numbers": (tensors(lambda t: t.update(weight=t["weight"].int())), "does not hold the tensors"),
    "not a number": (tensors(lambda t: t["weight"][1, 2].fill_(torch.nan)), "not every number in it is finite"),
    "cold": (tensors(lambda t: t["temperature"].fill_(0)), "the temperature above 0"),
    "settings from a pipe": (a_pipe("classifier.json"), r"classifier\.json cannot be read"),
    "weights from a pipe": (a_pipe("classifier.safetensors"), r"safetensors cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_a_whole_classifier_is_refused_in_one_line(tmp_path: Path, damage: str):
    folder = tmp_path / "model"
    write(folder, SETTINGS)
    read_classifier(folder, dimension=4)
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        read_classifier(folder, dimension=4)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_links_are_followed_as_the_hub_s_cache_has_them(tmp_path: Path):
    write(tmp_path / "blobs", SETTINGS)
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert read_classifier(tmp_path / "snapshot")[0] == SETTINGS
