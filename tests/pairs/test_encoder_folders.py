"""Encoder against SentenceTransformer on the same folders: embeddings, ids, and folders written by either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from tiny import make_model_folder
from unbroken.models.encoder import Encoder
from unbroken.models.packing import Pack
from unbroken.models.pooling import MODES
from unbroken.models.pooling import Pooling as OwnPooling

TEXTS = [
    "river stone cloud",
    "",
    "a quiet garden, and then: " + "window paper lantern " * 200,
    "Größe 日本語 😀 naïve\u00a0café\nnew line",
    "river stone cloud",
    "winter",
    "The morning harbour is bright; the engine hums [MASK] [SEP] quietly.",
    " leading and trailing spaces  ",
]

# The tiny model's tokenizer.json does not declare its special tokens; transformers adds them when it loads one.
PLAIN_TEXTS = [text for text in TEXTS if "[" not in text]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def theirs(folder: Path, texts: list[str] = TEXTS, **options: Any) -> NDArray[np.float32]:
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.encode(texts, show_progress_bar=False, **options))


def write_with_layout(encoder: Encoder, folder: Path) -> None:
    """Write a folder as a run's store does: documents as they are, each tensor where the layout says."""
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in encoder.state_dict().items():
        file, key = encoder.layout(name)
        files.setdefault(file, {})[key] = tensor
    for path, content in encoder.documents().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})


@pytest.mark.minilm
def test_minilm_embeddings_are_those_of_sentence_transformers(minilm: Path) -> None:
    encoder = Encoder.from_pretrained(minilm)
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs(minilm), atol=1e-6, rtol=0)
    np.testing.assert_allclose(encoder.encode(TEXTS[0]), theirs(minilm, TEXTS[:1])[0], atol=1e-6, rtol=0)
    options = {"prompt": "query: ", "truncate_dim": 64, "normalize_embeddings": True}
    np.testing.assert_allclose(encoder.encode(TEXTS, **options), theirs(minilm, **options), atol=1e-6, rtol=0)


@pytest.mark.minilm
def test_minilm_ids_are_those_of_sentence_transformers(minilm: Path) -> None:
    model = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    batch = model.preprocess(TEXTS)
    expected = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    encoder = Encoder.from_pretrained(minilm)
    assert encoder.tokenize(TEXTS).to_lists() == expected
    assert max(map(len, expected)) == encoder.max_length == model.max_seq_length
    assert encoder.tokenizer(TEXTS, truncation=True)["input_ids"] == expected


@pytest.mark.minilm
def test_written_minilm_loads_to_the_same_embeddings(minilm: Path, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(minilm)
    write_with_layout(encoder, tmp_path)
    np.testing.assert_allclose(theirs(tmp_path), encoder.encode(TEXTS), atol=1e-6, rtol=0)
    for path, content in encoder.documents().items():
        assert content == (minilm / path).read_bytes(), f"{path} was not carried over as it was"
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("saved_by_them", [False, True], ids=["old type strings", "new type strings"])
def test_pipelines_survive_the_round_trip(saved_by_them: bool, tmp_path: Path) -> None:
    """Transformer + Pooling (two modes) + Dense (two of them) + Normalize, with prompts, trained a little."""
    folder = make_pipeline(tmp_path, saved_by_them)
    encoder = Encoder.from_pretrained(folder)
    assert encoder.dimension == 8
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs(folder), atol=1e-6, rtol=0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01)
    encoder.prompts["passage"] = "garden: "
    written = tmp_path / "written"
    write_with_layout(encoder, written)
    assert (written / "modules.json").read_bytes() == (folder / "modules.json").read_bytes()
    np.testing.assert_allclose(theirs(written), encoder.encode(TEXTS), atol=1e-6, rtol=0)
    ours = encoder.encode(TEXTS, prompt_name="passage")
    np.testing.assert_allclose(theirs(written, prompt_name="passage"), ours, atol=1e-6, rtol=0)
    again = Encoder.from_pretrained(written)
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert again.documents() == encoder.documents()


def make_pipeline(root: Path, saved_by_them: bool) -> Path:
    base = make_model_folder(root / "base")
    transformer = Transformer(str(base), max_seq_length=24)
    modules = [
        transformer,
        Pooling(32, ("cls", "mean")),
        Dense(64, 16),
        Dense(16, 8, activation_function=torch.nn.GELU()),
        Normalize(),
    ]
    torch.manual_seed(0)
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "river: "})
    model.default_prompt_name = "query"
    folder = root / "pipeline"
    model.save_pretrained(str(folder), create_model_card=False)
    if not saved_by_them:
        entries = json.loads((folder / "modules.json").read_bytes())
        for entry in entries:
            entry["type"] = "sentence_transformers.models." + entry["type"].rsplit(".", 1)[1]
        (folder / "modules.json").write_text(json.dumps(entries))
    return folder


def test_plain_model_is_pooled_as_they_do(tmp_path: Path) -> None:
    base = make_model_folder(tmp_path / "base")
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (plain / name).write_bytes((base / name).read_bytes())
    with pytest.warns(UserWarning, match="pooled by mean"):
        encoder = Encoder.from_pretrained(plain)
    np.testing.assert_allclose(encoder.encode(PLAIN_TEXTS), theirs(plain, PLAIN_TEXTS), atol=1e-6, rtol=0)
    written = tmp_path / "written"
    write_with_layout(encoder, written)
    np.testing.assert_allclose(theirs(written, PLAIN_TEXTS), encoder.encode(PLAIN_TEXTS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompt_length", [0, 2])
def test_pooling_is_theirs(mode: str, prompt_length: int) -> None:
    """Values and gradients, padded on the right, with and without a prompt to leave out."""
    lengths = np.array([5, 3, 5, 9, 4])
    torch.manual_seed(0)
    flat = torch.randn(int(lengths.sum()), 6, dtype=torch.float64, requires_grad=True)
    padded = torch.nn.utils.rnn.pad_sequence(flat.split(lengths.tolist()), batch_first=True)
    mask = torch.arange(9) < torch.from_numpy(lengths)[:, None]
    reference = Pooling(6, mode, include_prompt=prompt_length == 0)
    features = {"token_embeddings": padded, "attention_mask": mask.long(), "prompt_length": prompt_length}
    expected = reference(features)["sentence_embedding"]
    pack = Pack.of(lengths)
    own = OwnPooling((mode,), include_prompt=prompt_length == 0)
    actual = own(flat[pack.places], pack, np.full(5, prompt_length))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    (theirs_gradient,) = torch.autograd.grad((expected * weights).sum(), flat, retain_graph=True)
    (own_gradient,) = torch.autograd.grad((actual * weights).sum(), flat)
    torch.testing.assert_close(own_gradient, theirs_gradient, rtol=1e-12, atol=1e-12)


def test_a_prompt_left_out_of_pooling_is_left_out_as_they_do(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    config = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "include_prompt": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    ours = Encoder.from_pretrained(folder).encode(PLAIN_TEXTS, prompt="river: ")
    np.testing.assert_allclose(ours, theirs(folder, PLAIN_TEXTS, prompt="river: "), atol=1e-6, rtol=0)
