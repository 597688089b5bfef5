"""Configuration: strict, frozen, and able to say which field a mistake is in and where the value came from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from unbroken.base.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused, values are not coerced, instances do not change.

    Each field is declared with `identity`, `content` or `operational`: whether changing it makes another run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    @classmethod
    def from_values(cls, values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Self:
        """Build from plain values; `origins` says for each top-level key where it was given.

        Raises `ConfigError` naming the key, the value, its origin and, for an unknown key, the nearest known one.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as failure:
            details = failure.errors(include_url=False)[0]
            raise explain(cls, details, origins or {}) from None

    @classmethod
    def identity_keys(cls) -> list[str]:
        """Return the keys whose values are compared when a run goes on, in declaration order.

        What `content` fields name is compared by digest instead.
        """
        return [key for key in cls.model_fields if contract_of(cls, key) == "identity"]


def identity(default: Any = ..., **constraints: Any) -> Any:
    """Declare a field that is part of what a run *is*: changing it under a run is refused."""
    return Field(default, json_schema_extra={"contract": "identity"}, **constraints)


def content(default: Any = ..., **constraints: Any) -> Any:
    """Declare a field that names a file or folder: its content is part of what a run is, its path is not."""
    return Field(default, json_schema_extra={"contract": "content"}, **constraints)


def operational(default: Any = ..., **constraints: Any) -> Any:
    """Declare a field that may change between segments of a run without changing a bit of its result."""
    return Field(default, json_schema_extra={"contract": "operational"}, **constraints)


def contract_of(cls: type[Config], key: str) -> str:
    """Return "identity", "content" or "operational"; a field declared as none of them is a defect of ours."""
    extra = cls.model_fields[key].json_schema_extra
    assert isinstance(extra, dict), f"{cls.__name__}.{key} declares no contract"
    return str(extra["contract"])


def explain(cls: type[Config], details: ErrorDetails, origins: Mapping[str, str]) -> ConfigError:
    """Turn pydantic's first complaint into one sentence about one key."""
    path = ".".join(str(part) for part in details["loc"])
    root = str(details["loc"][0]) if details["loc"] else ""
    place = f"{origins[root]}: " if root in origins else ""
    if details["type"] == "extra_forbidden":
        hint = closest(path, cls.model_fields)
        known = f"did you mean '{hint}'?" if hint else "run `unbroken schema` for the list of keys"
        return ConfigError(f"{place}unknown key '{path}'", next_step=known)
    if details["type"] == "missing":
        return ConfigError(f"key '{path}' is missing", next_step=f"add `{path}: ...` to the configuration")
    given = details.get("input")
    what = f"{place}{path}: {given!r} " if path else place
    message = details["msg"].removeprefix("Value error, ")
    return ConfigError(f"{what}is not valid: {message[:1].lower()}{message[1:]}" if path else f"{place}{message}")


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word most like `word`, or None when none is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-5` is a number, `no` is a word, a key given twice is a mistake."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for _REPLACED in [{"tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file. Raises `ConfigError` if it is missing, unreadable, or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}") from None
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"{path} cannot be read: {failure}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} is not a list of `key: value` lines", next_step="see `unbroken train --help`")
    return values


def parse_yaml(text: str, place: str) -> Any:
    """Parse YAML text. Raises `ConfigError` naming `place` and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as failure:
        line = f", line {failure.problem_mark.line + 1}" if failure.problem_mark else ""
        raise ConfigError(f"{place}{line}: {failure.problem or 'not valid YAML'}") from None


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Turn `["a.b=1", "c=x"]` into `{"a": {"b": 1}, "c": "x"}`; values are read as YAML.

    Raises `ConfigError` for a setting without `=`.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting}: expected key=value")
        *parents, last = key.strip().split(".")
        level = values
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = parse_yaml(text, f"--set {key}")
    return values


def merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with `overrides` laid over it, mappings merged key by key."""
    merged = dict(values)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
