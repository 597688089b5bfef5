"""Write docs/configuration.md from the configuration itself: `python docs/make_configuration.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unbroken.base.config import Config, contract_of
from unbroken.tasks.adapt.config import FULL_RATE, LORA_RATE, AdaptConfig, LoraConfig
from unbroken.tasks.adapt.extraction.config import ExtractionConfig
from unbroken.tasks.classify.config import DEFAULTS, ClassifyConfig
from unbroken.tasks.common import RunConfig
from unbroken.tasks.embed.config import METRICS, OPTIONAL_ROLES, ROLES, EmbedConfig

PAGE = Path(__file__).with_name("configuration.md")
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "array": "list"}
LIMITS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
# What the schema does not say, and what holds today beside what it says.

HEAD = """# Configuration

<!-- Made by docs/make_configuration.py from the code. Do not edit: a test compares. -->

A configuration is YAML, one `key: value` a line. The same keys are the arguments of `unbroken.EmbedConfig`, and
`--set key=value` changes one on the command line. An unknown key is an error that names the nearest known one.
`1e-5` is a number. `unbroken schema embed` prints all this as a JSON schema for editors.

Paths are taken from the folder the command is given in, not from the folder of the YAML file.

The third column says what happens when the value changes under a run that exists already:

- **identity**: another value would make another model, so the run refuses to go on (exit code 4).
- **content**: the path may change, what it leads to may not. It is compared by digest.
- **operational**: free to change at any time. No bit of training depends on it. With `load_best_model_at_end`,
  `eval_data` and `eval_steps` decide which step becomes the finished model, so they are identity then.

A key you leave out when you continue a run has the value recorded in the run, not today's default.
`auto` has the value recorded in the run too. When a run begins, `threads: auto` is as many as the process may use (its
CPU affinity and a container's CPU quota count), and `device: auto` is the first GPU, or the CPU where there is none.

Keys that say the same thing another way are the same: no `scale` is `scale: 20` and `temperature: 0.05`, no
`micro_batch_size` is that of `batch_size`.
"""


def word(schema: dict[str, Any]) -> str:
    """Return a JSON schema's type in words, with its limits."""
    if "anyOf" in schema:
        kinds = [word(kind) for kind in schema["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return "keys, see below"
    if schema.get("type") == "object":
        return f"names: {word(schema['additionalProperties'])}"
    limits = [f"{name} {schema[key]:g}" for key, name in LIMITS.items() if key in schema]
    if "prefixItems" in schema:
        return f"two of those ({', '.join(word(item) for item in schema['prefixItems'])})"
    if schema.get("type") == "array":
        limits.append(f"of {word(schema['items'])}")
    return " ".join([WORDS.get(schema.get("type", ""), "file or rows"), ", ".join(limits)]).strip()


def default(config: type[Config], key: str, schema: dict[str, Any], required: bool) -> str:
    """Return a key's default as it is written in YAML."""
    if config is ClassifyConfig and key in DEFAULTS["all"]:
        ours, theirs = (json.dumps(DEFAULTS[kind][key]) for kind in ("all", "sampled"))
        return f"`{ours}`; `pairs: sampled`: `{theirs}`"
    if required:
        return "required"
    if config is AdaptConfig and key == "learning_rate":
        return f"`{LORA_RATE:g}`; `tuning: full`: `{FULL_RATE:g}`"
    if config is AdaptConfig and key == "greater_is_better":
        return "`false` for `loss` and `perplexity`, else `true`"
    if key == "lora":
        return "those below"
    value = schema.get("default")
    return "none" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def table(keys: list[str], config: type[Config]) -> str:
    """Return the rows of some keys."""
    schema = config.model_json_schema()
    lines = ["| key | type | changed under a run | default | meaning |", "|---|---|---|---|---|"]
    for key in keys:
        entry = schema["properties"][key]
        cells = [
            f"`{key}`",
            word(entry),
            contract_of(config, key),
            default(config, key, entry, key in schema.get("required", ())),
            entry["description"],
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def losses() -> str:
    """Return the losses, what each reads, and what evaluation then measures."""
    lines = ["| loss | roles | metrics, the main one first |", "|---|---|---|"]
    for loss, roles in ROLES.items():
        shown = [f"`{role}`" + (" (optional)" if role in OPTIONAL_ROLES[loss] else "") for role in roles]
        lines.append(f"| `{loss}` | {', '.join(shown)} | {', '.join(f'`{name}`' for name in METRICS[loss])} |")
    return "\n".join(lines)


def render() -> str:
    """Return the whole page."""
    shared = list(RunConfig.model_fields)
    own, few = ([key for key in kind.model_fields if key not in shared] for kind in (EmbedConfig, ClassifyConfig))
    adapt = [key for key in AdaptConfig.model_fields if key not in {*shared, *own} - {"columns", "batch_size"}]
    adapt += ["learning_rate", "greater_is_better"]
    elsewhere = [f"| `{theirs}` | `{ours}` |" for theirs, ours in sorted(AdaptConfig.ELSEWHERE.items())]
    parts = [
        HEAD.strip(),
        "## Every run",
        table(shared, EmbedConfig),
        "## `task: embed`",
        table(own, EmbedConfig),
        "### Losses",
        losses(),
        "## `task: classify`",
        "Two values, `[a, b]`, are one for each phase. Defaults differ where batches are of pairs.",
        table(["task", *few], ClassifyConfig),
        "## `task: adapt`",
        "Also the keys of steps and learning rate that `embed` has.",
        table(["task", *adapt], AdaptConfig),
        "### `lora:`",
        table(list(LoraConfig.model_fields), LoraConfig),
        "### `extraction:`",
        table(list(ExtractionConfig.model_fields), ExtractionConfig),
        "## Names from elsewhere",
        "These are not understood, but the error points to ours, where the task has it:",
        "\n".join(["| elsewhere | here |", "|---|---|", *elsewhere]),
        "`batch_size` is the whole batch of a step. `micro_batch_size` is the part of it in memory at once. So\n"
        "`per_device_train_batch_size: 8` with `gradient_accumulation_steps: 4` is `batch_size: 32` with\n"
        "`micro_batch_size: 8` here. In-batch negatives still come from the whole batch.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
