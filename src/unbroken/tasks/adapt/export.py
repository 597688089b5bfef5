"""A finished model as a folder of its own: as it is, or adapters merged into the model they belong to."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from unbroken.base.errors import ConfigError
from unbroken.base.reading import read_document
from unbroken.models.causal_folder import ADAPTER_CONFIG, CONFIG_FILE
from unbroken.models.chat import OWN, TEMPLATE_FILE
from unbroken.models.weights import read_file
from unbroken.store.layout import WEIGHTS_SUFFIX
from unbroken.store.model import replace_model
from unbroken.tasks.adapt.asking import ASKING_FILE, asking_of, place_of
from unbroken.tasks.adapt.use import Found
from unbroken.tasks.origin import enclosing_run

if TYPE_CHECKING:
    from torch import Tensor


def export(model: str | os.PathLike[str], output: Path, *, merge: bool = False) -> None:
    """Write the model of a run, a checkpoint or an adapter's folder to `output`: whole, or not at all.

    With `merge` adapters become part of the weights, and what loads the folder needs no PEFT; without, the folder is
    copied. An earlier model's folder there is replaced. Raises `ConfigError` if there is nothing to merge or `output`
    is anything else, and `StorageError`.
    """
    output = output.expanduser()
    require_place(output, os.fspath(model))
    place = place_of(model)
    if merge and place.adapter is None:
        raise ConfigError(f"{model} has no adapter to merge", next_step="leave out --merge: the folder is copied")
    if merge:
        merged(model, output)
        return
    folder = place.adapter or Found.of(model).folder
    documents: dict[str, bytes] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if file.name.startswith("."):
            continue
        if file.suffix == WEIGHTS_SUFFIX:
            tensors[name] = read_file(file)
        else:
            documents[name] = read_document(file)
    replace_model(output, documents, tensors)


def merged(model: str | os.PathLike[str], output: Path) -> None:
    """Write a model with its adapter in its weights. See `export`."""
    asking = asking_of(model)
    found = Found.of(model)
    _, adapter = found.load(asking, "cpu")
    assert adapter is not None, "the caller has looked"
    assert found.adapter is not None, "it was loaded from there"
    tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in adapter.merged():
        file, key = adapter.merged_layout(name)
        tensors[file][key] = tensor
    told = asking.documents() if (found.adapter / ASKING_FILE).is_file() else {}
    if asking.config.template != OWN:
        told[TEMPLATE_FILE] = found.chat(asking).template.encode()
    replace_model(output, {**adapter.merged_documents(), **told}, tensors)


def require_place(output: Path, model: str) -> None:
    """Raise `ConfigError` unless a model may be written at `output`: nothing there, an empty folder or a model."""
    run = enclosing_run(output)
    if run is not None:
        raise ConfigError(
            f"{output} belongs to the run {run}",
            why="what a run wrote is compared with its record",
            next_step="choose a folder outside it",
        )
    if not os.path.lexists(output):
        return
    if output.exists() and Path(model).expanduser().exists() and output.samefile(Path(model).expanduser()):
        raise ConfigError(f"{output} is the model that is read", next_step="choose another name")
    is_model = output.is_dir() and any((output / name).is_file() for name in (CONFIG_FILE, ADAPTER_CONFIG))
    if not output.is_dir() or (any(output.iterdir()) and not is_model):
        raise ConfigError(f"{output} is there and is no model folder", next_step="choose another name")
