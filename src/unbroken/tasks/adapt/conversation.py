"""What a language model is adapted on: conversations, and who supplies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


Conversation = tuple[Message, ...]
"""Messages in order. In training the last is the assistant's; a prompt ends with the user's."""


class Rows(Protocol):
    """What a job trains on: one example is one conversation, a pure function of (epoch, example)."""

    @property
    def num_examples(self) -> int:
        """The number of examples of an epoch."""

    @property
    def digest(self) -> str:
        """A digest of the rows' content and order, for the contract."""

    @property
    def row_digests(self) -> NDArray[np.uint64]:
        """A digest of each row of the data, to name the first one that differs."""

    def conversation(self, example: int, epoch: int) -> Conversation:
        """Return the conversation of an example in an epoch, counted from 0. Raises `DataError` for a bad row."""

    def locate(self, example: int) -> str:
        """Say in which file and row an example stands."""

    def rows(self, examples: Sequence[int]) -> list[int]:
        """Return the rows of the data, counted from 0, that these examples come from."""
