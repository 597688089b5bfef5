"""Fine-tune text models in runs that survive anything, to the bit, and prove it.

Names are imported when they are first used: `import unbroken` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unbroken.bridges.estimator import Classifier
    from unbroken.models.encoder import Encoder
    from unbroken.tasks.adapt.config import AdaptConfig
    from unbroken.tasks.classify.config import ClassifyConfig
    from unbroken.tasks.classify.report import report
    from unbroken.tasks.embed.config import EmbedConfig
    from unbroken.tasks.fork import fork
    from unbroken.tasks.loop import Loop
    from unbroken.tasks.train import train

__version__ = "0.1.0"
__all__ = [
    "AdaptConfig",
    "Classifier",
    "ClassifyConfig",
    "EmbedConfig",
    "Encoder",
    "Loop",
    "__version__",
    "fork",
    "report",
    "train",
]

_HOMES = {
    "Classifier": "unbroken.bridges.estimator",
    "ClassifyConfig": "unbroken.tasks.classify.config",
    "AdaptConfig": "unbroken.tasks.adapt.config",
    "EmbedConfig": "unbroken.tasks.embed.config",
    "Encoder": "unbroken.models.encoder",
    "Loop": "unbroken.tasks.loop",
    "fork": "unbroken.tasks.fork",
    "report": "unbroken.tasks.classify.report",
    "train": "unbroken.tasks.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unbroken' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
