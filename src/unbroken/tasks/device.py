"""Which device a run computes on."""

from __future__ import annotations

import torch

from unbroken.base.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first GPU, or the CPU where there is none.

    Raises `ConfigError` for a name torch does not know or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is not known", next_step="give auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name} is not there; torch sees {torch.cuda.device_count()} GPUs",
            next_step="set device to cpu or auto, or install a torch with CUDA on a machine with a GPU",
        )
    return device
