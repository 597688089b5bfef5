from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unbroken.base.errors import ConfigError
from unbroken.models.folder import Part
from unbroken.models.weights import Stored, match, read_weights

ROOT = Part("Transformer", "", {})


def test_every_tensor_is_a_fresh_aligned_copy(tmp_path: Path) -> None:
    """A header of 8 + 8k bytes puts mapped tensors anywhere; ours are at multiples of 64."""
    tensors = {f"{'x' * (n + 1)}": torch.randn(n + 1) for n in range(20)}
    save_file(tensors, tmp_path / "model.safetensors")
    for stored in read_weights(tmp_path, ROOT):
        assert stored.tensor.data_ptr() % 64 == 0
        assert stored.tensor.untyped_storage().nbytes() == stored.tensor.nbytes
        assert torch.equal(stored.tensor, tensors[stored.key])


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert {stored.key: stored.file for stored in read_weights(tmp_path, ROOT)} == names
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"00002-of-00002\.safetensors is missing"):
        read_weights(tmp_path, ROOT)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"index\.json is damaged"):
        read_weights(tmp_path, ROOT)


def test_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ConfigError, match=r"only as pytorch_model\.bin.*convert it"):
        read_weights(tmp_path, ROOT)


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weights: model\.safetensors is missing"):
        read_weights(tmp_path, ROOT)
    save_file({"a": torch.zeros(100)}, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-8])
    with pytest.raises(ConfigError, match="is damaged"):
        read_weights(tmp_path, ROOT)


def stored(key: str, *shape: int) -> Stored:
    return Stored("model.safetensors", key, torch.zeros(shape))


def test_names_match_with_prefix_and_old_endings(tmp_path: Path) -> None:
    wanted = {"layer.weight": torch.zeros(2), "norm.weight": torch.zeros(3), "norm.bias": torch.zeros(3)}
    entries = [stored("bert.layer.weight", 2), stored("bert.norm.gamma", 3), stored("norm.beta", 3), stored("cls.x", 9)]
    found = match(wanted, entries, "bert", tmp_path)
    assert {name: entry.key for name, entry in found.items()} == {
        "layer.weight": "bert.layer.weight",
        "norm.weight": "bert.norm.gamma",
        "norm.bias": "norm.beta",
    }


def test_missing_tensors_and_wrong_shapes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the weights lack 'a'"):
        match({"a": torch.zeros(2)}, [], "", tmp_path)
    with pytest.raises(ConfigError, match=r"'a' has shape \(3,\) in the weights, \(2,\) by the configuration"):
        match({"a": torch.zeros(2)}, [stored("a", 3)], "", tmp_path)
