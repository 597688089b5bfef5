"""LoRA through PEFT: layers put into a model, weights drawn from a seed alone, files as PEFT writes and reads them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from unbroken.base.errors import ConfigError
from unbroken.base.seeds import MASK_32, derive
from unbroken.models.causal import CausalLM, tied_names
from unbroken.models.causal_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FILE, adapter_values, weights_of
from unbroken.models.folder import INDEX_FILE, TOKENIZER_FILES, render
from unbroken.models.lora_layer import quicken
from unbroken.models.weights import read_file
from unbroken.step.generators import seeded

NAME = "default"
ROOT = "adapter"
# In these families `auto` means every projection: LoRA on the attention alone learns less (Dettmers et al. 2023,
# arXiv 2305.14314, figure 2). In others it is what PEFT's table says.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSettings:
    """What to train: names and meanings are PEFT's, `alpha` is its `lora_alpha`, `dropout` its `lora_dropout`."""

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: Literal["all-linear", "auto"] | tuple[str, ...] | list[str] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: tuple[str, ...] | list[str] = ()


class Adapter:
    """A LoRA adapter in the layers of a model.

    `modules` holds every trained tensor under PEFT's own key, and nothing else: the base is not in it.
    """

    def __init__(self, lm: CausalLM, config: LoraConfig, keys: dict[str, nn.Parameter]) -> None:
        self.lm = lm
        self.base_digest = ""  # of the model it belongs to, where that is known
        self.config = config
        self.modules: dict[str, nn.Module] = {ROOT: tree(keys)}
        self._keys = keys

    @classmethod
    def attach(cls, lm: CausalLM, settings: LoraSettings, seed: int, base_name: str) -> Adapter:
        """Put new adapter layers into the model, which is frozen; their weights depend on `seed` alone.

        They are float32 whatever the model is. Raises `ConfigError` for a target the model does not have.
        """
        require_modules(lm.model, settings.modules_to_save, "modules_to_save")
        config = LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=base_name,
            r=settings.r,
            lora_alpha=int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets(lm.model, settings.target_modules),
            use_rslora=settings.use_rslora,
            use_dora=settings.use_dora,
            bias=settings.bias,
            modules_to_save=list(settings.modules_to_save) or None,
        )
        return cls._inject(lm, config, seed)

    @classmethod
    def from_pretrained(cls, lm: CausalLM, folder: Path) -> Adapter:
        """Put the adapter of a PEFT folder into the model. Raises `ConfigError` if it is damaged or does not fit."""
        values = adapter_values(folder)
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = False
        names = values.get("target_modules")
        if isinstance(names, list):
            require_modules(lm.model, names, "target_modules")
        adapter = cls._inject(lm, config, seed=0)
        adapter.load(folder)
        return adapter

    @classmethod
    def _inject(cls, lm: CausalLM, config: LoraConfig, seed: int) -> Adapter:
        with seeded(derive(seed, "adapter") & MASK_32), quiet():
            try:
                inject_adapter_in_model(config, lm.model, NAME)
            except (ValueError, TypeError, NotImplementedError) as failure:
                raise ConfigError(f"lora: PEFT refuses this adapter: {str(failure).splitlines()[0]}") from None
        for name, parameter in lm.model.named_parameters():
            if parameter.requires_grad and ".lora_" in name:
                parameter.data = parameter.data.float()
        quicken(lm.model)
        lm.train(lm.training)  # the new layers come in training mode, whatever the model is in
        return cls(lm, config, trained(lm.model))

    def layout(self, name: str) -> tuple[str, str]:
        """Return where a trained tensor belongs: (file relative to the adapter's folder, key in it).

        `name` is an entry of the `state_dict()` of the module in `modules`.
        """
        return ADAPTER_WEIGHTS, name

    def documents(self) -> dict[str, bytes]:
        """Return every file of the adapter's folder that is not weights: the same bytes for the same adapter."""
        values = self.config.to_dict() | {"inference_mode": True}
        names = ("target_modules", "modules_to_save")  # sets, or lists made of sets: in an order of their own
        plain = values | {key: sorted(values[key]) for key in names if isinstance(values[key], list | set | tuple)}
        documents = {ADAPTER_CONFIG: json.dumps(plain, indent=2, sort_keys=True).encode()}
        if self.base_digest:
            documents[BASE_FILE] = render({"digest": self.base_digest})
        documents |= {name: data for name, data in self.lm.folder.documents.items() if name in TOKENIZER_FILES}
        return dict(sorted(documents.items()))

    def load(self, folder: Path) -> None:
        """Put the weights of a PEFT folder into the layers. Raises `ConfigError`, nothing changed, if they differ."""
        file = weights_of(folder)
        stored = read_file(file)
        for key in sorted(stored.keys() ^ self._keys.keys()):
            where = "lacks" if key in self._keys else "holds"
            raise ConfigError(
                f"{file} {where} {key!r}",
                why="adapter and configuration do not belong together",
                next_step=f"give target_modules, bias and modules_to_save as its {ADAPTER_CONFIG} has them, or copy "
                "the adapter's folder again, whole",
            )
        for key, parameter in self._keys.items():
            if stored[key].shape != parameter.shape:
                raise ConfigError(
                    f"{file}: {key!r} has shape {tuple(stored[key].shape)}, but {tuple(parameter.shape)} by the "
                    "configuration",
                    next_step="check r and target_modules",
                )
        with torch.no_grad():
            for key, parameter in self._keys.items():
                parameter.copy_(stored[key])

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the base with the adapter in them, named as `merged_layout` takes them.

        The live model is as before when the next one is asked for; one layer's copy is in memory at a time.
        """
        modules: dict[str, Any] = dict(self.lm.model.named_modules())
        for name in [*self.lm._places, *self.untied]:
            owner, _, last = name.removeprefix("model.").rpartition(".")
            module = modules[owner]
            if isinstance(module, LoraLayer):
                yield name, merged_tensor(module, last)
            elif isinstance(module, AuxiliaryTrainingWrapper):
                yield name, module.modules_to_save[NAME].get_parameter(last).detach()
            else:
                yield name, module.state_dict()[last]

    @property
    def untied(self) -> dict[str, str]:
        """The tensors that are others under another name in the base, and no longer are with the adapter in them."""
        modules: dict[str, Any] = dict(self.lm.model.named_modules())
        wrapped = (LoraLayer, AuxiliaryTrainingWrapper)
        return {
            f"model.{one}": f"model.{other}"
            for one, other in tied_names(self.lm.model).items()
            if any(isinstance(modules[name.rpartition(".")[0]], wrapped) for name in (one, other))
        }

    def merged_layout(self, name: str) -> tuple[str, str]:
        """Return where a tensor of `merged` belongs: (file relative to the model folder, key in it)."""
        if name in self.untied:
            return self.lm.layout(self.untied[name])[0], name.removeprefix("model.")
        return self.lm.layout(name)

    def merged_documents(self) -> dict[str, bytes]:
        """Return every file of the merged model's folder that is not weights."""
        documents = self.lm.documents()
        if self.untied:
            documents["config.json"] = render(json.loads(documents["config.json"]) | {"tie_word_embeddings": False})
        if self.untied and INDEX_FILE in documents:
            index = json.loads(documents[INDEX_FILE])
            index["weight_map"] |= {key: file for file, key in map(self.merged_layout, self.untied)}
            documents[INDEX_FILE] = render(index)
        return documents


def merged_tensor(layer: Any, name: str) -> Tensor:
    """Return the weight or bias of a LoRA layer's base with the adapter in it; the layer is left as it was."""
    base = layer.get_base_layer()
    before = {key: parameter.data for key, parameter in base.named_parameters()}
    try:
        with torch.no_grad():
            layer.merge(safe_merge=True)
        merged: Tensor = base.get_parameter(name).data
    except ValueError as failure:
        raise ConfigError(f"the adapter cannot be merged: {str(failure).splitlines()[0]}") from None
    finally:
        for key, data in before.items():
            base.get_parameter(key).data = data
        layer.merged_adapters.clear()
        layer._caches.clear()
    return merged.clone() if merged.data_ptr() == before[name].data_ptr() else merged


def trained(model: Any) -> dict[str, nn.Parameter]:
    """Return every trained parameter by the key PEFT writes it under."""
    live = {f"base_model.model.{name}": parameter for name, parameter in model.named_parameters()}
    named: dict[str, Any] = {name.removeprefix("base_model.model."): parameter for name, parameter in live.items()}
    found = get_peft_model_state_dict(model, state_dict=named, save_embedding_layers=False)
    keys = {f"base_model.model.{key}": parameter for key, parameter in found.items() if parameter.requires_grad}
    missing = {id(p) for p in model.parameters() if p.requires_grad} - {id(p) for p in keys.values()}
    if missing:
        raise ConfigError(
            f"lora: {len(missing)} trained tensors have no place in PEFT's file", why="they would be lost"
        )
    return dict(sorted(keys.items()))


def tree(parameters: dict[str, nn.Parameter]) -> nn.Module:
    """Return a module whose `state_dict` holds just these parameters, by these names."""
    root = nn.Module()
    for name, parameter in parameters.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, parameter)
    return root


def targets(model: Any, wanted: Any) -> Any:
    """Return `target_modules` as PEFT takes it. Raises `ConfigError` for names the model does not have."""
    if wanted == "all-linear":
        return wanted
    if wanted == "auto":
        there = module_names(model)
        if set(PROJECTIONS) <= there:
            return list(PROJECTIONS)
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TABLE

        kind = model.config.model_type
        if kind not in TABLE:
            raise ConfigError(
                f"lora.target_modules: 'auto' knows no modules of models of type {kind!r}",
                next_step=f"use all-linear, or name some of {', '.join(sorted(there))}",
            )
        return TABLE[kind]
    require_modules(model, wanted, "target_modules")
    return list(wanted)


def require_modules(model: nn.Module, wanted: Any, key: str) -> None:
    """Raise `ConfigError` unless every wanted name is the end of a module's."""
    names = [name for name, _ in model.named_modules()]
    for one in wanted:
        if not any(name == one or name.endswith(f".{one}") for name in names):
            raise ConfigError(
                f"lora.{key}: the model has no module {one!r}",
                next_step=f"it has {', '.join(sorted(module_names(model)))}",
            )


def module_names(model: nn.Module) -> set[str]:
    """Return the last parts of the names of all linear modules."""
    named = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name.rpartition(".")[2] for name, _ in named}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep PEFT's remarks to itself: what of them matters is refused, or said by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
