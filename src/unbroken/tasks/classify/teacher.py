"""A teacher: a model whose embeddings the first phase imitates, and whose labels stand in where texts have none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import canonical, digest, digest_file
from unbroken.models.folder import resolve
from unbroken.models.identity import model_digest, tokenizer_digest
from unbroken.tasks.base_model import reading
from unbroken.tasks.cache import find_array, keep_array
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.origin import resolve_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unbroken.models.classifying import ClassifierSettings
    from unbroken.tasks.classify.data import LabelledTexts

SETTINGS_FILE, WEIGHTS_FILE = "classifier.json", "classifier.safetensors"
ENCODED_AT_ONCE = 32  # texts of usual length


def find_teacher(config: ClassifyConfig) -> tuple[Path, bool]:
    """Return the folder of the teacher (a model's, a run's, a snapshot from the hub), and whether it is finished."""
    assert config.teacher is not None
    try:
        origin = resolve_model(config.teacher, Path(config.output_dir))
        return resolve(origin.model, SETTINGS_FILE, WEIGHTS_FILE), origin.finished
    except ConfigError as failure:
        raise type(failure)(
            failure.what.replace("model:", "teacher:", 1), why=failure.why, next_step=failure.next_step
        ) from None


def teacher_digest(folder: Path) -> str:
    """Return a digest of all of a teacher that decides what it teaches."""
    with reading(str(folder)):
        parts = [model_digest(folder), tokenizer_digest(folder)]
        settings = folder / SETTINGS_FILE
        return digest(canonical([*parts, digest_file(settings) if settings.is_file() else ""]))


def teacher_settings(config: ClassifyConfig) -> ClassifierSettings:
    """Return what the teacher's classifier answers. Raises `ConfigError` if it has none."""
    from unbroken.models.classifying import read_settings

    folder, finished = find_teacher(config)
    if not finished:
        raise ConfigError(
            f"teacher: {config.teacher} is not finished, and texts in train_data have no label",
            why="its head may not have been trained yet",
            next_step="finish the teacher's run first",
        )
    if not (folder / SETTINGS_FILE).is_file():
        raise ConfigError(
            f"teacher: {config.teacher} is no classifier, and texts in train_data have no label",
            why="the head would have nothing to learn from them",
            next_step="give a teacher that `task: classify` trained, or a label to every text",
        )
    return read_settings(folder / SETTINGS_FILE)


def lesson(
    config: ClassifyConfig, data: LabelledTexts, cache: Path, content: str, device: torch.device
) -> tuple[NDArray[np.int64], Tensor | None]:
    """Return the examples' targets, the teacher's answers where there were none, and its embeddings [N, E] of them.

    `content` is a digest of the examples. Without a teacher there are no embeddings.
    """
    targets = data.targets[data.chosen]
    if config.teacher is None:
        return targets, None
    teacher = Teacher(config, cache, content, device)
    taught_NE = teacher.embeddings([data.texts[row] for row in data.chosen])
    lacks = data.unlabelled[data.chosen]
    if lacks.any():
        targets[lacks] = teacher.answers(taught_NE)[lacks]
    return targets, taught_NE


class Teacher:
    """What a teacher says of the texts of a run: made once, and kept in the run's cache.

    A function of the teacher and the texts. `content` is a digest of the texts in their order.
    """

    def __init__(self, config: ClassifyConfig, cache: Path, content: str, device: torch.device) -> None:
        self.folder, _ = find_teacher(config)
        name = digest(canonical(["embeddings", teacher_digest(self.folder), content]))
        self._place = cache / f"teacher-{name}.npy"
        self._device = device

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Return the teacher's embeddings [N, E] of all texts, on the CPU."""
        import torch

        found = find_array(self._place)
        if found is None:
            found = self._encoded(texts)
            self._place.parent.mkdir(parents=True, exist_ok=True)
            keep_array(self._place, found)
        return torch.from_numpy(found).clone()  # memory of torch's own: bits hang on where a tensor begins

    def answers(self, embeddings_NE: Tensor) -> NDArray[np.int64]:
        """Return the labels the teacher's classifier gives: places [N], or 0 and 1 [N, L]."""
        import torch

        from unbroken.models.classifying import read_classifier

        _, head = read_classifier(self.folder, embeddings_NE.shape[1])
        with torch.no_grad():
            found: NDArray[np.int64] = head.predict(embeddings_NE).long().numpy()
        return found

    def _encoded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        from unbroken.models.encoder import Encoder

        encoder = Encoder.from_pretrained(self.folder, device=self._device)
        found = encoder.encode(texts, batch_size=ENCODED_AT_ONCE, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)
