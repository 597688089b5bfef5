"""How an adapted model is asked: its chat template, its system message, what it extracts. Imports no torch.

A model that is trained on questions of one kind answers those. So the folder of a trained model says how they were put,
in a file of its own beside the weights, and goes on doing so wherever it is copied to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbroken.base.config import load_yaml
from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import canonical, digest
from unbroken.base.reading import read_document
from unbroken.models.causal_folder import ADAPTER_CONFIG, CONFIG_FILE, GGUF_ENDING, Place, locate
from unbroken.models.folder import MODULES_FILE, NoModelError, parse_object, render, resolve
from unbroken.store.run import read_run
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.extraction.rows import ExtractionRows
from unbroken.tasks.adapt.extraction.schema import Schema
from unbroken.tasks.adapt.source import content_digest
from unbroken.tasks.origin import enclosing_run, resolve_model

ASKING_FILE = "adapt.json"
# What of a configuration decides how a model is asked, and in which precision it answers: what a run cannot change.
KEYS = ("extraction", "loss_on", "max_length", "precision", "system_prompt", "template")
# What a run says beside.
RUN_KEYS = ("columns", "device", "eval_data", "eval_rows", "max_new_tokens", "trust_remote_code", "tuning")
FORMAT = 1
CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Asking:
    """How a model is asked: of `config` the keys in `KEYS`, and with something to extract the whole schema.

    In a configuration that no run is behind, the other keys hold nothing of meaning.
    """

    config: AdaptConfig
    schema: Schema | None = None

    @property
    def values(self) -> dict[str, Any]:
        """What the folder of a trained model says, as JSON values."""
        said = {"format": FORMAT} | self.config.model_dump(mode="json", include=set(KEYS))
        extraction = self.config.extraction
        if extraction is not None:  # the same bytes however the same was written
            said["extraction"] |= {"types_per_prompt": extraction.at_once, "negatives": extraction.share_of_absent}
        if self.schema is not None:
            kind, types, parts = self.schema.value()
            said["schema"] = {"kind": kind, "types": types, "parts": parts, "names": dict(self.schema.names)}
        return dict(sorted(said.items()))

    @property
    def digest(self) -> str:
        """A digest of all that decides how the model is asked."""
        return digest(canonical([self.values, self.config.columns, self.config.max_new_tokens, self.config.tuning]))

    def documents(self) -> dict[str, bytes]:
        """Return the file for the folder of a trained model."""
        return {ASKING_FILE: render(self.values)}

    def questions(self) -> ExtractionRows:
        """Return what puts questions about any text. Only where there is something to extract."""
        extraction = self.config.extraction
        assert extraction is not None, "there is something to extract"
        blank = [{extraction.text: "-", extraction.column: []}]
        return ExtractionRows(
            blank, extraction, seed=self.config.seed, schema=self.schema, system_prompt=self.config.system_prompt
        )


def asking_of(model: str | os.PathLike[str], like: str | os.PathLike[str] | None = None) -> Asking:
    """Return how `model` is asked: as it was trained, or as plainly as can be if nothing says how.

    With `like` as that says: a configuration file of a run, a run, or the folder of a trained model. Raises
    `ConfigError` and `DataError`.
    """
    if like is not None and not os.path.isdir(like):
        config = AdaptConfig.from_values(load_yaml(Path(like)))
        return Asking(config, schema_of(config))
    source = os.fspath(model if like is None else like)
    run = enclosing_run(Path(source).expanduser())
    recorded = (read_run(run) or {}).get("config", {}) if run else {}
    if recorded and recorded.get("task") != "adapt":
        raise ConfigError(f"{source} is no run of task: adapt", next_step="name one, or a configuration of one")
    values = {key: recorded[key] for key in RUN_KEYS if key in recorded}
    folder = _folder_of(source)
    said = _read(folder / ASKING_FILE) if folder is not None else {}
    if like is not None and not said:
        raise ConfigError(
            f"{like} does not say how it is asked: {ASKING_FILE} is missing",
            next_step="give a run, the model folder of one, or a configuration file",
        )
    values |= {key: said[key] for key in KEYS if key in said}
    config = config_with(values | {"model": os.fspath(model)})
    schema = said.get("schema")
    return Asking(config, None if schema is None else _schema(schema))


def config_with(values: Mapping[str, Any]) -> AdaptConfig:
    """Return a configuration of which no run is made."""
    blank = {"task": "adapt", "output_dir": "", "train_data": "none", "model": ""}
    return AdaptConfig.from_values(blank | dict(values))


def schema_of(config: AdaptConfig) -> Schema | None:
    """Return the schema of a run's configuration: as given, or what occurs in its training data."""
    if config.extraction is None:
        return None
    return ExtractionRows(config.train_data, config.extraction, seed=config.seed).schema


def is_adapted(model: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a causal language model, or a run or an adapter of one; it is not checked further."""
    name = os.fspath(model)
    if name.lower().endswith(GGUF_ENDING):
        return True
    run = enclosing_run(Path(name).expanduser())
    if run is not None:
        return bool((read_run(run) or {}).get("config", {}).get("task") == "adapt")
    folder = resolve(resolve_model(name).model)
    if (folder / ADAPTER_CONFIG).is_file():
        return True
    if (folder / MODULES_FILE).is_file() or not folder.is_dir():
        return False
    if not (folder / CONFIG_FILE).is_file():
        return any(file.suffix.lower() == GGUF_ENDING for file in folder.iterdir())
    built = parse_object(read_document(folder / CONFIG_FILE), folder / CONFIG_FILE).get("architectures") or []
    return any(str(name).endswith(CAUSAL_ENDINGS) for name in built)


def place_of(model: str | os.PathLike[str]) -> Place:
    """Return where a model is read from: that of a run, a checkpoint, or any that can be trained on.

    Raises `ConfigError` if there is none.
    """
    name = os.fspath(model)
    try:
        return locate(_resolved(name))
    except NoModelError:
        place = _by_the_runs_model(name)
        if place is None:
            raise
        return place


def _by_the_runs_model(name: str) -> Place | None:
    """Return where a run's adapter is, on the model the run names; None unless that has the content it had then.

    What the adapter's folder names may be gone: a GGUF file's conversion lies in a cache.
    """
    run = enclosing_run(Path(name).expanduser())
    recorded = (read_run(run) or {}) if run else {}
    adapter = Path(_resolved(name))
    if not recorded or not (adapter / ADAPTER_CONFIG).is_file():
        return None
    try:
        place = locate(_resolved(recorded["config"]["model"]))
    except ConfigError:
        return None
    folder = place.folder
    if folder is None:
        from unbroken.models.gguf import converted

        assert place.gguf is not None, "a place has one of both"
        folder = converted(place.gguf)
    found = content_digest(folder, bool(recorded["config"].get("trust_remote_code")))
    return Place(folder, adapter=adapter) if found == recorded["contract"]["model"]["digest"] else None


def _resolved(name: str) -> str:
    return name if name.lower().endswith(GGUF_ENDING) else resolve_model(name).model


def _folder_of(source: str) -> Path | None:
    """Return the folder that may say how a model is asked; None for what has none."""
    try:
        place = place_of(source)
    except NoModelError:  # of an adapter whose base is not here, say: its own folder is there all the same
        path = resolve_model(source).model
        return Path(path).expanduser() if os.path.isdir(path) else None
    return place.adapter or place.folder


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    said = parse_object(read_document(file), file)
    if said.get("format") != FORMAT:
        raise ConfigError(f"{file} is of another format than this version reads", next_step="use a newer Unbroken")
    return said


def _schema(value: Mapping[str, Any]) -> Schema:
    parts = {
        name: tuple(tuple(one) if isinstance(one, list) else one for one in some)
        for name, some in value["parts"].items()
    }
    return Schema(value["kind"], tuple(value["types"]), parts, value["names"])
