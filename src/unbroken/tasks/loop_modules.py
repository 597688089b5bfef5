"""The modules of a user's own loop: by name, and where each of their tensors lies in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from unbroken.base.errors import ConfigError
from unbroken.store import layout


def named_modules(modules: Mapping[str, nn.Module | nn.Parameter]) -> dict[str, nn.Module]:
    """Return the modules by name, a bare parameter in a module of its own. Raises `ConfigError` for anything else."""
    if isinstance(modules, nn.Module) or not hasattr(modules, "items"):
        raise ConfigError("modules must be given by name", next_step="modules={'encoder': encoder, 'head': head}")
    named: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if not name or name.startswith("-") or not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"modules: {name!r} cannot name a file", next_step="use letters, digits, '_' and '-'")
        if isinstance(module, nn.Parameter):
            parameter, module = module, nn.Module()
            module.register_parameter("value", parameter)
        if not isinstance(module, nn.Module):
            raise ConfigError(f"modules: '{name}' is a {type(module).__name__}, not a module or parameter")
        named[name] = module
    return named


def place(modules: Mapping[str, nn.Module], name: str) -> tuple[str, str]:
    """Return where a tensor lives: an `Encoder` as a folder the ecosystem loads, any other module as one file."""
    root, _, rest = name.partition(".")
    module: Any = modules[root]
    if is_folder(module):
        file, key = module.layout(rest)
        return f"{layout.MODEL_FOLDER}/{root}/{file}", key
    return f"{layout.MODEL_FOLDER}/{root}{layout.WEIGHTS_SUFFIX}", rest


def documents(modules: Mapping[str, nn.Module]) -> dict[str, bytes]:
    """Return the files beside the weights of every `Encoder` among the modules."""
    found: dict[str, bytes] = {}
    for root, module in modules.items():
        folder: Any = module
        if is_folder(folder):
            found |= {f"{layout.MODEL_FOLDER}/{root}/{path}": content for path, content in folder.documents().items()}
    return found


def is_folder(module: Any) -> bool:
    """Tell whether a module says itself where its tensors live in a folder."""
    return hasattr(module, "layout") and hasattr(module, "documents")
