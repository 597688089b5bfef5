"""What each class weighs in the head's loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unbroken.base.config import closest, shown
from unbroken.base.errors import ConfigError
from unbroken.tasks.classify.data import Labels


def weights_by_place(given: Any, labels: Labels) -> Any:
    """Return class weights by the classes' places. Raises `ConfigError` for a class there is not."""
    if not isinstance(given, Mapping):
        return given
    places = {str(name): place for place, name in enumerate(labels.names)}
    unknown = [name for name in given if str(name) not in places]
    if unknown:
        near = closest(str(unknown[0]), places)
        raise ConfigError(
            f"class_weight: {shown(unknown[0])} is no class",
            next_step=f"did you mean '{near}'?" if near else f"there are {', '.join(map(str, labels.names[:5]))}",
        )
    return {places[str(name)]: float(weight) for name, weight in given.items()}
