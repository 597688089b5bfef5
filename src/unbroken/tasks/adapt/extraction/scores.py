"""How good extraction is: precision, recall and F1, by type, and what kind each error is of.

Facts match if label and mentions are the same (white space evened out), as DeepKE counts: as often as they are in
both (`multiset`), or once (`set`). What would be a share of nothing is 0. Rows are added one by one, so memory does not
grow with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from unbroken.tasks.adapt.extraction.align import occurrences, overlap
from unbroken.tasks.adapt.extraction.annotations import GROUPS, Annotation, Entity, Fact, Span, facts
from unbroken.tasks.adapt.extraction.config import Kind
from unbroken.tasks.adapt.extraction.replies import Extraction

Match = Literal["multiset", "set"]
Alike = Callable[[str, Fact, Fact], bool]
Error = Literal["boundary", "type", "missing", "spurious", "unreadable"]
REASONS = ("unreadable", "invalid", "malformed", "unasked", "unaligned")  # why something in answers was left out
ERRORS: tuple[Error, ...] = ("boundary", "type", "missing", "spurious", "unreadable")


@dataclass
class Counts:
    """How much was right, predicted and wanted."""

    right: int = 0
    predicted: int = 0
    wanted: int = 0

    def add(self, right: int, predicted: int, wanted: int) -> None:
        """Add to each."""
        self.right, self.predicted, self.wanted = self.right + right, self.predicted + predicted, self.wanted + wanted

    def count(self, name: str) -> None:
        """Add one to the count of a name."""
        setattr(self, name, getattr(self, name) + 1)

    @property
    def precision(self) -> float:
        """The share of what was predicted that is right."""
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """The share of what was wanted that was found."""
        return self.right / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        both = self.predicted + self.wanted
        return 2 * self.right / both if both else 0.0


@dataclass(frozen=True)
class TypeScore:
    """One type; `errors` has a count for each kind."""

    type: str
    precision: float
    recall: float
    f1: float
    predicted: int
    wanted: int
    errors: Mapping[Error, int]


@dataclass
class Scores:
    """What was found in rows against what their labels say."""

    kind: Kind
    types: tuple[str, ...]
    match: Match = "multiset"
    num_rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # of `Extraction.counts`
    groups: dict[str, Counts] = field(default_factory=dict)
    by_type: dict[str, Counts] = field(default_factory=dict)
    errors: Counter[tuple[str, Error]] = field(default_factory=Counter)
    spans: Counts | None = None

    def __post_init__(self) -> None:
        self.groups = {name: Counts() for name in GROUPS[self.kind]}
        self.by_type = {name: Counts() for name in self.types}
        self.spans = Counts() if self.kind == "ner" else None

    def add(self, text: str, gold: Iterable[Annotation], extraction: Extraction) -> None:
        """Add a row: its labels, and what was extracted from its text by the same schema."""
        gold, found = list(gold), list(extraction.annotations)
        wanted, predicted = (unique(facts(some, self.kind), self.match) for some in (gold, found))
        right, extra, lacking = matched(predicted, wanted)
        for name, some in (("predicted", predicted), ("wanted", wanted), ("right", right)):
            for fact in some:
                self.groups[fact.group].count(name)
                self.by_type[fact.type].count(name)
        self.errors.update(classified(text, extra, lacking, extraction.unreadable))
        self.num_rows += 1
        self.counts.update(extraction.counts)
        if self.spans is not None:
            self._add_spans(gold, found)

    def _add_spans(self, gold: list[Annotation], found: list[Annotation]) -> None:
        """Count by type and place. Once a label has no place, no figure by place would be about all of them."""
        wanted = Counter((one.type, one.span) for one in gold if isinstance(one, Entity))
        if any(span is None for _, span in wanted):
            self.spans = None
        elif self.spans is not None:
            there = Counter((one.type, one.span) for one in found if isinstance(one, Entity))
            if self.match == "set":
                wanted, there = Counter(wanted.keys()), Counter(there.keys())
            self.spans.add((wanted & there).total(), there.total(), wanted.total())

    @property
    def overall(self) -> Counts:
        """All groups together."""
        whole = Counts()
        for one in self.groups.values():
            whole.add(one.right, one.predicted, one.wanted)
        return whole

    def table(self) -> list[TypeScore]:
        """Return each type of the schema that is there or was predicted, in order."""
        return [
            TypeScore(
                name,
                one.precision,
                one.recall,
                one.f1,
                one.predicted,
                one.wanted,
                {error: self.errors[name, error] for error in ERRORS},
            )
            for name, one in self.by_type.items()
            if one.predicted or one.wanted
        ]

    def metrics(self) -> dict[str, float]:
        """Return all figures under flat names: f1, precision, recall (micro), macro_..., f1/TYPE, errors/KIND, ...

        Macro is the mean over the types that are there or were predicted. Where a kind has two groups of facts
        (events and arguments), each has figures too, and those without a prefix are of both together.
        """
        rows = self.table()
        figures = _figures("", self.overall)
        for name in ("precision", "recall", "f1"):
            figures[f"macro_{name}"] = sum(getattr(row, name) for row in rows) / len(rows) if rows else 0.0
        if len(self.groups) > 1:
            for name, one in self.groups.items():
                figures |= _figures(f"{name}_", one)
        if self.spans is not None:
            figures |= _figures("span_", self.spans)
        for error in ERRORS:
            figures[f"errors/{error}"] = float(sum(self.errors[name, error] for name in self.types))
        figures |= {f"answers/{reason}": float(self.counts[reason]) for reason in REASONS}
        figures |= {"answers": float(self.counts["answers"]), "rows": float(self.num_rows)}
        for row in rows:
            figures |= {f"{name}/{row.type}": getattr(row, name) for name in ("f1", "precision", "recall")}
        return figures


def _figures(prefix: str, one: Counts) -> dict[str, float]:
    return {f"{prefix}{name}": float(getattr(one, name)) for name in ("f1", "precision", "recall")}


def unique(found: list[Fact], match: Match) -> list[Fact]:
    """Return facts as they are counted: in a set, each once."""
    return list({key(fact): fact for fact in reversed(found)}.values())[::-1] if match == "set" else found


def key(fact: Fact) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return what two facts must have the same to match."""
    return fact.group, fact.label, fact.mentions


def matched(predicted: list[Fact], wanted: list[Fact]) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """Return what was predicted and is wanted, what was predicted besides, and what is wanted besides."""
    open_ = Counter(map(key, wanted))
    right, extra = [], []
    for fact in predicted:
        if open_[key(fact)]:
            open_[key(fact)] -= 1
            right.append(fact)
        else:
            extra.append(fact)
    lacking = []
    for fact in reversed(wanted):  # of several alike, the first ones were found
        if open_[key(fact)]:
            open_[key(fact)] -= 1
            lacking.append(fact)
    return right, extra, lacking[::-1]


def classified(
    text: str, extra: list[Fact], lacking: list[Fact], unreadable: frozenset[str]
) -> list[tuple[str, Error]]:
    """Return the type and kind of every error. A confusion of two facts is one error, counted under the wanted type.

    `type`: the same mentions under another label. `boundary`: the same label for mentions that overlap the wanted ones,
    not the same. What is left is `spurious` or `missing`; `unreadable` if the answer about its type could not be read.
    So predicted - right = boundary + type + spurious, and wanted - right = boundary + type + missing + unreadable.
    """
    found: list[tuple[str, Error]] = []
    lacking = list(lacking)
    passes: tuple[tuple[Error, Alike], ...] = (("type", _same_mentions), ("boundary", _same_label))
    for error, alike in passes:
        rest = []
        for fact in extra:
            other = next((at for at, one in enumerate(lacking) if alike(text, fact, one)), None)
            if other is None:
                rest.append(fact)
            else:
                found.append((lacking.pop(other).type, error))
        extra = rest
    found += [(fact.type, "spurious") for fact in extra]
    found += [(fact.type, "unreadable" if fact.type in unreadable else "missing") for fact in lacking]
    return found


def _same_mentions(text: str, one: Fact, other: Fact) -> bool:
    return one.group == other.group and one.label != other.label and one.mentions == other.mentions


def _same_label(text: str, one: Fact, other: Fact) -> bool:
    if one.group != other.group or one.label != other.label:
        return False
    pairs = zip(one.mentions, other.mentions, one.spans, other.spans, strict=True)
    return all(a == b or _overlap(text, a, b, here, there) for a, b, here, there in pairs)


def _overlap(text: str, one: str, other: str, here: Span | None, there: Span | None) -> bool:
    """Whether two mentions share a character, or could: where a place is not known, at any of the places."""
    heres = [here] if here else occurrences(text, one)
    theres = [there] if there else occurrences(text, other)
    return any(overlap(a, b) for a in heres for b in theres)
