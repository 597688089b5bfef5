"""Frozen models held in 4 or 8 bits by bitsandbytes, for adapters to be trained on (Dettmers et al. 2023, QLoRA)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch

from unbroken.base.errors import ConfigError
from unbroken.models.causal_folder import CausalFolder
from unbroken.models.packing import ATTENTION_NAME

Bits = Literal["4bit", "8bit"]
LIBRARY = "bitsandbytes"


def require_quantizing(bits: Bits, device: torch.device) -> None:
    """Raise `ConfigError` unless models can be held in few bits here."""
    if device.type != "cuda":
        raise ConfigError(
            f"quantization: {bits} needs a CUDA device, and this run is on {device}",
            why=f"{LIBRARY} computes there",
            next_step="leave quantization out, or run on a machine with a GPU",
        )
    if find_spec(LIBRARY) is None:
        raise ConfigError(
            f"quantization: {bits} needs {LIBRARY}, which is not installed",
            next_step="pip install 'unbroken[bitsandbytes]'",
        )


def load_quantized(folder: CausalFolder, bits: Bits, device: torch.device, dtype: torch.dtype, *, packed: bool) -> Any:
    """Return transformers' model of a folder, its matrices in `bits`, products in `dtype`.

    4 bits are NF4 with quantised constants, as QLoRA has them. Raises `ConfigError` if that cannot be done.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    require_quantizing(bits, device)
    settings = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        if bits == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    extra = {"attn_implementation": ATTENTION_NAME} if packed else {}
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder.root, quantization_config=settings, dtype=dtype, device_map={"": device}, **extra
        )
    except (ValueError, ImportError, OSError, RuntimeError) as failure:
        reason = str(failure).strip().splitlines() or [type(failure).__name__]
        raise ConfigError(f"{folder.root} cannot be held in {bits}: {reason[0]}") from None
