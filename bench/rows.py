"""The rows the arms are trained on, and what is known of them: their tokens."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Pair = tuple[str, str]

SEED = 20240229
EQUAL_TOKENS = 64
SPECIAL_TOKENS = 2  # [CLS] and [SEP]


def read_pairs(path: Path, seed: int = SEED) -> list[Pair]:
    """Return (term, gloss) in a shuffled order, every term (whatever its case) and every gloss once.

    Rows have `words` (of which the first is taken) or `term`. A term or gloss that came before is left out: in a
    batch, it would be a wrong negative of its own.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(seed).shuffle(rows)
    terms: set[str] = set()
    glosses: set[str] = set()
    pairs = []
    for row in rows:
        term, gloss = row["words"][0] if "words" in row else row["term"], row["gloss"]
        if term.lower() not in terms and gloss not in glosses:
            terms.add(term.lower())
            glosses.add(gloss)
            pairs.append((term, gloss))
    return pairs


def equal_pairs(model: Path, count: int, seed: int = SEED) -> list[Pair]:
    """Return pairs of texts of exactly 64 tokens each, special ones included; no text occurs twice.

    They are words that are single items of the vocabulary, so a text is nothing but its ids written out.
    """
    tokenizer = open_tokenizer(model)
    vocabulary = tokenizer.get_vocab()
    words = sorted(
        word for word in vocabulary if word.isascii() and word.isalpha() and word.islower() and len(word) > 3
    )
    encoded = tokenizer.encode_batch(words, add_special_tokens=False)
    whole = [word for word, found in zip(words, encoded, strict=True) if found.ids == [vocabulary[word]]]
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(whole, k=EQUAL_TOKENS - SPECIAL_TOKENS)) for _ in range(2 * count)]
    for text, found in zip(texts, tokenizer.encode_batch(texts), strict=True):
        ids = [vocabulary[word] for word in text.split()]
        assert len(found.ids) == EQUAL_TOKENS, f"{len(found.ids)} tokens: {text}"
        assert found.ids[1:-1] == ids, f"the ids are not those of the words: {text}"
    assert len(set(texts)) == len(texts)
    return list(zip(texts[:count], texts[count:], strict=True))


def write_pairs(path: Path, pairs: Iterable[Pair]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for anchor, positive in pairs:
            print(json.dumps({"anchor": anchor, "positive": positive}, ensure_ascii=False), file=file)
    return path


def open_tokenizer(model: Path) -> Any:
    """Return the tokenizer of a model folder, neither padding nor truncating."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@dataclass(frozen=True)
class Tokens:
    """The lengths of the texts of a number of steps, and how many slots they fill when each column is padded."""

    lengths: tuple[int, ...]
    padded: int
    num_steps: int

    @property
    def real(self) -> int:
        return sum(self.lengths)

    @property
    def per_step(self) -> float:
        return self.real / self.num_steps


def count_tokens(columns_by_step: Sequence[Sequence[Sequence[int]]], max_length: int) -> Tokens:
    """Count from `columns_by_step[step][column]`, the lengths of a column's texts before they are cut."""
    cut = [[[min(n, max_length) for n in column] for column in step] for step in columns_by_step]
    return Tokens(
        lengths=tuple(n for step in cut for column in step for n in column),
        padded=sum(len(column) * max(column) for step in cut for column in step),
        num_steps=len(cut),
    )


def tokens_of(model: Path, pairs: Sequence[Pair], batch: int, first: int, last: int, max_length: int) -> Tokens:
    """Count the tokens of the steps after step `first` up to step `last` over pairs taken in order."""
    tokenizer = open_tokenizer(model)
    steps = []
    for step in range(first, last):
        rows = pairs[step * batch : (step + 1) * batch]
        assert len(rows) == batch, "the arms would go round the data"
        steps.append(
            [[len(text.ids) for text in tokenizer.encode_batch(list(column))] for column in zip(*rows, strict=True)]
        )
    return count_tokens(steps, max_length)
