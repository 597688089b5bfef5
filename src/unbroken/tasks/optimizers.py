"""The optimizer of the tasks: AdamW as Hugging Face's Trainer sets it up."""

from __future__ import annotations

from collections.abc import Mapping

from torch.nn import Parameter

from unbroken.step.adamw import AdamW
from unbroken.tasks.common import RunConfig


def adamw(trained: Mapping[str, Parameter], config: RunConfig, learning_rate: float) -> AdamW:
    """Return AdamW over what is trained; only matrices decay, not biases or norms."""
    matrices = [parameter for parameter in trained.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in trained.values() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )
