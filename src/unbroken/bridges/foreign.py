"""Checkpoints of other trainers: which they are, what is in them, what could be resumed and what would be lost."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unbroken.base.errors import ConfigError
from unbroken.bridges.contents import Tensors, adam_numbers, mentions, pickle_problem, read_object, read_tensors
from unbroken.run.findings import Section

STEP_FOLDER = re.compile(r"checkpoint-(\d+)")
TRAINER_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "scaler.pt", "training_args.bin")
RANDOM_STATES = re.compile(r"rng_state(_\d+)?\.pth")
DEEPSPEED = re.compile(r"global_step\d+")
WEIGHTS = re.compile(r"(model|adapter_model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)")
M3_HEADS = ("colbert_linear.pt", "sparse_linear.pt")
SETFIT_HEAD = "model_head.pkl"
TRAINERS = {"setfit": "SetFit", "FlagEmbedding": "FlagEmbedding", "sentence_transformers": "sentence-transformers"}
# Buffers and unused layers are not trained; when less than this share is, more than those was left out.
FEWER = 0.98
ADAPTER_WEIGHTS, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
ADAPTER_BASE = "base_model.json"  # ours
WEIGHTS_ALONE = (
    "by DeepKE's checkpoint_dir, or LLaMA-Factory's adapter_name_or_path, alone: all but the weights; it begins at "
    "step 0 with a new optimizer and learning rate, and the rank, alpha and dropout asked for count for nothing"
)
LOSS_LOST = "parameters of the loss if it has any (TSDAE decoder, softmax classifier, projection): never saved there"


@dataclass(frozen=True)
class Foreign:
    """A folder another trainer wrote. `parts` is a table of what is there; the rest are sentences."""

    kind: str
    root: Path
    loads_as: str
    values: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]
    resumable: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def sections(self) -> list[Section]:
        """Return the same for people and programs."""
        head = {"path": str(self.root), "kind": self.kind, "loads_as": self.loads_as, **self.values}
        return [
            Section("folder", head, warnings=tuple(self.problems)),
            Section("what_is_there", {"file": self.parts}),
            Section("could_be_resumed", {"what": self.resumable or ["nothing"]}),
            Section("would_be_lost", {"what": self.lost or ["nothing"]}),
        ]


def recognise(folder: Path) -> Foreign | None:
    """Return what a folder is, or None if it is no checkpoint and no model. Nothing in it is unpickled."""
    try:
        found = Contents(folder)
    except OSError as failure:
        raise ConfigError(f"{folder} cannot be read: {failure.strerror or failure}") from None
    if not found.weights and not found.is_trainers and found.adapter == {} and "modules.json" not in found.names:
        return None
    return Foreign(
        kind=kind_of(found),
        root=folder,
        loads_as=loads_as(found),
        values=values_of(found),
        parts=parts_of(found),
        resumable=resumable(found),
        lost=lost(found),
        problems=found.problems + incomplete(found),
    )


def step_folders(folder: Path) -> list[Path]:
    """Return the `checkpoint-N` folders of another trainer's output folder, by step."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    matches = sorted((int(match[1]), match[0]) for match in map(STEP_FOLDER.fullmatch, names) if match)
    return [folder / name for _, name in matches if (folder / name).is_dir()]


class Contents:
    """The files of a folder and the documents that say what it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []
        self.names = set(os.listdir(root))
        self.config = read_object(root / "config.json", self.problems)
        self.adapter = read_object(root / "adapter_config.json", self.problems)
        self.adapter_base = read_object(root / ADAPTER_BASE, self.problems)
        self.trainer_state = read_object(root / "trainer_state.json", self.problems)
        self.weights = self._weights()
        self.tensors = {path: self._tensors(path) for path in self.weights}
        self.random_states = sorted(name for name in self.names if RANDOM_STATES.fullmatch(name))
        self.deepspeed = sorted(name for name in self.names if DEEPSPEED.fullmatch(name))
        self.is_trainers = bool(self.names.intersection(TRAINER_FILES) or self.random_states or self.deepspeed)
        words = mentions(root / "training_args.bin", TRAINERS)
        self.trainer = next((name for word, name in TRAINERS.items() if word in words), "")
        for name in sorted(self.names & {"optimizer.pt", "scheduler.pt", "scaler.pt", "training_args.bin"}):
            self._look(name)

    @property
    def is_setfit(self) -> bool:
        """SetFit's own files, or the loss name only SetFit logs under."""
        embedding_loss = any("embedding_loss" in entry for entry in self.logged)
        return self.trainer == "SetFit" or embedding_loss or bool(self.names & {"config_setfit.json", SETFIT_HEAD})

    @property
    def is_flag(self) -> bool:
        """FlagEmbedding's arguments, or the heads of its M3 models."""
        return self.trainer == "FlagEmbedding" or bool(self.names.intersection(M3_HEADS))

    @property
    def is_adapter(self) -> bool:
        """What PEFT writes, or a part of it."""
        return bool(self.adapter) or bool(self.names & {"adapter_config.json", ADAPTER_WEIGHTS, ADAPTER_PICKLE})

    @property
    def is_sentence_transformers(self) -> bool:
        """A pipeline of modules."""
        return "modules.json" in self.names

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The trainer's log."""
        entries = self.trainer_state.get("log_history")
        return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []

    @property
    def architectures(self) -> list[str]:
        """The classes the configuration names."""
        named = self.config.get("architectures")
        return list(map(str, named)) if isinstance(named, list) else []

    @property
    def numbers(self) -> int:
        """How many numbers the weights hold, as far as that can be told without unpickling."""
        return sum(tensors.numbers for tensors in self.tensors.values())

    def size(self, name: str) -> int:
        """Return the bytes of a file, or of all files in a folder."""
        path = self.root / name
        try:
            return path.stat().st_size if path.is_file() else sum(f.lstat().st_size for f in path.rglob("*"))
        except OSError:
            return 0

    def _weights(self) -> list[str]:
        """Weight files of the folder and of a pipeline's modules, not those of checkpoints further down."""
        places = [self.root, *(self.root / name for name in sorted(self.names) if re.match(r"\d+_", name))]
        return [
            path.relative_to(self.root).as_posix()
            for place in places
            if place.is_dir()
            for path in sorted(place.iterdir())
            if WEIGHTS.fullmatch(path.name) and path.is_file()
        ]

    def _tensors(self, name: str) -> Tensors:
        path = self.root / name
        tensors = read_tensors(path) if path.suffix == ".safetensors" else Tensors(problem=pickle_problem(path))
        if tensors.problem:
            self.problems.append(tensors.problem)
        return tensors

    def _look(self, name: str) -> None:
        problem = pickle_problem(self.root / name)
        if problem:
            self.problems.append(problem)


def kind_of(found: Contents) -> str:
    """Return in words what wrote the folder and what it is."""
    what = "checkpoint" if found.is_trainers else "model"
    if found.is_setfit:
        return f"SetFit {what}"
    if found.is_flag:
        return f"FlagEmbedding {what}"
    if found.is_adapter:
        return "Hugging Face Trainer checkpoint of a PEFT adapter" if found.is_trainers else "PEFT adapter"
    if found.is_sentence_transformers or found.trainer == "sentence-transformers":
        return f"sentence-transformers {what}"
    return "Hugging Face Trainer checkpoint" if found.is_trainers else "Hugging Face model"


def loads_as(found: Contents) -> str:
    """Return the call that loads the folder as a model."""
    path = str(found.root)
    if not found.weights:
        return "nothing: it has no weights"
    if SETFIT_HEAD in found.names or "config_setfit.json" in found.names:
        return f"SetFitModel.from_pretrained({path!r})"
    if found.is_adapter and not found.adapter:
        return "nothing: adapter_config.json, which says what the weights are, is missing or damaged"
    if found.adapter:
        base = found.adapter.get("base_model_name_or_path")
        return f"PeftModel.from_pretrained(<{base or 'its base model'}>, {path!r})"
    if found.is_sentence_transformers:
        return f"SentenceTransformer({path!r})"
    name = next(iter(found.architectures), "AutoModel")
    if name.endswith("ForSequenceClassification"):
        return f"CrossEncoder({path!r}), or {name}.from_pretrained"
    return f"{name}.from_pretrained({path!r})"


def values_of(found: Contents) -> dict[str, Any]:
    """Return where the checkpoint stands and what it is of."""
    state = found.trainer_state
    losses = [value for entry in found.logged for key, value in entry.items() if key in ("loss", "embedding_loss")]
    values = {
        "step": state.get("global_step"),
        "steps_in_all": state.get("max_steps"),
        "epoch": state.get("epoch"),
        "train_batch_size": state.get("train_batch_size"),
        "last_logged_loss": losses[-1] if losses else None,
        "best_metric": state.get("best_metric"),
        "architecture": ", ".join(found.architectures) or None,
        "base_model": found.adapter.get("base_model_name_or_path"),
        "lora_r": found.adapter.get("r"),
        "lora_alpha": found.adapter.get("lora_alpha"),
        "lora_dropout": found.adapter.get("lora_dropout"),
        "target_modules": named(found.adapter.get("target_modules")),
        "base_digest": found.adapter_base.get("digest"),
        "checkpoints": ", ".join(path.name for path in step_folders(found.root)) or None,
    }
    return {key: value for key, value in values.items() if value is not None}


def named(value: Any) -> str | None:
    """Return names as a line, whether there is one or a list of them."""
    return ", ".join(map(str, sorted(value, key=str))) if isinstance(value, list) else value and str(value)


def parts_of(found: Contents) -> dict[str, dict[str, Any]]:
    """Return the table of what is there: file, size, and what it holds as far as that can be told."""
    parts: dict[str, dict[str, Any]] = {}
    for name, tensors in found.tensors.items():
        holds = "weights (pickle, not opened)"
        if tensors.count:
            holds = f"{tensors.count} tensors, {tensors.numbers:,} numbers, {', '.join(tensors.dtypes)}"
        parts[name] = {"size_bytes": found.size(name), "holds": tensors.problem or holds}
    others = {
        "optimizer.pt": "the optimizer's state (pickle, not opened)",
        "scheduler.pt": "the schedule's position (pickle, not opened)",
        "scaler.pt": "the loss scale of mixed precision (pickle, not opened)",
        "trainer_state.json": "step, epoch, best metric, log",
        "training_args.bin": f"the settings{f' of {found.trainer}' if found.trainer else ''} (pickle, not opened)",
        SETFIT_HEAD: "the classification head (pickle, not opened)",
        "latest": "the name of DeepSpeed's folder",
        "adapter_config.json": "rank, alpha, dropout, targets, and the base model's name",
        ADAPTER_BASE: "the digest of the base model",
        **dict.fromkeys(found.random_states, "random state of one process (pickle, not opened)"),
        **dict.fromkeys(found.deepspeed, "weights and optimizer in DeepSpeed's parts (pickle, not opened)"),
        **dict.fromkeys(M3_HEADS, "a head of FlagEmbedding's M3 (pickle, not opened)"),
    }
    parts |= {
        name: {"size_bytes": found.size(name), "holds": holds} for name, holds in others.items() if name in found.names
    }
    return parts


def resumable(found: Contents) -> list[str]:
    """Say what could be carried over."""
    lines = []
    if found.weights:
        what = "the adapter's weights" if found.is_adapter else "the weights"
        how = f"as the start of a new run (`model: {found.root}`)"
        if found.is_adapter and ADAPTER_WEIGHTS not in found.names:
            how = f"once PEFT has loaded them, where {ADAPTER_PICKLE} is trusted, and saved them as {ADAPTER_WEIGHTS}"
        if found.is_adapter and not found.adapter:
            how = "with the adapter_config.json they were saved with"
        lines.append(f"{what}: {how}")
    if "optimizer.pt" in found.names:
        lines.append("the optimizer's moments: matched by position, since optimizer.pt knows no names" + moments(found))
    if found.deepspeed:
        lines.append("the optimizer's moments: after DeepSpeed has put its parts together (zero_to_fp32.py)")
    if "global_step" in found.trainer_state:
        lines.append(f"the position: step {found.trainer_state['global_step']}")
    if SETFIT_HEAD in found.names:
        lines.append("the classification head, by training it again on the same examples (it is a pickle)")
    return lines


def moments(found: Contents) -> str:
    """Compare what optimizer.pt is for with the weights beside it."""
    trained = adam_numbers(found.root / "optimizer.pt")
    if not trained or not found.numbers:
        return ""
    if trained > found.numbers:
        return (
            f"; as Adam's they are for {trained - found.numbers:,.0f} numbers more than the weights hold: "
            "the loss had parameters, which are not here"
        )
    if trained < found.numbers * FEWER:
        return f"; as Adam's they are for {trained:,.0f} of the {found.numbers:,} numbers: the rest was not trained"
    return "; their number fits the weights"


def lost(found: Contents) -> list[str]:
    """Say what a resumed run would have to do without."""
    lines = []
    if not found.weights and not found.deepspeed:
        lines.append("the weights: there are none")
    if found.adapter:
        base = found.adapter.get("base_model_name_or_path") or "not named"
        told = "" if found.adapter_base.get("digest") else "; no digest says which weights it had"
        lines.append(f"the base model: adapter weights only, {base} must be at hand and unchanged{told}")
    if "optimizer.pt" not in found.names and not found.deepspeed:
        lines.append("the optimizer's moments: it would begin at zero")
    if found.is_setfit and SETFIT_HEAD not in found.names:
        lines.append("the classification head, the labels and their names: SetFit saves only the body here")
    if found.is_flag and found.is_trainers and not found.deepspeed:
        lines.append("by FlagEmbedding itself, everything: its wrapper's names match none of these weights")
    if not found.is_trainers:
        lines.append("everything else about training: step, schedule, random state")
        return lines
    if found.is_adapter:
        lines.append(WEIGHTS_ALONE)
    if found.is_sentence_transformers or found.trainer == "sentence-transformers":
        lines.append(LOSS_LOST)
    if ("optimizer.pt" in found.names) != ("scheduler.pt" in found.names) and not found.deepspeed:
        lines.append("by Hugging Face itself, optimizer and schedule both: it skips them silently if one is missing")
    if not found.random_states:
        lines.append("the random state: dropout and any random choice in the data would differ")
    lines.append("the order of the data: not recorded, only recomputed from seed and step if nothing else changed")
    lines.append("the settings: training_args.bin is a pickle and is not opened; give them again")
    return lines


def incomplete(found: Contents) -> list[str]:
    """Return one line for each sign that the save was cut short."""
    lines = []
    if found.is_trainers and "trainer_state.json" not in found.names and STEP_FOLDER.fullmatch(found.root.name):
        lines.append("trainer_state.json, which is written last, is missing: the save was cut short")
    if found.is_adapter and "adapter_config.json" not in found.names:
        lines.append("adapter_config.json is missing: rank, alpha and targets are not known")
    if found.is_adapter and not found.names & {ADAPTER_WEIGHTS, ADAPTER_PICKLE}:
        lines.append(f"{ADAPTER_WEIGHTS} is missing: there is no adapter")
    if "checkpoint-is-incomplete.txt" in found.names:
        lines.append("checkpoint-is-incomplete.txt: the save was cut short")
    for name in sorted(found.names):
        if name.endswith(".index.json"):
            parts = read_object(found.root / name, lines).get("weight_map")
            wanted = set(map(str, parts.values())) if isinstance(parts, dict) else set()
            lines += [f"{part}, named in {name}, is missing" for part in sorted(wanted - found.names)]
    step = STEP_FOLDER.fullmatch(found.root.name)
    recorded = found.trainer_state.get("global_step")
    if step and recorded is not None and int(step[1]) != recorded:
        lines.append(f"the folder is named for step {step[1]}, trainer_state.json says {recorded}")
    return lines
