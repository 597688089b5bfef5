"""JSON as language models write it: whatever is whole in it is read, however the rest is damaged."""

from __future__ import annotations

import json
import re
from typing import Any

QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’"}
BEHIND_A_STRING = ",:]}"
ENDS_A_WORD = ",:]}{[\n"
NOTHING = ("null", "none", "undefined", "")
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
DEEPEST = 32  # answers are 4 deep; Python's own stack allows about 300 here
MOST_ATTEMPTS = 64  # braces from which an object is tried, so that a page of braces takes no quadratic time


class Pairs(list[tuple[str, Any]]):
    """An object with its keys in order, also those that are there twice."""


class _Missing:
    pass


MISSING = _Missing()  # what was begun and holds nothing whole


def strict(text: str) -> Any:
    """Return the value of JSON, objects as `Pairs`. Raises `ValueError` or `RecursionError`."""
    return json.loads(text, object_pairs_hook=Pairs)


def objects(text: str) -> list[Pairs]:
    """Return the objects that begin at each of the first braces and hold something, or are closed; outer ones first."""
    found, start = [], text.find("{")
    for _ in range(MOST_ATTEMPTS):
        if start < 0:
            break
        value = Reader(text, start).value(0)
        if isinstance(value, Pairs):
            found.append(value)
        start = text.find("{", start + 1)
    return found


class Reader:
    """Reads one value of a text from a place on; never raises, never reads a character twice but to look ahead."""

    def __init__(self, text: str, at: int = 0):
        self.text, self.at = text, at

    def value(self, depth: int) -> Any:
        """Return what begins here: `Pairs`, a list, a text, None, or `MISSING`."""
        letter = self._peek()
        if letter in ("{", "["):
            if depth >= DEEPEST:
                self.at = len(self.text)
                return MISSING
            self.at += 1
            return self._object(depth + 1) if letter == "{" else self._array(depth + 1)
        if letter in QUOTES:
            return self._string(QUOTES[letter])
        word = self._word()
        return None if word is not MISSING and word.lower() in NOTHING else word

    def _object(self, depth: int) -> Any:
        found, closed = Pairs(), False
        while (letter := self._peek()) and not closed:
            if letter == ",":
                self.at += 1
            elif letter == "}":
                self.at += 1
                closed = True
            else:
                key = self.value(DEEPEST)
                if not isinstance(key, str) or self._peek() != ":":
                    break
                self.at += 1
                value = self.value(depth) if self._peek() not in ("", ",", "}") else MISSING
                if value is not MISSING:
                    found.append((key, value))
        return found if found or closed else MISSING

    def _array(self, depth: int) -> Any:
        found, closed = [], False
        while (letter := self._peek()) and not closed:
            if letter in (",", ":"):
                self.at += 1
            elif letter == "]":
                self.at += 1
                closed = True
            elif letter == "}":
                break
            else:
                value = self.value(depth)
                if value is not MISSING:
                    found.append(value)
        return found if found or closed else MISSING

    def _string(self, quote: str) -> Any:
        """Return a quoted text. An apostrophe is no end of it unless something may follow there."""
        start = self.at = self.at + 1
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter == "\\":
                self.at += 2
            elif letter == quote and (quote != "'" or self._may_end(self.at + 1)):
                self.at += 1
                return unescaped(self.text[start : self.at - 1])
            else:
                self.at += 1
        return MISSING

    def _may_end(self, at: int) -> bool:
        while at < len(self.text) and self.text[at].isspace():
            at += 1
        return at >= len(self.text) or self.text[at] in BEHIND_A_STRING

    def _word(self) -> Any:
        """Return text without quotes; at the end of everything nobody knows whether it is whole."""
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ENDS_A_WORD:
            self.at += 1
        if self.at >= len(self.text):
            return MISSING
        if self.at == start:  # a brace or bracket where none can be
            self.at = len(self.text)
            return MISSING
        return self.text[start : self.at].strip()

    def _peek(self) -> str:
        """Go on to the next letter that is not white space and return it; empty at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at] if self.at < len(self.text) else ""


def unescaped(body: str) -> str:
    """Return the text between two quotes with its escapes read; any other escaped letter stands for itself."""
    plain = ESCAPE.sub(lambda match: _letter(match[1]), body)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins the halves of a pair


def _letter(escape: str) -> str:
    return chr(int(escape[1:], 16)) if len(escape) > 1 else ESCAPED.get(escape, escape)
