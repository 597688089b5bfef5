"""Conversations in one cell: lists of messages, as `role`/`content` or as ShareGPT's `from`/`value`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from unbroken.tasks.adapt.conversation import Conversation, Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
}
KEYS = (("role", "content"), ("from", "value"))


class BadMessagesError(ValueError):
    """What is wrong with a cell: `item` is the message's number from 1, 0 for the cell as a whole."""

    def __init__(self, fault: str, item: int = 0) -> None:
        super().__init__(fault)
        self.item = item


def read_messages(cell: Any) -> Conversation:
    """Return the messages in a cell: a list of objects, or JSON text of one. Raises `BadMessagesError`.

    A system message stands first or nowhere; an empty one counts as none. The first other message is the user's.
    """
    messages: list[Message] = []
    for number, item in enumerate(_listed(cell), 1):
        message = _message(item, number)
        if message.role == "system" and number > 1:
            raise BadMessagesError("is a system message, which may only stand first", number)
        if message.role == "assistant" and not any(earlier.role == "user" for earlier in messages):
            raise BadMessagesError("is the assistant's, and nothing of the user's precedes it", number)
        if message.content.strip():
            messages.append(message)
        elif message.role != "system":
            raise BadMessagesError("is empty", number)
    return tuple(messages)


def _listed(cell: Any) -> list[Any]:
    if isinstance(cell, str):  # csv has nothing but text
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise BadMessagesError("is text, not a list of messages") from None
    if not isinstance(cell, list):
        raise BadMessagesError(f"is {kind_of(cell)}, not a list of messages")
    if not cell:
        raise BadMessagesError("is an empty list")
    return cell


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, Mapping):
        raise BadMessagesError(f"is {kind_of(item)}, not an object with `role` and `content`", number)
    for role_key, content_key in KEYS:
        if role_key in item:
            role, content = item[role_key], item.get(content_key)
            break
    else:
        there = ", ".join(map(str, item)) or "nothing"
        raise BadMessagesError(f"has neither `role` nor `from`; it has {there}", number)
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise BadMessagesError(
            f"has the unknown {role_key} {json.dumps(role, default=str)[:40]} (known: {known})", number
        )
    if not isinstance(content, str):
        found = kind_of(content) if content_key in item else "missing"
        raise BadMessagesError(f"has no text: its `{content_key}` is {found}", number)
    if not encodes(content):
        raise BadMessagesError("holds half a surrogate pair", number)
    return Message(ROLES[role], content)


def encodes(text: str) -> bool:
    """Whether a text has a UTF-8 form; half a surrogate pair, which JSON can spell, has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """Name the kind of a value in JSON's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case Mapping():
            return "an object"
        case list():
            return "a list"
    return f"a {type(value).__name__}"
