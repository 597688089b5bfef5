"""What a causal language model is trained on: conversations, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


Conversation = tuple[Message, ...]  # for training the last message is the assistant's


class Rows(Protocol):
    """What a job trains on; one example is one conversation."""

    num_examples: int
    digest: str  # of content and order, for the contract
    row_digests: NDArray[np.uint64]

    def conversation(self, example: int, epoch: int) -> Conversation:
        """Return an example as it is in an epoch: a function of these two, the configuration and the data."""

    def rows(self, examples: list[int]) -> list[int]:
        """Return the rows of data that examples come from."""
