"""An example as tokens under a configuration, and how long those of the first epoch are: packing goes by that."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unbroken.base.errors import DataError
from unbroken.base.fingerprint import canonical, digest
from unbroken.models.chat import ChatFormat, Tokens
from unbroken.tasks import cache as kept
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.conversation import Rows
from unbroken.tasks.adapt.lengths import measure


def lengths_of(rows: Rows, chat: ChatFormat, config: AdaptConfig, cache: Path | None) -> NDArray[np.int64]:
    """Return the number of tokens of every example of the first epoch, cut at `max_length`: [examples].

    What a row becomes may differ from epoch to epoch; packing goes by the first. Found in `cache` if kept there.
    """
    found = None if cache is None else kept.find_array(_place(rows, chat, config, cache))
    if found is not None and len(found) == rows.num_examples:
        return found
    return measure(rows, partial(chat.encode, loss_on=config.loss_on, max_length=config.max_length)).kept


def keep_lengths(lengths: NDArray[np.int64], rows: Rows, chat: ChatFormat, config: AdaptConfig, cache: Path) -> None:
    """Put the lengths into `cache`, to be there on the next start."""
    path = _place(rows, chat, config, cache)
    if not path.exists():
        kept.keep_array(path, lengths)


def _place(rows: Rows, chat: ChatFormat, config: AdaptConfig, cache: Path) -> Path:
    # A fork has its parent's cache: all by which a row becomes tokens must be in the name.
    extraction = None if config.extraction is None else config.extraction.model_dump()
    made_by = [config.max_length, config.seed, config.system_prompt, config.loss_on, extraction]
    key = digest(canonical([rows.digest, chat.digest, *made_by]))
    return cache / f"lengths-{key}.npy"


def encoded(rows: Rows, chat: ChatFormat, config: AdaptConfig, example: int, epoch: int = 0) -> Tokens:
    """Return the tokens of an example. Raises `DataError` if `max_length` leaves nothing of it to be learned."""
    conversation = rows.conversation(example, epoch)  # says itself where it cannot be read
    try:
        tokens = chat.encode(conversation, config.loss_on, config.max_length)
    except DataError as refusal:
        if refusal.what.startswith(rows.locate(example)):
            raise
        raise DataError(
            f"{rows.locate(example)}: {refusal.what}", why=refusal.why, next_step=refusal.next_step
        ) from None
    if not tokens.targets.any():
        raise DataError(
            f"{rows.locate(example)}: max_length {config.max_length} keeps none of the answer "
            f"({tokens.length} tokens in all)",
            why="there would be nothing to learn from it",
            next_step="set a larger max_length, shorten the row, or leave it out",
        )
    return tokens


def spread(total: int, count: int | None) -> list[int]:
    """Return `count` of so many numbers, spread evenly, or all of them: files are often sorted."""
    count = total if count is None else min(count, total)
    return [place * total // count for place in range(count)]
