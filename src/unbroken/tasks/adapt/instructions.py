"""Rows of instructions: in which of the known formats they are, and the conversation each makes.

A row is kept as it was read, once, and becomes a conversation when that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError, DataError
from unbroken.base.fingerprint import canonical, digest, digest_file
from unbroken.base.stopping import poll
from unbroken.plan.formats import POLL_ROWS
from unbroken.plan.source import CORRECT, Table, content_digest, read_rows
from unbroken.tasks import cache as kept
from unbroken.tasks.adapt.conversation import Conversation, Message
from unbroken.tasks.adapt.messages import BadMessagesError, encodes, kind_of, read_messages

Kind = Literal["messages", "prompt", "instruction"]
# Roles of each kind: what is asked, what is answered, and what may be there.
QUESTION: dict[Kind, str] = {"messages": "messages", "prompt": "prompt", "instruction": "instruction"}
ANSWER: dict[Kind, str | None] = {"messages": None, "prompt": "completion", "instruction": "output"}
OPTIONAL: dict[Kind, tuple[str, ...]] = {
    "messages": ("system",),
    "prompt": ("system",),
    "instruction": ("input", "system"),
}
SHAREGPT = "conversations"
FORMATS = "messages, or instruction (with input) and output, or prompt and completion"


class InstructionSettings(Protocol):
    """The keys of a configuration that decide what a row becomes."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Role -> name of the column."""

    @property
    def system_prompt(self) -> str:
        """The system message of rows that have none; "" for none."""


@dataclass(frozen=True)
class Reading:
    """How rows are read: `columns` holds the column of each role that is there."""

    kind: Kind
    columns: dict[str, str]
    system_prompt: str

    @classmethod
    def of(cls, table: Table, settings: InstructionSettings, answered: bool = True) -> Reading:
        """Find out how to read a table's rows; without `answered` they need no answers.

        Raises `DataError` if its columns are those of no format or of several, `ConfigError` for an unknown role.
        """
        chosen = dict(settings.columns)
        kind = _kind_of_roles(chosen) if chosen else _kind_of_columns(table)
        there = {}
        for role in _roles(kind):
            if role == ANSWER[kind] and not answered:
                continue
            column = chosen.get(role, role)
            if role not in chosen and role == "messages" and role not in table.columns:
                column = SHAREGPT
            if column in table.columns:
                there[role] = column
            elif role in chosen or role in (QUESTION[kind], ANSWER[kind]):
                raise _no_column(table, role, column)
        return cls(kind, there, settings.system_prompt)

    def conversation(self, table: Table, row: int) -> Conversation:
        """Return a row's conversation; the last message is the assistant's.

        Raises `DataError` with file, row and column if it cannot be had.
        """
        question, answer = self._parts(table, row)
        if not answer:
            role = ANSWER[self.kind]
            if role is not None:
                raise self._bad(table, row, role, "holds an empty answer", "there would be nothing to learn")
            fault = f"ends with a message of the {question[-1].role}'s" if question else "holds no message"
            raise self._bad(table, row, self.kind, fault, "there would be no answer to learn")
        return question + answer

    def prompt(self, table: Table, row: int) -> Conversation:
        """Return what a row asks, its answer left out if there is one. Raises `DataError` as `conversation` does."""
        question = self._parts(table, row, asked_only=True)[0]
        if not question or question[-1].role != "user":
            raise self._bad(table, row, QUESTION[self.kind], "holds no message of the user's", "nothing is asked")
        return question

    def _parts(self, table: Table, row: int, asked_only: bool = False) -> tuple[Conversation, Conversation]:
        """Return a row's messages up to the last answer, and that answer if there is one."""
        if self.kind == "messages":
            messages = self._messages(table, row, "messages")
            ended = len(messages) - (messages[-1].role == "assistant") if messages else 0
            return self._opened(table, row, messages[:ended]), messages[ended:]
        role = QUESTION[self.kind]
        if isinstance(table.columns[self.columns[role]][row], list):
            question = self._messages(table, row, role)
            if not question or question[-1].role != "user":
                raise self._bad(table, row, role, "does not end with a message of the user's", "nothing is asked")
        else:
            question = self._question(table, row)
        answer = () if asked_only else self._answer(table, row)
        return self._opened(table, row, question), answer

    def _question(self, table: Table, row: int) -> Conversation:
        texts = [self._text(table, row, role) for role in (QUESTION[self.kind], "input") if role in self.columns]
        said = "\n".join(text for text in texts if text.strip())
        if not said:
            raise self._bad(table, row, QUESTION[self.kind], "holds an empty text", "nothing is asked")
        return (Message("user", said),)

    def _answer(self, table: Table, row: int) -> Conversation:
        role = ANSWER[self.kind]
        assert role is not None
        cell = table.columns[self.columns[role]][row]
        if not isinstance(cell, list):
            said = self._text(table, row, role)
            return (Message("assistant", said),) if said.strip() else ()
        # A list of one message: alone, the reader would miss the question before it.
        try:
            messages = read_messages([{"role": "user", "content": "?"}, *cell])[1:]
        except BadMessagesError as fault:
            raise self._bad_messages(table, row, role, fault, before=1) from None
        if len(messages) != 1 or messages[0].role != "assistant":
            raise self._bad(table, row, role, "does not hold exactly one message of the assistant's")
        return messages

    def _opened(self, table: Table, row: int, messages: Conversation) -> Conversation:
        """Put the system message in front: the row's own, or the configuration's."""
        if not messages or messages[0].role == "system":
            return messages
        system = self._text(table, row, "system") if "system" in self.columns else ""
        system = system if system.strip() else self.system_prompt
        return (Message("system", system), *messages) if system.strip() else messages

    def _messages(self, table: Table, row: int, role: str) -> Conversation:
        try:
            return read_messages(table.columns[self.columns[role]][row])
        except BadMessagesError as fault:
            raise self._bad_messages(table, row, role, fault) from None

    def _text(self, table: Table, row: int, role: str) -> str:
        cell = table.columns[self.columns[role]][row]
        if cell is None and role not in QUESTION.values():
            return ""
        if not isinstance(cell, str):
            raise self._bad(table, row, role, f"holds {kind_of(cell)} where text is expected")
        if not encodes(cell):
            raise self._bad(table, row, role, "holds text with half a surrogate pair")
        return cell

    def _bad_messages(self, table: Table, row: int, role: str, fault: BadMessagesError, before: int = 0) -> DataError:
        return self._bad(table, row, role, str(fault), item=max(0, fault.item - before))

    def _bad(self, table: Table, row: int, role: str, fault: str, why: str = "", item: int = 0) -> DataError:
        place = f"{table.locate(row)}, column '{self.columns[role]}'" + (f", message {item}" if item else "")
        return DataError(f"{place} {fault}", why=why, next_step=CORRECT)


class InstructionRows:
    """The rows of one source as conversations: one example a row."""

    def __init__(
        self, source: Any, config: InstructionSettings, cache: Path | None = None, name: str | None = None
    ) -> None:
        """Take a path or rows in memory. With `cache`, the digests of a file read before are not made again."""
        self.source, self.config, self.cache, self.name = source, config, cache, name

    @cached_property
    def table(self) -> Table:
        """The rows as they were read. Raises `DataError` if they cannot be."""
        return read_rows(self.source, self.name)

    @cached_property
    def reading(self) -> Reading:
        """How the rows are read. Raises `DataError` and `ConfigError` as `Reading.of` does."""
        return Reading.of(self.table, self.config)

    @property
    def num_examples(self) -> int:
        """The number of rows."""
        return self.table.num_rows

    @cached_property
    def row_digests(self) -> NDArray[np.uint64]:
        """A digest of each row's cells, after each was seen to make a conversation.

        Raises `DataError` with file, row and column of the first that does not.
        """
        key = self._key()
        found = None if self.cache is None or key is None else kept.find_array(self._kept(self.cache, key))
        if found is not None and len(found) == self.num_examples:
            return found
        for row in range(self.num_examples):
            if not row % POLL_ROWS:
                poll()
            self.reading.conversation(self.table, row)
        return self.table.digests([self.reading.columns[role] for role in sorted(self.reading.columns)])

    @cached_property
    def digest(self) -> str:
        """A digest of the rows' content and order, and of how they are read."""
        roles = sorted(self.reading.columns)
        return digest(canonical({"kind": self.reading.kind, "roles": roles, "rows": content_digest(self.row_digests)}))

    def keep_in(self, cache: Path) -> None:
        """Put the rows' digests into `cache`, which must exist, to be there on the next start."""
        self.cache, key = cache, self._key()
        if key is not None and not self._kept(cache, key).exists():
            kept.keep_array(self._kept(cache, key), self.row_digests)

    def conversation(self, example: int, epoch: int = 0) -> Conversation:
        """Return a row's conversation, the same in every epoch. Raises `DataError` with file, row and column."""
        return self.reading.conversation(self.table, example)

    def rows(self, examples: Sequence[int]) -> list[int]:
        """Return the rows of these examples: the same numbers."""
        return list(examples)

    def locate(self, example: int) -> str:
        """Say where an example stands: "train.jsonl: line 17"."""
        return self.table.locate(example)

    def _key(self) -> str | None:
        """What identifies the file and how it is read; None for rows in no file."""
        if not isinstance(self.source, str | Path):
            return None
        try:
            content = digest_file(Path(self.source))
        except OSError:
            return None
        return digest(canonical([content, Path(self.source).suffixes, self.reading.kind, self.reading.columns]))

    @staticmethod
    def _kept(cache: Path, key: str) -> Path:
        return cache / f"instructions-{key}.npy"


def _kind_of_roles(chosen: Mapping[str, str]) -> Kind:
    """Return the kind whose roles are named. Raises `ConfigError` for a role of no kind, or roles of two."""
    known = sorted({role for kind in QUESTION for role in _roles(kind)})
    for role in chosen:
        if role not in known:
            near = closest(role, known)
            raise ConfigError(
                f"columns: there is no role '{role}' of instruction rows",
                next_step=f"did you mean '{near}'?" if near else f"the roles are {', '.join(known)}",
            )
    found = [kind for kind in QUESTION if any(role in chosen for role in _roles(kind) if role != "system")]
    fitting = [kind for kind in found if all(role in _roles(kind) for role in chosen)]
    if len(fitting) != 1:
        raise ConfigError(
            f"columns: {', '.join(chosen)} are not the roles of one format",
            next_step=f"name those of {FORMATS}",
        )
    return fitting[0]


def _kind_of_columns(table: Table) -> Kind:
    """Return the kind whose columns are there. Raises `DataError` if that is none or several."""
    named: dict[str, Kind] = {column: kind for kind, column in QUESTION.items()} | {SHAREGPT: "messages"}
    found = [column for column in named if column in table.columns]
    complete = [column for column in found if _is_complete(named[column], table.columns)]
    found = complete or found
    if len(found) == 1:
        return named[found[0]]
    there = ", ".join(table.columns)
    if found:
        raise DataError(
            f"{table.name} can be read as {' or as '.join(found)}; it has the columns {there}",
            next_step=f"say which: `columns: {{{named[found[0]]}: {found[0]}}}`",
        )
    raise DataError(
        f"{table.name} has no instructions; it has the columns {there}",
        why=f"expected are {FORMATS}",
        next_step="say which columns they are: `columns: {instruction: ..., output: ...}`",
    )


def _is_complete(kind: Kind, columns: Iterable[str]) -> bool:
    answer = ANSWER[kind]
    return answer is None or answer in columns


def _roles(kind: Kind) -> tuple[str, ...]:
    answer = ANSWER[kind]
    return (QUESTION[kind], *([answer] if answer else []), *OPTIONAL[kind])


def _no_column(table: Table, role: str, column: str) -> DataError:
    near = closest(column, table.columns)
    return DataError(
        f"{table.name} has no column '{column}' (for {role}); it has {', '.join(table.columns)}",
        next_step=f"say which column it is: `columns: {{{role}: {near or '...'}}}`",
    )
