"""The limit of a LoRA step: the matrix products of a decoder with frozen weights, and how fast they alone can be.

    python -m bench.adapt.limit SPEC.json     the arm: measures the rates in a process of its own

Counted are the frozen maps forward and backward to their input (they have no weight gradient), the adapters forward and
both ways back, causal attention likewise, and the head over the tokens that are predicted. Everything else counts as
nothing, and so does what is computed a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.adapt.rows import Lengths
from bench.roofline import FORWARD_AND_BACKWARD, median_seconds, products, read_config

FROZEN = 2  # products of a map that does not train: forward, and backward to its input


def linear_shapes(config: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Return (inputs, outputs, how often in a layer) of the linear maps of a Llama or Qwen layer."""
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or width // heads)
    inside, shared = heads * size, int(config.get("num_key_value_heads") or heads) * size
    return [(width, inside, 1), (width, shared, 2), (inside, width, 1), (width, inner, 2), (inner, width, 1)]


def training_flops(config: Mapping[str, Any], lengths: Lengths, rank: int) -> int:
    """Return the operations of forward and backward over examples of these lengths."""
    maps = linear_shapes(config)
    frozen = FROZEN * sum(2 * inputs * outputs * count for inputs, outputs, count in maps)
    adapters = FORWARD_AND_BACKWARD * sum(2 * rank * (inputs + outputs) * count for inputs, outputs, count in maps)
    # Queries by keys and weights by values, half of the square each.
    attention = FORWARD_AND_BACKWARD * 2 * maps[0][1] * sum(n * (n + 1) for n in lengths.tokens)
    head = FROZEN * 2 * int(config["hidden_size"]) * int(config["vocab_size"]) * sum(lengths.targets)
    layers = int(config["num_hidden_layers"])
    return layers * ((frozen + adapters) * sum(lengths.tokens) + attention) + head


def measure(config: Mapping[str, Any], tokens: int, threads: int, repeats: int) -> dict[str, float]:
    """Return operations per second by library of the frozen maps of a layer, forward and backward to the input."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    seconds: dict[str, float] = {}
    operations = 0
    for inputs, outputs, count in linear_shapes(config):
        operations += count * FROZEN * 2 * tokens * inputs * outputs
        for library, calls in products(torch, tokens, inputs, outputs).items():
            taken = sum(median_seconds(call, repeats) for call in calls[:FROZEN])
            seconds[library] = seconds.get(library, 0.0) + count * taken
    return {library: operations / taken for library, taken in seconds.items()}


def main() -> None:
    from bench.arms.recorder import Recorder

    recorder = Recorder.from_arguments()
    spec = recorder.spec
    rates = measure(read_config(Path(spec["model"])), spec["tokens"], spec["threads"], spec["repeats"])
    recorder.emit("gemm", tokens=spec["tokens"], rates=rates)


if __name__ == "__main__":
    main()
