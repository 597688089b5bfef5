"""The limit a training step on a CPU can be measured by: matrix products at the model's own shapes, nothing else.

    python -m bench.roofline SPEC.json     the arm: measures the rates in a process of its own

Counted are the products of the linear maps and of attention, a multiply-add as two operations, forward once and
backward twice. What else a step does (norms, softmax, dropout, the optimizer, embeddings) counts as nothing, so
100 % cannot be reached.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

FORWARD_AND_BACKWARD = 3


def read_config(model: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((model / "config.json").read_bytes())
    return config


def linear_shapes(config: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Return (inputs, outputs, how often in a layer) of a BERT layer's linear maps."""
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    return [(width, width, 4), (width, inner, 1), (inner, width, 1)]


def training_flops(config: Mapping[str, Any], lengths: Iterable[int]) -> int:
    """Return the operations of forward and backward over texts of these lengths."""
    lengths = list(lengths)
    per_token = sum(2 * inputs * outputs * count for inputs, outputs, count in linear_shapes(config))
    # Queries by keys, and weights by values: 2 operations * length^2 * width each.
    attention = 4 * int(config["hidden_size"]) * sum(length**2 for length in lengths)
    return FORWARD_AND_BACKWARD * int(config["num_hidden_layers"]) * (per_token * sum(lengths) + attention)


def products(torch: Any, tokens: int, inputs: int, outputs: int) -> dict[str, list[Callable[[], Any]]]:
    """Return for each library the three products of a linear map: forward, input gradient, weight gradient."""
    x, grad = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    found = {
        "mkl": [
            lambda: torch.nn.functional.linear(x, weight, bias),
            lambda: grad @ weight,
            lambda: grad.t() @ x,
        ]
    }
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        linear = torch.ops.mkldnn._linear_pointwise
        found["onednn"] = [
            lambda: linear(x, weight, bias, "none", [], ""),
            lambda: linear(grad, weight.t(), None, "none", [], ""),
            lambda: linear(grad.t(), x.t(), None, "none", [], ""),
        ]
    return found


def median_seconds(product: Callable[[], Any], repeats: int) -> float:
    product()
    product()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        product()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(config: Mapping[str, Any], tokens: int, threads: int, repeats: int) -> dict[str, float]:
    """Return operations per second by library, the shapes weighted as often as a layer uses them."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    seconds: dict[str, float] = {}
    operations = 0
    for inputs, outputs, count in linear_shapes(config):
        operations += count * FORWARD_AND_BACKWARD * 2 * tokens * inputs * outputs
        for library, calls in products(torch, tokens, inputs, outputs).items():
            taken = sum(median_seconds(call, repeats) for call in calls)
            seconds[library] = seconds.get(library, 0.0) + count * taken
    return {library: operations / taken for library, taken in seconds.items()}


def main() -> None:
    from bench.arms.recorder import Recorder

    recorder = Recorder.from_arguments()
    spec = recorder.spec
    config = read_config(Path(spec["model"]))
    for tokens in spec["tokens"]:
        rates = measure(config, tokens, spec["threads"], spec["repeats"])
        recorder.emit("gemm", tokens=tokens, rates=rates)


if __name__ == "__main__":
    main()
