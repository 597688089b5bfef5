"""Classifiers from any folder: Unbroken's own, and SetFit's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unbroken.models.folder import resolve
from unbroken.tasks.classify.predict import CLASSIFIER_FILE, TextClassifier, open_classifier
from unbroken.tasks.origin import resolve_model

if TYPE_CHECKING:
    from pathlib import Path


def open_any(path: str | os.PathLike[str], *, allow_pickle: bool = False, device: str = "auto") -> TextClassifier:
    """Load the classifier of a run, a checkpoint, a model folder, or a folder SetFit wrote.

    SetFit keeps its head in a pickle, which is read, as data, only with `allow_pickle`. Raises `ConfigError` if there
    is no classifier, if it is damaged, or without that flag.
    """
    from unbroken.bridges.setfit import HEAD_FILE, is_setfit

    folder = resolve(resolve_model(os.fspath(path)).model, HEAD_FILE)
    if not (folder / CLASSIFIER_FILE).exists() and is_setfit(folder):
        return open_setfit(folder, allow_pickle, device)
    return open_classifier(path, device)


def open_setfit(folder: Path, allow_pickle: bool, device: str) -> TextClassifier:
    """Load a SetFit model. Raises `ConfigError` if its head is not for its encoder."""
    from unbroken.base.errors import ConfigError
    from unbroken.bridges.setfit import read_setfit
    from unbroken.models.encoder import Encoder
    from unbroken.tasks.device import resolve_device

    found = read_setfit(folder, allow_pickle)
    encoder = Encoder.from_pretrained(found.encoder, device=resolve_device(device))
    if encoder.dimension != found.settings.dimension:
        raise ConfigError(
            f"{folder}: the head takes embeddings of {found.settings.dimension} numbers, the encoder makes "
            f"{encoder.dimension}",
            next_step="copy the folder again, whole",
        )
    return TextClassifier(encoder, found.settings, found.head.to(encoder.device).eval())
