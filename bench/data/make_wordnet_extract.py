"""Make the demo's data: pairs of an everyday word and what one sense of it means, from WordNet 3.0.

    python bench/data/make_wordnet_extract.py wordnet.jsonl.gz src/unbroken/demo

The source has one JSON object a line with `id` (part of speech and offset), `label` (lexicographer file), `words`
and `gloss`. The same source gives the same bytes (with the same zlib): the choice follows from a hash of the id,
and the archive carries neither a name nor a date.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

NUM_TRAIN = 2560  # 40 batches of 64
NUM_TEST = 200
GLOSS_CHARACTERS = range(20, 141)
PLAIN_TERM = re.compile(r"[a-z]+(?:[ -][a-z]+)*")
# WordNet also describes words that have no place in a demonstration.
UNFIT = re.compile(
    r"slur|offensive|obscen|disparag|derogat|dismissive|vulgar|slang|insult|taboo|genital|sexual|\bsex|intercourse"
    r"|erotic|lust\b|prostitut|whore|slut|skank|bastard|penis|vagina|anus|excre|feces|urin|breast|buttock|crotch"
    r"|fuck|nude|naked|virgin|attractive woman|pretty young|unpleasant woman|ugly|destroys men|homosex|\bhomo\b"
    r"|gay\b|fag|rape|rapist|suicid|murder|kill (?:by|with)|condemned|torture|lynch|mutilat|circumcis|slave|nazi"
    r"|negro|racial|\brace of|ethnic|gypsy|savage|cripple|retard|jew|muslim|islam|drunk|stoned|cocaine|heroin"
    r"|narcotic|marijuana|opium",
    re.IGNORECASE,
)


def read(source: Path) -> list[dict[str, Any]]:
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def definition(gloss: str) -> str:
    """Return the gloss without its example sentences: they use the very word that is to be found."""
    return gloss.split('; "', 1)[0].strip()


def pairs(synsets: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield (term, gloss), every term and every gloss once, in an order that looks random and never changes.

    Only words of several senses: an untrained model takes them at their commonest sense, so there is something to
    learn. Which sense of a word is asked for is left to the hash.
    """
    senses = collections.Counter(word.lower() for synset in synsets for word in synset["words"])
    terms: set[str] = set()
    glosses: set[str] = set()
    for synset in sorted(synsets, key=lambda synset: hashlib.sha256(synset["id"].encode()).digest()):
        term, gloss = synset["words"][0], definition(synset["gloss"])
        if (
            synset["label"].partition(".")[0] in ("noun", "verb")
            and PLAIN_TERM.fullmatch(term)
            and senses[term] > 1
            and len(gloss) in GLOSS_CHARACTERS
            and '"' not in gloss
            and not any(word.lower() in gloss.lower() for word in synset["words"])
            and not UNFIT.search(" ".join([*synset["words"], gloss]))
            and term not in terms
            and gloss not in glosses
        ):
            terms.add(term)
            glosses.add(gloss)
            yield term, gloss


def packed(rows: Iterable[tuple[str, str]]) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as archive:
        for term, gloss in rows:
            archive.write((json.dumps({"term": term, "gloss": gloss}, ensure_ascii=False) + "\n").encode())
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="WordNet as gzipped JSON lines")
    parser.add_argument("folder", type=Path, help="where the two files go")
    arguments = parser.parse_args()
    chosen = list(pairs(read(arguments.source)))[: NUM_TEST + NUM_TRAIN]
    (arguments.folder / "wordnet.test.jsonl.gz").write_bytes(packed(chosen[:NUM_TEST]))
    (arguments.folder / "wordnet.train.jsonl.gz").write_bytes(packed(chosen[NUM_TEST:]))


if __name__ == "__main__":
    main()
