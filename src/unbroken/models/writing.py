"""Writing a model folder: the files as they were read, changed only where the model was."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unbroken.models.folder import SETTINGS_FILE, Folder, Settings, render


def render_documents(folder: Folder, settings: Settings, max_length: int, length_changed: bool) -> dict[str, bytes]:
    """Return every file of the model folder that is not weights; the same bytes for the same model."""
    documents = dict(folder.documents)
    documents[SETTINGS_FILE] = render_settings(documents.get(SETTINGS_FILE), settings)
    if length_changed or folder.length_file not in documents:
        documents[folder.length_file] = render_length(folder.json(folder.length_file), max_length)
    config = folder.transformer.file("config.json")
    documents[config] = render_config(documents[config])
    return dict(sorted(documents.items()))


def render_settings(original: bytes | None, settings: Settings) -> bytes:
    """Return `config_sentence_transformers.json`, byte for byte as read if the settings still are."""
    values: dict[str, Any] = json.loads(original) if original is not None else {"model_type": "SentenceTransformer"}
    if original is not None and Settings.of(values) == settings:
        return original
    values["prompts"] = settings.prompts
    values["default_prompt_name"] = settings.default_prompt_name
    values["similarity_fn_name"] = settings.similarity_fn_name or "cosine"
    if settings.truncate_dim is not None:
        values["truncate_dim"] = settings.truncate_dim
    return render(values)


def render_length(values: Mapping[str, Any], max_length: int) -> bytes:
    """Return the file that holds `max_seq_length`, with this length."""
    return render({"do_lower_case": False, **values, "max_seq_length": max_length})


def render_config(original: bytes, dtype: str = "float32") -> bytes:
    """Return `config.json`, as read unless it announces another type than that of the weights.

    transformers takes the weights' type from this file and would round them again.
    """
    values = json.loads(original)
    announced = [key for key in ("dtype", "torch_dtype") if values.get(key) not in (None, dtype)]
    return render(values | dict.fromkeys(announced, dtype)) if announced else original


def save(
    root: Path,
    documents: Mapping[str, bytes],
    tensors: Mapping[str, Tensor],
    layout: Callable[[str], tuple[str, str]],
) -> None:
    """Write documents and tensors into a folder."""
    from safetensors.torch import save_file

    files: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        file, key = layout(name)
        files[file][key] = tensor.detach().cpu().contiguous()
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        save_file(content, root / file, metadata={"format": "pt"})
    for path, data in documents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
