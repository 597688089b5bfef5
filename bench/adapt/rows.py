"""The rows both sides train on: in our format, and as the tokens that ours makes of them, which theirs is given.

So nothing is compared but training: theirs neither renders a chat template nor tokenises.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from unbroken.models.chat import ChatFormat
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.conversation import Message
from unbroken.tasks.adapt.encoding import encoded
from unbroken.tasks.adapt.task import read_rows

SHORTEST, LONGEST = 20, 500  # tokens
QUESTION_SHARE = 4  # one word in so many is the question's
TEXT_COLUMNS = ("text", "gloss", "description")
SEED = 20240229
NO_LOSS = -100  # the label torch's cross-entropy leaves out

Row = dict[str, Any]


@dataclass(frozen=True)
class Lengths:
    """Of each example, in the order of training: its tokens, and those of them that are to be predicted."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]

    def within(self, first: int, last: int) -> Lengths:
        """Return those of the examples `first` to `last - 1`."""
        return Lengths(self.tokens[first:last], self.targets[first:last])


def instruction_rows(source: Path, chat: ChatFormat, count: int, seed: int = SEED) -> list[Row]:
    """Return rows whose numbers of tokens, all in all, are spread evenly over 20 to 500, in a shuffled order.

    Each is a stretch of the texts of `source`, taken in shuffled order and never twice: the first quarter of its words
    is the question, the rest the answer.
    """
    draw = random.Random(seed)
    texts = list(read_texts(source))
    draw.shuffle(texts)
    words = chain.from_iterable(text.split() for text in texts)
    step = (LONGEST - SHORTEST) / max(1, count - 1)
    wanted = [round(SHORTEST + step * place) for place in range(count)]
    draw.shuffle(wanted)
    found = []
    for length in wanted:
        stretch = list(islice(words, length))  # a word is a token at least
        assert len(stretch) == length, f"{source} holds too few words for {count} rows"
        found.append(fitted(stretch, chat, length))
    return found


def fitted(words: Sequence[str], chat: ChatFormat, length: int) -> Row:
    """Return the row of as many of the words as make at most `length` tokens."""
    low, high = QUESTION_SHARE // 2, len(words)  # the least that leaves words for both
    while low < high:
        middle = (low + high + 1) // 2
        if num_tokens(row_of(words[:middle]), chat) <= length:
            low = middle
        else:
            high = middle - 1
    return row_of(words[:low])


def row_of(words: Sequence[str]) -> Row:
    cut = max(1, len(words) // QUESTION_SHARE)
    return {"instruction": " ".join(words[:cut]), "output": " ".join(words[cut:])}


def num_tokens(row: Row, chat: ChatFormat) -> int:
    messages = (Message("user", row["instruction"]), Message("assistant", row["output"]))
    return len(chat.encode(messages, "answers", None).ids)


def read_texts(source: Path) -> Iterator[str]:
    """Yield the texts of a gzipped file of JSON lines, of the first column of `TEXT_COLUMNS` that a row has."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            yield next(row[column] for column in TEXT_COLUMNS if column in row)


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tokens(path: Path, values: Mapping[str, Any], count: int) -> Lengths:
    """Write the tokens of the first `count` examples of the run that the configuration `values` describes.

    `labels` are `input_ids` where loss is taken: what a collator of transformers is given.
    """
    config = AdaptConfig(**values)
    rows, chat = read_rows(config.train_data, config), ChatFormat.of(config.model, config.template)
    tokens, targets = [], []
    with path.open("w", encoding="utf-8") as file:
        for example in range(count):
            found = encoded(rows, chat, config, example)
            ids, marked = found.ids.tolist(), found.targets.tolist()
            labels = [i if learned else NO_LOSS for i, learned in zip(ids, marked, strict=True)]
            print(json.dumps({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}), file=file)
            tokens.append(len(ids))
            targets.append(sum(marked[1:]))
    return Lengths(tuple(tokens), tuple(targets))


def sort_tokens(source: Path, target: Path) -> None:
    """Write the examples of `source` again, the longest first."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    lines.sort(key=lambda line: -len(json.loads(line)["input_ids"]))
    target.write_text("".join(lines), encoding="utf-8")
