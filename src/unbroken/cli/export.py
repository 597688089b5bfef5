"""`unbroken export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def export(
    model: Path,
    output: Path,
    *,
    merge: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Write an adapted language model as a folder of its own, which Hugging Face's loaders read.

    Of a run that trains adapters this is the adapter's folder, for `PeftModel.from_pretrained`; with --merge the whole
    model with the adapter in its weights, in float32, for `AutoModelForCausalLM.from_pretrained`.

    **Examples**

        unbroken export runs/slots slots-adapter
        unbroken export runs/slots slots-model --merge
        unbroken export runs/slots/checkpoints/00000020 slots-20 --merge

    Parameters
    ----------
    model
        A run, one of its checkpoints, or a folder of a model or an adapter.
    output
        The folder to write. A model's folder there is replaced, whole or not at all; anything else is refused.
    merge
        Make the adapter part of the weights.
    json
        Print what was written as one JSON object.
    """
    from unbroken.base.errors import ConfigError
    from unbroken.cli.output import print_values
    from unbroken.tasks.adapt.asking import is_adapted

    if not is_adapted(model):
        raise ConfigError(
            f"{model} is no causal language model, nor an adapter of one",
            next_step="a finished model of another task is in RUN/model: copy that folder",
        )
    from unbroken.tasks.adapt.export import export as write

    write(model, output, merge=merge)
    print_values({"output": str(output), "merged": merge}, as_json=json)
    return 0
