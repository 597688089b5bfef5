"""Model folders, of sentence-transformers or plain Hugging Face: what is in them, as bytes and settings.

Reads no weights and imports no torch. Sources: sentence-transformers 6.2 `base/model.py`, `base/modules/*`,
`sentence_transformer/modules/pooling.py`; the older format is that of its 2.x releases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from unbroken.base.errors import ConfigError
from unbroken.base.reading import read_document

# Where each module class has lived; the first is what every release from 2.0 on can load, 6.2 included.
MODULE_HOMES = {
    "Transformer": (
        "sentence_transformers.models",
        "sentence_transformers.models.Transformer",
        "sentence_transformers.base.modules.transformer",
        "sentence_transformers.sentence_transformer.modules",
    ),
    "Pooling": (
        "sentence_transformers.models",
        "sentence_transformers.models.Pooling",
        "sentence_transformers.sentence_transformer.modules.pooling",
        "sentence_transformers.sentence_transformer.modules",
    ),
    "Dense": (
        "sentence_transformers.models",
        "sentence_transformers.models.Dense",
        "sentence_transformers.base.modules.dense",
        "sentence_transformers.sentence_transformer.modules",
    ),
    "Normalize": (
        "sentence_transformers.models",
        "sentence_transformers.models.Normalize",
        "sentence_transformers.base.modules.normalize",
        "sentence_transformers.sentence_transformer.modules",
    ),
}
KINDS = {f"{home}.{kind}": kind for kind, homes in MODULE_HOMES.items() for home in homes}

LENGTH_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "chat_template.jinja",
    "chat_template.json",
)
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
HOW_TO_NAME = "give the path of a model folder, or the name of a model on the hub"


class NoModelError(ConfigError):
    """There is no model where one should be: no folder, and none of that name to be had."""


@dataclass(frozen=True)
class Part:
    """One module of the pipeline: what it is, its folder relative to the model's ("" for the folder itself)."""

    kind: str
    path: str
    config: Mapping[str, Any]

    def file(self, name: str) -> str:
        """Return the relative path of one of the part's files."""
        return f"{self.path}/{name}" if self.path else name


@dataclass
class Settings:
    """What a sentence-transformers folder says beside its modules."""

    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Take the settings out of `config_sentence_transformers.json`."""
        return cls(
            prompts={name: text or "" for name, text in (values.get("prompts") or {}).items()},
            default_prompt_name=values.get("default_prompt_name"),
            similarity_fn_name=values.get("similarity_fn_name"),
            truncate_dim=values.get("truncate_dim"),
        )


@dataclass(frozen=True)
class Folder:
    """A model folder as read: `documents` holds every file but the weights, by relative path, byte for byte."""

    root: Path
    parts: tuple[Part, ...]
    documents: Mapping[str, bytes]
    settings: Settings
    notes: tuple[str, ...] = ()

    @property
    def transformer(self) -> Part:
        """The part that holds the transformer: always the first."""
        return self.parts[0]

    def json(self, path: str) -> dict[str, Any]:
        """Return a document as a JSON object, {} if there is none."""
        data = self.documents.get(path)
        return parse_object(data, self.root / path) if data is not None else {}

    @property
    def length_file(self) -> str:
        """The file that holds `max_seq_length` and `do_lower_case`, whether it is there or not."""
        candidates = [self.transformer.file(name) for name in LENGTH_FILES]
        return next((name for name in candidates if name in self.documents), candidates[0])


def resolve(name: str | Path, *others: str) -> Path:
    """Return the folder of a model: the path itself, or a snapshot of the model of that name on the hub.

    A snapshot holds the files a model is made of, and those of the `others` there are. Raises `ConfigError` if there
    is neither. Needs a network only for a model not downloaded before.
    """
    path = Path(name).expanduser()
    if path.is_dir() or isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja", *others]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        raise NoModelError(
            f"no model folder at {name}, and no model of that name could be had from the hub",
            next_step=f"{HOW_TO_NAME} that this machine can reach",
        ) from None


def read_folder(root: Path) -> Folder:
    """Read a model folder without its weights.

    Raises `ConfigError` if it is not one, is damaged, or holds a module Unbroken does not know.
    """
    if not root.is_dir():
        raise NoModelError(f"no model folder at {root}", next_step="give a folder, or the name of a model on the hub")
    if (root / MODULES_FILE).is_file():
        return read_pipeline(root)
    if (root / "config.json").is_file():
        return read_plain(root)
    raise ConfigError(
        f"{root} is not a model folder: it holds neither {MODULES_FILE} nor config.json",
        next_step="copy the model folder again, whole, or name another model",
    )


def read_pipeline(root: Path) -> Folder:
    """Read a sentence-transformers folder."""
    entries = json_value(read_document(root / MODULES_FILE), root / MODULES_FILE)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(
            f"{root / MODULES_FILE} is not a list of modules",
            next_step="copy the model folder again, whole, or name another model",
        )
    parts = tuple(read_part(root, entry) for entry in entries)
    kinds = [part.kind for part in parts]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise ConfigError(
            f"{root}: modules {' + '.join(kinds)} do not make a text encoder",
            next_step="expected Transformer + Pooling, then any of Dense and Normalize",
        )
    documents = read_documents(root, parts[0]) | read_if_there(root, [MODULES_FILE, SETTINGS_FILE])
    documents |= read_if_there(root, [part.file("config.json") for part in parts])
    settings = documents.get(SETTINGS_FILE, b"{}")
    folder = Folder(root, parts, documents, Settings.of(parse_object(settings, root / SETTINGS_FILE)))
    refuse_unsupported(folder)
    return folder


def read_part(root: Path, entry: Mapping[str, Any]) -> Part:
    """Read one entry of `modules.json` and the part's configuration."""
    kind = KINDS.get(str(entry.get("type")))
    if kind is None:
        raise ConfigError(
            f"{root / MODULES_FILE}: module {entry.get('type')!r} is not supported",
            next_step=f"supported are {', '.join(MODULE_HOMES)}",
        )
    path = str(entry.get("path", "")).rstrip("/")
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ConfigError(f"{root / MODULES_FILE}: path {path!r} leads out of the model folder")
    part = Part(kind, path, {})
    file = root / part.file("config.json")
    if not file.is_file():
        if kind == "Normalize":
            return part
        raise ConfigError(
            f"{root}: {part.file('config.json')} is missing",
            next_step="copy the model folder again, whole, or name another model",
        )
    return Part(kind, path, parse_object(read_document(file), file))


def read_plain(root: Path) -> Folder:
    """Read a Hugging Face model folder; pooling is chosen as sentence-transformers does: mean, or last token."""
    file = root / "config.json"
    config = parse_object(read_document(file), file)
    architecture = next(iter(config.get("architectures") or []), "")
    mode = "lasttoken" if architecture.endswith("ForCausalLM") and config.get("is_causal", True) else "mean"
    pooling = {
        "word_embedding_dimension": config.get("hidden_size", config.get("dim")),
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": mode == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_lasttoken": mode == "lasttoken",
    }
    parts = (Part("Transformer", "", config), Part("Pooling", "1_Pooling", pooling))
    documents = read_documents(root, parts[0]) | read_if_there(root, ["config.json"])
    documents[MODULES_FILE] = render([module_entry(index, part) for index, part in enumerate(parts)])
    documents["1_Pooling/config.json"] = render(pooling)
    note = f"{root} is a plain Hugging Face model: its token vectors are pooled by {mode}"
    return Folder(root, parts, documents, Settings(), (note,))


def module_entry(index: int, part: Part) -> dict[str, Any]:
    """Return the entry of `modules.json` for a new folder, in the type string every release can load."""
    home = MODULE_HOMES[part.kind][0]
    return {"idx": index, "name": str(index), "path": part.path, "type": f"{home}.{part.kind}"}


def read_documents(root: Path, transformer: Part) -> dict[str, bytes]:
    """Return the transformer's own files: tokenizer, lengths, index of shards."""
    names = (*TOKENIZER_FILES, *LENGTH_FILES, INDEX_FILE)
    return read_if_there(root, [transformer.file(name) for name in names])


def read_if_there(root: Path, names: list[str]) -> dict[str, bytes]:
    """Return the content of those of the files that exist."""
    return {name: read_document(root / name) for name in names if (root / name).is_file()}


def tokenizer_files(folder: Folder) -> dict[str, bytes]:
    """Return the content of the tokenizer's files, by plain name."""
    names = {name: folder.transformer.file(name) for name in TOKENIZER_FILES}
    return {name: folder.documents[file] for name, file in names.items() if file in folder.documents}


def lower_cases(folder: Folder) -> bool:
    """Return whether texts are lower-cased whatever the tokenizer does."""
    return bool(folder.json(folder.length_file).get("do_lower_case"))


def refuse_unsupported(folder: Folder) -> None:
    """Refuse settings that would change what a text becomes and that Unbroken does not follow."""
    values = folder.json(folder.length_file)
    place = folder.root / folder.length_file
    if values.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise ConfigError(f"{place}: transformer_task {values['transformer_task']!r} is not a text encoder's")
    if "message" in (values.get("modality_config") or {}):
        raise ConfigError(f"{place}: models that wrap texts in a chat template are not supported")
    for key in ("query_expansion", "processing_kwargs", "query_length", "document_length"):
        if values.get(key):
            raise ConfigError(f"{place}: {key!r} is not supported")
    for part in folder.parts[1:]:
        names = {part.config.get("module_input_name"), part.config.get("module_output_name")}
        if names - {None, "sentence_embedding"}:
            raise ConfigError(f"{folder.root}: {part.kind} in {part.path} does not work on the sentence embedding")


def parse_object(data: bytes, place: Path) -> dict[str, Any]:
    """Parse a JSON object. Raises `ConfigError` naming the file."""
    value = json_value(data, place)
    if not isinstance(value, dict):
        raise ConfigError(
            f"{place} is not a JSON object", next_step="copy the model folder again, whole, or name another model"
        )
    return value


def json_value(data: bytes, place: Path) -> Any:
    """Parse JSON. Raises `ConfigError` naming the file."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as failure:
        raise ConfigError(
            f"{place} is damaged: {failure}", next_step="copy the model folder again, whole, or name another model"
        ) from None


def render(value: Any) -> bytes:
    """Return JSON as sentence-transformers writes it, the same bytes for the same value."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
