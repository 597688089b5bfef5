"""What a user's own loop keeps beside tensors: schedulers, generators, and the switches of its modules."""

from __future__ import annotations

import base64
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from unbroken.base.errors import ConfigError

TAG = "!"
PLAIN_DICTS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "deque": deque}
SWITCHES = "unbroken.switches"


@dataclass(frozen=True)
class Extra:
    """An object whose state is committed: how to read it and how to put it back, as JSON between the two."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]

    def state_dict(self) -> Any:
        """Return the state as JSON. Raises `ConfigError` for a value that could not come back as it is."""
        return encode(self.read(), f"extras: {self.name}")

    def load_state_dict(self, state: Any) -> None:
        """Put a state back that `state_dict` returned."""
        self.write(decode(state))


def extra(name: str, thing: Any) -> Extra:
    """Return what commits `thing`: a scheduler, a generator, or any object with state_dict and load_state_dict."""
    match thing:
        case torch.Generator():
            return Extra(name, thing.get_state, thing.set_state)
        case random.Random():
            return Extra(name, thing.getstate, thing.setstate)
        case np.random.RandomState():
            return Extra(name, lambda: thing.get_state(legacy=False), thing.set_state)
        case np.random.Generator():
            bits = thing.bit_generator
            return Extra(name, lambda: bits.state, lambda state: setattr(bits, "state", state))
    if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
        raise ConfigError(
            f"extras: '{name}' is a {type(thing).__name__} without state_dict and load_state_dict",
            why="its state could not be committed",
            next_step="give it the two methods, or keep its state in a buffer of a module",
        )
    if isinstance(thing, nn.Module):
        raise ConfigError(f"extras: '{name}' is a module", next_step="pass it among the modules")
    return Extra(name, thing.state_dict, thing.load_state_dict)


def switches(modules: Mapping[str, nn.Module]) -> Extra:
    """Return what commits each parameter's `requires_grad` and each module's `training`: loops change them midway.

    A commit fails with `ConfigError` if a buffer that no checkpoint holds (persistent=False) has changed.
    """
    held = {f"{root}.{name}" for root, module in modules.items() for name in module.state_dict()}
    volatile = {
        name: (buffer, buffer.detach().clone())
        for root, module in modules.items()
        for inner, buffer in module.named_buffers()
        if (name := f"{root}.{inner}") not in held
    }

    def read() -> dict[str, list[str]]:
        for name, (buffer, before) in volatile.items():
            if not torch.equal(buffer, before):
                raise ConfigError(
                    f"the buffer '{name}' changes in training, but is not persistent",
                    why="no checkpoint would hold it",
                    next_step="register it with persistent=True",
                )
        parameters, parts = named(modules)
        return {
            "frozen": [name for name, parameter in parameters.items() if not parameter.requires_grad],
            "evaluating": [name for name, part in parts.items() if not part.training],
        }

    def write(state: dict[str, list[str]]) -> None:
        parameters, parts = named(modules)
        frozen, evaluating = set(state["frozen"]), set(state["evaluating"])
        for name, parameter in parameters.items():
            parameter.requires_grad_(name not in frozen)
        for name, part in parts.items():
            part.training = name not in evaluating

    return Extra(SWITCHES, read, write)


def named(modules: Mapping[str, nn.Module]) -> tuple[dict[str, Parameter], dict[str, nn.Module]]:
    """Return every parameter and every part of the modules by its full name."""
    parameters = {f"{root}.{name}": p for root, module in modules.items() for name, p in module.named_parameters()}
    parts = {f"{root}.{name}": part for root, module in modules.items() for name, part in module.named_modules()}
    return parameters, parts


def encode(value: Any, place: str) -> Any:
    """Return `value` as JSON that `decode` turns back into it, types included (JSON alone makes keys texts)."""
    kind = type(value)
    if kind in (bool, int, str) or value is None:
        return value
    if kind is float:
        return value if np.isfinite(value) else {TAG: "float", "value": repr(value)}
    if kind is list:
        return [encode(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if kind is dict and all(type(key) is str for key in value) and TAG not in value:
        return {key: encode(item, f"{place}.{key}") for key, item in value.items()}
    if kind.__name__ in PLAIN_DICTS and kind is PLAIN_DICTS[kind.__name__]:
        items = [[encode(key, place), encode(item, f"{place}.{key}")] for key, item in value.items()]
        return {TAG: kind.__name__, "items": items}
    if kind in (tuple, set) or (kind is deque and value.maxlen is None):
        members = sorted(value, key=repr) if kind is set else value
        return {TAG: kind.__name__, "items": [encode(item, place) for item in members]}
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return {TAG: "tensor", "type": str(value.dtype)} | _packed(value.shape, flat.tobytes())
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        word = "array" if isinstance(value, np.ndarray) else "number"
        return {TAG: word, "type": value.dtype.str} | _packed(value.shape, value.tobytes())
    raise ConfigError(
        f"{place} is a {kind.__name__}",
        why="it could not be committed and brought back as it is",
        next_step="let state_dict return numbers, texts, lists, dicts, arrays or tensors",
    )


def decode(value: Any) -> Any:
    """Return what `encode` was given."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    word = value.get(TAG)
    if word is None:
        return {key: decode(item) for key, item in value.items()}
    if word == "float":
        return float(value["value"])
    if word in PLAIN_DICTS:
        return PLAIN_DICTS[word]({decode(key): decode(item) for key, item in value["items"]})
    if word in SEQUENCES:
        return SEQUENCES[word]([decode(item) for item in value["items"]])
    data = base64.b64decode(value["data"])
    if word == "tensor":
        raw = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
        return raw.view(getattr(torch, value["type"].removeprefix("torch."))).reshape(value["shape"])
    array = np.frombuffer(data, dtype=value["type"]).reshape(value["shape"]).copy()
    return array if word == "array" else array[()]


def _packed(shape: Any, data: bytes) -> dict[str, Any]:
    return {"shape": list(shape), "data": base64.b64encode(data).decode("ascii")}
