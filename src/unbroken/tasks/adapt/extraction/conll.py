"""Token files with a tag a line, as CoNLL has them, read as texts with entities by their places."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unbroken.base.errors import DataError
from unbroken.plan.formats import decoded_lines, require_file
from unbroken.plan.source import Table

ENDINGS = (".conll", ".bio", ".iob", ".txt")
OUTSIDE = "O"
PREFIXED = re.compile(r"([BIESLUM])[-_](.+)")  # BIO, BIOES, BILOU, BMES
OPENING, CLOSING = "BSU", "ESLU"
DOCUMENT = "-DOCSTART-"

Token = tuple[int, str, str]  # line, token, tag


def is_conll(path: Path) -> bool:
    """Whether a file's name is that of a file of tokens."""
    return path.name.lower().removesuffix(".gz").endswith(ENDINGS)


def read_conll(path: Path, name: str, columns: tuple[str, str], joint: str) -> Table:
    """Return sentences as rows of a text, its tokens with `joint` between them, and a list of entities.

    A line is a token, perhaps more columns, and a tag, divided by tabs or blanks; an empty line ends a sentence. Tags
    are O, or a type behind B-, I-, E-, S- (or the letters of BILOU and BMES), or types alone (IO). An I- or E- that
    nothing opened opens an entity, as the CoNLL evaluation has it. Raises `DataError` with the line.
    """
    require_file(path)
    texts: list[str] = []
    entities: list[list[dict[str, Any]]] = []
    numbers = array("q")
    bare: bool | None = None  # whether tags are types alone, known at the first tag that is not O
    for sentence in sentences(decoded_lines(path, name), name):
        for line, _, tag in sentence:
            if tag == OUTSIDE:
                continue
            without = PREFIXED.fullmatch(tag) is None
            if bare not in (None, without):
                raise DataError(
                    f"{name}: line {line} has the tag '{tag}', unlike the tags before it",
                    why="some have a prefix like B- and some have none",
                    next_step="write all tags in one scheme: BIO, BIOES, or types alone",
                )
            bare = without
        text, found = spans(sentence, joint, bare=bool(bare))
        texts.append(text)
        entities.append(found)
        numbers.append(sentence[0][0])
    if not texts:
        raise DataError(f"{name} is empty: it has no sentence", next_step="give a source with rows")
    return Table(name, dict(zip(columns, (texts, entities), strict=True)), numbers)


def sentences(lines: Iterable[tuple[int, str]], name: str) -> Iterator[list[Token]]:
    """Yield the tokens of each sentence. Raises `DataError` for a line with one field."""
    sentence: list[Token] = []
    for number, line in lines:
        fields = line.split("\t") if "\t" in line else line.split()
        fields = [part.strip() for part in fields]
        if not any(fields):
            if sentence:
                yield sentence
            sentence = []
        elif fields[0] != DOCUMENT:
            if len(fields) < 2 or not fields[0] or not fields[-1]:
                raise DataError(
                    f"{name}: line {number} is not a token and a tag",
                    why=f"it holds {line.strip()[:40]!r}",
                    next_step="write the token, a tab and the tag, and an empty line between sentences",
                )
            sentence.append((number, fields[0], fields[-1]))
    if sentence:
        yield sentence


def spans(sentence: list[Token], joint: str, *, bare: bool) -> tuple[str, list[dict[str, Any]]]:
    """Return the text of a sentence and its entities."""
    text, found, opened = "", list[dict[str, Any]](), False
    for _, token, tag in sentence:
        start = len(text) + (len(joint) if text else 0)
        text = text + joint + token if text else token
        if tag == OUTSIDE:
            opened = False
            continue
        match = None if bare else PREFIXED.fullmatch(tag)
        prefix, kind = match.groups() if match else ("I", tag)
        if opened and found[-1]["type"] == kind and prefix not in OPENING:
            found[-1]["end"] = len(text)
        else:
            found.append({"start": start, "end": len(text), "type": kind})
        opened = prefix not in CLOSING
    for one in found:
        one["text"] = text[one["start"] : one["end"]]
    return text, found
