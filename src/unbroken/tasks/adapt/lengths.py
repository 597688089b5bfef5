"""How long examples are in tokens, and what a limit does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unbroken.base.stopping import poll
from unbroken.tasks.adapt.conversation import Conversation, Rows

POLL_EXAMPLES = 256


class Encoded(Protocol):
    """An example as tokens; see `models/chat.py: Tokens`."""

    @property
    def ids(self) -> NDArray[np.int32]:
        """The tokens within the limit."""

    @property
    def targets(self) -> NDArray[np.bool_]:
        """Which of them are to be predicted."""

    @property
    def length(self) -> int:
        """The number of tokens before truncation."""


class Encodes(Protocol):
    """What turns a conversation into tokens: `ChatFormat.encode` with its options set."""

    def __call__(self, messages: Conversation, /) -> Encoded:
        """Return the tokens."""


@dataclass(frozen=True)
class Lengths:
    """Of each example: tokens before truncation, tokens within the limit, and targets among those."""

    examples: NDArray[np.int64]
    whole: NDArray[np.int64]
    kept: NDArray[np.int64]
    targets: NDArray[np.int64]

    @property
    def cut(self) -> NDArray[np.int64]:
        """The examples that lose their end, and with it the token that ends the answer."""
        found: NDArray[np.int64] = self.examples[self.kept < self.whole]
        return found

    @property
    def unanswered(self) -> NDArray[np.int64]:
        """The examples of which no target is left: nothing is learned from them."""
        found: NDArray[np.int64] = self.examples[self.targets == 0]
        return found


def measure(rows: Rows, encode: Encodes, epoch: int = 0, examples: Sequence[int] | None = None) -> Lengths:
    """Encode examples, all of them by default, and return their lengths. Raises `DataError` for a bad row."""
    chosen = range(rows.num_examples) if examples is None else examples
    counts = np.zeros((len(chosen), 3), dtype=np.int64)
    for place, example in enumerate(chosen):
        if not place % POLL_EXAMPLES:
            poll()
        tokens = encode(rows.conversation(example, epoch))
        counts[place] = tokens.length, len(tokens.ids), int(tokens.targets.sum())
    return Lengths(np.asarray(chosen, dtype=np.int64), *counts.T)
