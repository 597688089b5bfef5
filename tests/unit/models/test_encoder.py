from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import make_model_folder
from unbroken.base.errors import ConfigError
from unbroken.models.encoder import Encoder, EncoderWarning
from unbroken.models.inference import token_batches
from unbroken.models.ragged import Ragged

TEXTS = ["river stone", "cloud", "", "bright quiet engine paper window garden signal", "cloud"]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model_folder(tmp_path / "model")


@pytest.fixture
def encoder(folder: Path) -> Encoder:
    return Encoder.from_pretrained(folder)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_it_comes_ready_for_use(encoder: Encoder) -> None:
    assert not encoder.training
    assert (encoder.dimension, encoder.max_length, encoder.packed, encoder.notes) == (32, 32, True, ())
    assert all(parameter.data_ptr() % 64 == 0 for parameter in encoder.parameters())
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in encoder.parameters())


def test_loading_needs_neither_transformers_nor_the_compiler(folder: Path) -> None:
    program = (
        "import sys; from unbroken.models.encoder import Encoder; "
        f"Encoder.from_pretrained({str(folder)!r}).encode('river'); "
        "assert not {'transformers', 'torch._dynamo', 'sentence_transformers', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_embeddings_do_not_depend_on_company(encoder: Encoder) -> None:
    together = encoder.embed(encoder.tokenize(TEXTS))
    for index, text in enumerate(TEXTS):
        alone = encoder.embed(encoder.tokenize([text]))[0]
        torch.testing.assert_close(alone, together[index], rtol=0, atol=2e-6)
    assert torch.equal(together[1], together[4])


def test_the_same_batch_has_the_same_bits(folder: Path) -> None:
    """Also in another instance, dropout included, once the generator is seeded."""
    results = []
    for _ in range(2):
        encoder = Encoder.from_pretrained(folder).train()
        torch.manual_seed(3)
        encoder.embed(encoder.tokenize(TEXTS)).square().sum().backward()
        results.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padded_batches_of_any_side(encoder: Encoder, side: str) -> None:
    ragged = encoder.tokenize(TEXTS)
    rows, width = ragged.to_lists(), 20
    starts = {"left": [width - len(row) for row in rows], "right": [0] * 5, "both": [3] * 5}[side]
    ids, mask = torch.zeros(5, width, dtype=torch.long), torch.zeros(5, width, dtype=torch.long)
    for row, start, tokens in zip(range(5), starts, rows, strict=True):
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
    output = encoder({"input_ids": ids, "attention_mask": mask, "other": "kept"})
    assert set(output) == {"input_ids", "attention_mask", "other", "token_embeddings", "sentence_embedding"}
    torch.testing.assert_close(output["sentence_embedding"], encoder.embed(ragged), rtol=0, atol=2e-6)
    tokens = output["token_embeddings"]
    assert tokens.shape == (5, width, 32)
    assert not tokens[mask == 0].any()
    means = tokens.sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(means, dim=-1)
    torch.testing.assert_close(output["sentence_embedding"], expected, rtol=0, atol=2e-6)
    tokens.sum().backward()
    assert encoder.backbone.model.get_parameter("embeddings.word_embeddings.weight").grad is not None


def test_a_batch_without_mask_is_full_and_pairs_are_refused(encoder: Encoder) -> None:
    ids = torch.tensor([[2, 60, 3], [2, 61, 3]])
    expected = encoder.embed(Ragged.from_lists(ids.tolist()))
    assert torch.equal(encoder({"input_ids": ids})["sentence_embedding"], expected)
    with pytest.raises(ValueError, match="not pairs"):
        encoder({"input_ids": ids, "token_type_ids": torch.ones_like(ids)})


def test_encode_is_embed_in_eval_mode(encoder: Encoder) -> None:
    expected = encoder.embed(encoder.tokenize(TEXTS)).detach().numpy()
    encoder.train()
    encoder.backbone.eval()
    modes = [module.training for module in encoder.modules()]
    found = encoder.encode(TEXTS, batch_size=1)
    assert [module.training for module in encoder.modules()] == modes
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == np.float32
    assert encoder.encode("cloud").shape == (32,)
    assert encoder.encode([]).shape == (0, 32)
    tensor = encoder.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.requires_grad


def test_each_distinct_text_is_encoded_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda ragged: encoded.append(len(ragged)) or embed(ragged))
    encoder.encode(["cloud", "river", "cloud"] * 10)
    assert sum(encoded) == 2


def test_batches_hold_a_budget_of_tokens_longest_first() -> None:
    batches = [batch.tolist() for batch in token_batches(np.array([3, 9, 1, 3, 20]), 10)]
    assert batches == [[4], [1], [0, 3, 2]]


def test_prompts_by_name_text_or_default(encoder: Encoder) -> None:
    encoder.prompts["query"] = "river "
    named = encoder.encode("cloud", prompt_name="query")
    np.testing.assert_array_equal(named, encoder.encode("river cloud"))
    encoder.settings.default_prompt_name = "query"
    np.testing.assert_array_equal(encoder.encode("cloud"), named)
    np.testing.assert_array_equal(
        encoder.encode("cloud", prompt=""), encoder.encode("cloud", prompt_name=None, prompt="")
    )
    with pytest.raises(ConfigError, match="no prompt named 'passage'; known: query"):
        encoder.encode("cloud", prompt_name="passage")


def test_truncation_comes_before_normalisation(encoder: Encoder) -> None:
    short = encoder.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1.0, rtol=1e-5)
    encoder.settings.truncate_dim = 4
    assert encoder.encode("cloud").shape == (4,)


def test_progress_is_shown_when_asked_for(encoder: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode(TEXTS)
    assert capsys.readouterr().err == ""
    encoder.encode(TEXTS, show_progress_bar=True)
    output = capsys.readouterr()
    assert "Encoding" in output.err
    assert output.out == ""


def test_max_length_is_checked_and_written(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder, max_length=5)
    assert encoder.tokenize(["river " * 20]).lengths.tolist() == [5]
    assert json.loads(encoder.documents()["sentence_bert_config.json"])["max_seq_length"] == 5
    for length in (0, 65):
        with pytest.raises(ConfigError, match=f"max_length {length}: this model takes 1 to 64 tokens"):
            Encoder.from_pretrained(folder, max_length=length)


def test_lengths_are_those_of_sentence_transformers_within_what_the_model_has(folder: Path) -> None:
    (folder / "sentence_bert_config.json").unlink()
    edit(folder / "tokenizer_config.json", model_max_length=40)
    assert Encoder.from_pretrained(folder).max_length == 40
    edit(folder / "tokenizer_config.json", model_max_length=int(1e30))
    assert Encoder.from_pretrained(folder).max_length == 64
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    assert Encoder.from_pretrained(folder).max_length == 64


def test_unused_tensors_are_carried_along(folder: Path, tmp_path: Path) -> None:
    extra = {"pooler.dense.weight": torch.randn(32, 32), "embeddings.position_ids": torch.arange(64)[None]}
    save_file(load_file(folder / "model.safetensors") | extra, folder / "model.safetensors")
    encoder = Encoder.from_pretrained(folder)
    buffers = dict(encoder.named_buffers())
    assert {name: encoder.layout(name)[1] for name in buffers} == {f"carried.{key}": key for key in extra}
    assert all(torch.equal(buffers[f"carried.{key}"], tensor) for key, tensor in extra.items())
    encoder.save_pretrained(tmp_path / "saved")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(written[key], tensor) for key, tensor in extra.items())
    assert written.keys() == load_file(folder / "model.safetensors").keys()


def test_every_tensor_has_a_place_and_keeps_the_name_it_had(folder: Path, tmp_path: Path) -> None:
    """Also when the file is a masked language model's, with a prefix and names of old."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        for new, former in old.items():
            key = key.replace(new, former)
        tensors[f"bert.{key}"] = tensor
    before = Encoder.from_pretrained(folder).encode(TEXTS)
    save_file(tensors | {"cls.predictions.bias": torch.zeros(9)}, folder / "model.safetensors")
    encoder = Encoder.from_pretrained(folder)
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)
    assert {encoder.layout(name) for name in encoder.state_dict()} == {
        ("model.safetensors", key) for key in [*tensors, "cls.predictions.bias"]
    }


def test_the_transformer_may_lie_in_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    """As sentence-transformers wrote it before 2.0."""
    before = Encoder.from_pretrained(folder).encode(TEXTS)
    save_file(
        load_file(folder / "model.safetensors") | {"pooler.dense.bias": torch.ones(32)}, folder / "model.safetensors"
    )
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).rename(inner / file)
    (folder / "sentence_bert_config.json").rename(inner / "sentence_bert_config.json")
    modules = json.loads((folder / "modules.json").read_bytes())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    encoder = Encoder.from_pretrained(folder)
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)
    assert encoder.max_length == 32
    encoder.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(Encoder.from_pretrained(tmp_path / "saved").encode(TEXTS), before)
    assert "0_Transformer/tokenizer.json" in encoder.documents()
    assert load_file(tmp_path / "saved" / "0_Transformer" / "model.safetensors")["pooler.dense.bias"].all()


def test_documents_are_the_same_bytes_every_time(folder: Path) -> None:
    documents = Encoder.from_pretrained(folder).documents()
    assert documents == Encoder.from_pretrained(folder).documents()
    assert list(documents) == sorted(documents)
    assert {"config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"} <= set(documents)
    assert all(isinstance(content, bytes) for content in documents.values())
    assert not any(path.endswith((".safetensors", "README.md")) for path in documents)


def test_half_precision_weights_become_float32_and_say_so(folder: Path) -> None:
    tensors = {key: tensor.half() for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    edit(folder / "config.json", dtype="float16")
    encoder = Encoder.from_pretrained(folder)
    assert encoder.dtype == torch.float32
    assert json.loads(encoder.documents()["config.json"])["dtype"] == "float32"


def test_a_saved_folder_is_the_same_model(encoder: Encoder, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    encoder.save_pretrained(tmp_path / "saved")
    again = Encoder.from_pretrained(tmp_path / "saved")
    assert again.documents() == encoder.documents()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_a_copy_is_independent(encoder: Encoder) -> None:
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert next(encoder.parameters()).any()
    np.testing.assert_array_equal(twin.tokenize(TEXTS).ids, encoder.tokenize(TEXTS).ids)


def test_what_is_wrong_with_a_folder_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    def refused(pattern: str) -> None:
        with pytest.raises(ConfigError, match=pattern) as caught:
            Encoder.from_pretrained(folder)
        assert "\n" not in str(caught.value)

    tensors = load_file(folder / "model.safetensors")
    save_file({key: tensor for key, tensor in tensors.items() if "word" not in key}, folder / "model.safetensors")
    refused("the weights lack 'embeddings.word_embeddings.weight'")
    save_file(tensors, folder / "model.safetensors")
    edit(folder / "config.json", vocab_size=7)
    refused("'embeddings.word_embeddings.weight' has shape")
    edit(folder / "config.json", model_type="no-such-family")
    refused("config.json: transformers cannot build this model")
    config = json.loads((folder / "config.json").read_bytes())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    refused("names no model_type")


def test_a_plain_folder_warns_once_and_notes_it(folder: Path) -> None:
    (folder / "modules.json").unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = Encoder.from_pretrained(folder)
    assert [warning.category for warning in caught] == [EncoderWarning]
    assert encoder.notes == (str(caught[0].message),)
    assert len(encoder.heads) == 0
