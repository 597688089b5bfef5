"""Between padded batches, as sentence-transformers users have them, and rows without padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbroken.models.packing import Pack
from unbroken.models.ragged import Ragged


def ragged_of(encoding: Mapping[str, Any]) -> tuple[Ragged, Tensor]:
    """Return the rows of a padded batch without their padding, and where in it their tokens are: bool [N, L].

    Raises `ValueError` for pairs of texts (token types other than 0), which an encoder does not take.
    """
    ids: Tensor = encoding["input_ids"]
    mask = encoding.get("attention_mask")
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    types = encoding.get("token_type_ids")
    if types is not None and bool((types[mask] != 0).any()):
        raise ValueError("token_type_ids other than 0: an Encoder takes single texts, not pairs")
    lengths = mask.sum(dim=1).cpu().numpy().astype(np.int64)
    prompt = encoding.get("prompt_length", 0)
    prompt_length = int(prompt.flatten()[0]) if isinstance(prompt, Tensor) else int(prompt)
    return Ragged.of(ids[mask], lengths, prompt_length), mask


def repad(packed: Tensor, pack: Pack, mask: Tensor) -> Tensor:
    """Return packed vectors [T, D] at their places in the padded batch: [N, L, D], zeros elsewhere."""
    padded = packed.new_zeros(mask.numel(), packed.shape[1])
    places = mask.flatten().nonzero().squeeze(1)[pack.places]
    return padded.index_copy(0, places, packed).view(*mask.shape, -1)
