"""Which device a run computes on."""

from __future__ import annotations

from pathlib import Path

import torch

from unbroken.base.errors import CannotContinueError, ConfigError
from unbroken.run.contract import fork_command


def resolve_device(name: str, run: Path | None = None) -> torch.device:
    """Return the device called `name`; `auto` is the first GPU, or the CPU where there is none.

    Raises `ConfigError` for a name torch does not know or a GPU that is not there, `CannotContinueError` if it is the
    one that `run` was started on.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is not known", next_step="give auto, cpu, cuda or cuda:N") from None
    if device.type != "cuda" or (device.index or 0) < torch.cuda.device_count():
        return device
    seen = f"torch sees {torch.cuda.device_count()} GPUs"
    if run is not None:
        raise CannotContinueError(
            f"{run} was started on {name}, which is not there; {seen}",
            why="another device makes another model",
            next_step=f"go on where there is one, or `{fork_command(str(run), {'device': 'cpu'})}` for a new run from "
            "the state of this one, or --restart to start over",
        )
    raise ConfigError(
        f"device: {name} is not there; {seen}",
        next_step="set device to cpu or auto, or install a torch with CUDA on a machine with a GPU",
    )
