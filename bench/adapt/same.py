"""That both sides do the same work: from one adapter, without dropout, their losses agree step by step.

The first loss says that rows, targets and model are the same, those after it that gradients, clipping, learning rates
and AdamW are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.adapt.cases import LORA, Case, make_inputs, train_ours, train_theirs
from bench.figures import table
from bench.harness import Context, Result

TOLERANCE = 1e-4
STEPS = 3


def disagreement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest difference of two runs' losses. Raises `ValueError` unless they have as many, and some."""
    if not ours:
        raise ValueError("no loss was recorded")
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def compare(context: Context, case: Case) -> Result:
    """Train both from our new adapter; then, as a control, theirs from the adapter of another seed."""
    inputs = make_inputs(context, replace(case, name=f"{case.name}-same", steps=STEPS, dropout=0.0))
    seed = inputs.values["seed"]
    ours = train_ours(context, inputs, f"{case.name}-same-ours", threads=1).losses
    runs = {}
    for what, its_seed in (("the same adapter", seed), ("another seed's adapter", seed + 1)):
        adapter = new_adapter(context.model, its_seed, context.work / f"adapter-{its_seed}")
        name = f"{case.name}-same-theirs-{its_seed}"
        runs[what] = train_theirs(context, inputs, name, 1, adapter=adapter).losses
    found = {what: disagreement(ours, losses) for what, losses in runs.items()}
    same, other = found.values()
    lines = [["ours", *(f"{loss:.6f}" for loss in ours), ""]]
    lines += [[what, *(f"{loss:.6f}" for loss in losses), f"{found[what]:.1e}"] for what, losses in runs.items()]
    head = ["loss of step", *(str(step + 1) for step in range(STEPS)), "largest difference from ours"]
    if same > TOLERANCE:
        raise ValueError(f"{case.name}: losses differ by {same:.1e}: the two sides do not do the same\n{lines}")
    if other <= TOLERANCE:
        raise ValueError(f"{case.name}: another adapter gives the same losses, so this check cannot fail")
    return Result(f"{case.title}: the same work", table(head, lines), {"ours": ours, "theirs": runs})


def new_adapter(model: Path, seed: int, folder: Path) -> Path:
    """Write the adapter that a run of ours with this seed starts from, as PEFT reads it."""
    from safetensors.torch import save_file

    from unbroken.models.causal import CausalLM
    from unbroken.models.lora import ROOT, Adapter, LoraSettings

    lm = CausalLM.from_pretrained(model)
    settings = LoraSettings(r=LORA["r"], alpha=LORA["alpha"])
    adapter = Adapter.attach(lm, settings, seed, str(model))
    folder.mkdir(parents=True, exist_ok=True)
    by_file: dict[str, dict[str, object]] = {}
    for name, tensor in adapter.modules[ROOT].state_dict().items():
        file, key = adapter.layout(name)
        by_file.setdefault(file, {})[key] = tensor
    for file, tensors in by_file.items():
        save_file(tensors, folder / file)  # type: ignore[arg-type]
    for name, content in adapter.documents().items():
        (folder / name).write_bytes(content)
    return folder
