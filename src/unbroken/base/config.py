"""Configuration: strict, frozen, and able to say which field a mistake is in and where the value came from."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from unbroken.base.errors import ConfigError

# What pydantic's complaints mean to someone who writes YAML; the others say it well themselves.
EXPECTED = {
    "string_type": "text (in quotes if it looks like a number)",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "lines of `name: value`",
    "model_type": "lines of `name: value`",
    "list_type": "a list",
}
LONGEST_VALUE = 60  # characters of a value shown in a message


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused, values are not coerced, instances do not change.

    Each field is declared with `identity`, `content` or `operational`: whether changing it makes another run.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    # Keys of other programs, and what they are called here; or, in several words, what to do instead.
    ELSEWHERE: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Self:
        """Build from plain values; `origins` says for each top-level key where it was given.

        Raises `ConfigError` naming the key, the value, its origin and, for an unknown key, the nearest known one.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as failure:
            raise explain(cls, failure.errors(include_url=False), values, origins or {}) from None

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


def plain(value: Any) -> Any:
    """Return a configuration inside another as a mapping, every other value as it is."""
    return value.model_dump() if isinstance(value, Config) else value


def nested(cls: type[Config], key: str) -> type[Config] | None:
    """Return the configuration that the values of a key are, None where they are none."""
    annotation = cls.model_fields[key].annotation
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)), None)


def explain(
    cls: type[Config], failures: Sequence[ErrorDetails], values: Mapping[str, Any], origins: Mapping[str, str]
) -> ConfigError:
    """Turn pydantic's complaints into one sentence about one key; an unknown key comes first, being a misspelt one."""
    details = next((one for one in failures if one["type"] == "extra_forbidden"), failures[0])
    path = place_of(details, values)
    root = path.partition(".")[0]
    origin = origins.get(root) or next(iter(origins.values()), "")
    place = f"{origin}: " if origin else ""
    if details["type"] == "extra_forbidden":
        hint = known_key(cls, path)
        known = hint and (hint if " " in hint else f"did you mean '{hint}'?")
        return ConfigError(
            f"{place}unknown key '{path}'", next_step=known or "run `unbroken schema` for the list of keys"
        )
    meaning = cls.model_fields[root].description if root in cls.model_fields else None
    remark = f" ({meaning})" if meaning else ""
    if details["type"] == "missing":
        return ConfigError(f"{place}key '{path}' is missing", next_step=f"add `{path}: ...`{remark}")
    if details["type"] == "value_error" and not path:
        return ConfigError(f"{place}{details['msg'].removeprefix('Value error, ')}")
    what = f"{place}{path}: {shown(details['input'])} is not valid"
    if details["type"] == "value_error":
        return ConfigError(what, next_step=details["msg"].removeprefix("Value error, "))
    same = [one for one in failures if place_of(one, values) == path]  # one for each kind of value a key may have
    expected = " or ".join(dict.fromkeys(_expected(one) for one in same))
    near = closest(str(details["input"]), re.findall(r"'([^']*)'", expected))
    advice = f"did you mean '{near}'?" if near else f"correct it in {origin}" if Path(origin).suffix else "correct it"
    return ConfigError(what, why=f"it should be {expected}{remark}", next_step=advice)


def known_key(cls: type[Config], path: str) -> str | None:
    """Return the key that an unknown one was probably meant to be, or in several words what to do instead; or None."""
    root, _, inside = path.partition(".")
    below = nested(cls, root) if inside and root in cls.model_fields else None
    if below is None:
        return cls.ELSEWHERE.get(path) or closest(path, cls.model_fields)
    found = known_key(below, inside)
    return f"{root}.{found}" if found and " " not in found else found


def place_of(details: ErrorDetails, values: Mapping[str, Any]) -> str:
    """Return the dotted path of what a complaint is about, without pydantic's names for the members of a union."""
    path, here = [], values
    for part in details["loc"]:
        inside = part in here if isinstance(here, Mapping) else isinstance(here, list) and isinstance(part, int)
        if inside:
            here = here[part]  # type: ignore[index]
        if inside or details["type"] == "missing":
            path.append(str(part))
    return ".".join(path)


def shown(value: Any) -> str:
    """Return a value as it looks in YAML, in a few characters."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = repr(value) if isinstance(value, str | int | float | list | dict) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _expected(details: ErrorDetails) -> str:
    text = EXPECTED.get(details["type"]) or details["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return text.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")


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


MERGE_TAG = "tag:yaml.org,2002:merge"
YAML_ADVICE = "write lines of `key: value`, indented with spaces; put text with : # { [ or a tab in quotes"


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == MERGE_TAG:
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
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
        near = closest(path.name, _names_in(path.parent))
        advice = f"did you mean '{path.with_name(near)}'?" if near else "give a YAML file, or the folder of a run"
        raise ConfigError(f"no configuration file at {path}", next_step=advice) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path} is not text in UTF-8", next_step="give a YAML file, or the folder of a run"
        ) from None
    except OSError as failure:
        raise ConfigError(
            f"{path} cannot be read: {failure.strerror or failure}", next_step="check the path and its permissions"
        ) from None
    values = parse_yaml(text, str(path))
    if values is None:
        raise ConfigError(f"{path} is empty", next_step="write `task: ...`, `model: ...` and so on into it")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} does not hold lines of `key: value`", next_step="see `unbroken train --help`")
    return values


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def parse_yaml(text: str, place: str) -> Any:
    """Parse YAML text. Raises `ConfigError` naming `place` and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as failure:
        line = f", line {failure.problem_mark.line + 1}" if failure.problem_mark else ""
        raise ConfigError(f"{place}{line}: {failure.problem or 'not valid YAML'}", next_step=YAML_ADVICE) from None
    except (yaml.YAMLError, ValueError, RecursionError) as failure:  # a control character, a 13th month, {{{{{{...
        cause = str(failure).partition("\n")[0]
        raise ConfigError(f"{place}: not valid YAML: {cause}", next_step=YAML_ADVICE) from None


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Turn `["a.b=1", "c=x"]` into `{"a": {"b": 1}, "c": "x"}`; values are read as YAML.

    Raises `ConfigError` for a setting without `=`.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting}: there is no key=value", next_step="write it as --set batch_size=64")
        *parents, last = key.strip().split(".")
        level = values
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise ConfigError(f"--set {setting}: '{parent}' was set to a single value", next_step="leave out one")
        level[last] = parse_yaml(text, f"--set {key}")
    return values


def merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with `overrides` laid over it, mappings merged key by key."""
    merged = dict(values)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
