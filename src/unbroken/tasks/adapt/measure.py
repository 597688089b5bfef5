"""How good a language model is on the rows of a file: the metrics of a run's evaluation, and each type by itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unbroken.base.errors import ConfigError
from unbroken.tasks.adapt.asking import asking_of
from unbroken.tasks.adapt.extracting import Extracting, Progress, figures
from unbroken.tasks.adapt.extraction.rows import HELD_OUT_SEED, ExtractionRows
from unbroken.tasks.adapt.instructions import InstructionRows
from unbroken.tasks.adapt.use import Found
from unbroken.tasks.request import ROWS_IN_MEMORY

if TYPE_CHECKING:
    from unbroken.tasks.adapt.extraction.scores import Scores


@dataclass(frozen=True)
class Measured:
    """Metrics by name, the main one first; with something to extract the `scores` they come from."""

    metrics: dict[str, float]
    scores: Scores | None = None


def measure(
    model: str | os.PathLike[str],
    data: Any = None,
    *,
    like: str | os.PathLike[str] | None = None,
    num_rows: int | None = None,
    device: str = "auto",
    on_progress: Progress = lambda what, done, total: None,
) -> Measured:
    """Return the metrics of a model on rows with answers or labels: those of `data`, or of the run's own eval_data.

    `num_rows` of them, spread evenly: of `data` all if that is None, else as many as the run does.
    `like` says how the model is asked, if not as it was trained. Raises `ConfigError` and `DataError`.
    """
    asking = asking_of(model, like)
    config = asking.config
    if data is None:
        data = config.eval_data
        num_rows = num_rows or config.eval_rows
        if data is None:
            raise ConfigError(f"no rows to measure {model} on", next_step="give a file: unbroken evaluate MODEL FILE")
        if isinstance(data, str) and ROWS_IN_MEMORY.fullmatch(data):
            raise ConfigError(f"the run of {model} was evaluated on {data[1:-1]}", next_step="give a file with rows")
    extracted: ExtractionRows | None = None
    if config.extraction is not None:
        extracted = ExtractionRows(
            data, config.extraction, seed=HELD_OUT_SEED, schema=asking.schema, system_prompt=config.system_prompt
        )
    rows = extracted or InstructionRows(data, config)
    found = Found.of(model)
    chat = found.chat(asking)
    lm, _ = found.load(asking, device)
    from unbroken.tasks.adapt.batches import Encoding
    from unbroken.tasks.adapt.evaluation import Evaluation

    scores = None
    if extracted is not None:
        scores = Extracting(extracted, chat, config.max_new_tokens, num_rows, on_progress).scores(lm)
    config = config.model_copy(update={"eval_rows": num_rows})
    loss = Evaluation(Encoding(rows, chat, config, chunk_size=1), config).measure(lm)
    return Measured(loss if scores is None else figures(scores) | loss, scores)
