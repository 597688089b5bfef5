"""How much memory an encoder takes in training, roughly: what `check` says before a run has been measured."""

from __future__ import annotations

from unbroken.models.encoder import Encoder

# float32 numbers kept for the backward pass, per token and layer: of the hidden size (queries, keys, values,
# attention, its output, two norms, two dropout masks, input; two more for what backward itself needs) and of the
# inner one (before and after the activation). Measured with MiniLM: 820 MB where this gives 630 MB, 375 MB where 190.
KEPT_HIDDEN, KEPT_INNER = 12, 2


def weights_bytes(encoder: Encoder) -> int:
    """Return the size of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())


def activation_bytes(encoder: Encoder) -> int:
    """Return what the backward pass needs of one token."""
    settings = encoder.folder.transformer.config
    hidden = int(settings.get("hidden_size") or settings.get("dim") or 0)
    layers = int(settings.get("num_hidden_layers") or settings.get("n_layers") or 0)
    inner = int(settings.get("intermediate_size") or settings.get("hidden_dim") or 4 * hidden)
    return 4 * layers * (KEPT_HIDDEN * hidden + KEPT_INNER * inner)
