"""Scores against cases counted by hand and against DeepKE's definition, spelled out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.tasks.extraction_cases import KINDS, TYPES, annotations

from unbroken.tasks.adapt.extraction.annotations import Annotation, Argument, Entity, Event, Relation, facts
from unbroken.tasks.adapt.extraction.replies import Extraction, extracted
from unbroken.tasks.adapt.extraction.schema import Schema
from unbroken.tasks.adapt.extraction.scores import ERRORS, Scores, key
from unbroken.views.extraction_table import extraction_text

FEW = st.sampled_from(["a", "b", "a b", "c"])
TEXT = "a b c a b"


def scored(kind: str, gold: Any, found: Any, text: str = TEXT, unreadable: Any = (), match: Any = "multiset") -> Scores:
    scores = Scores(kind, TYPES, match)  # type: ignore[arg-type]
    scores.add(text, gold, Extraction(tuple(found), frozenset(unreadable)))
    return scores


def deepke(gold: list[Any], found: list[Any], match: str) -> tuple[int, int, int]:
    """Count as DeepKE's evaluation is described: each prediction takes one equal label away."""
    if match == "set":
        gold, found = list(dict.fromkeys(gold)), list(dict.fromkeys(found))
    left, right = list(gold), 0
    for one in found:
        if one in left:
            left.remove(one)
            right += 1
    return right, len(found), len(gold)


@pytest.mark.parametrize("match", ["multiset", "set"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_as_deepke_counts_and_every_error_once(kind: str, match: str, data: st.DataObject) -> None:
    gold, found = (data.draw(annotations(kind, FEW)) for _ in range(2))
    unreadable = data.draw(st.sets(st.sampled_from(TYPES)))
    scores = scored(kind, gold, found, unreadable=unreadable, match=match)
    for group, counts in scores.groups.items():
        wanted, predicted = ([key(fact) for fact in facts(some, kind) if fact.group == group] for some in (gold, found))
        assert (counts.right, counts.predicted, counts.wanted) == deepke(wanted, predicted, match)
    whole, errors = scores.overall, Counter[str]()
    for (_, error), count in scores.errors.items():
        errors[error] += count
    paired = errors["boundary"] + errors["type"]
    assert whole.predicted - whole.right == paired + errors["spurious"]
    assert whole.wanted - whole.right == paired + errors["missing"] + errors["unreadable"]
    metrics = scores.metrics()
    both = metrics["precision"] + metrics["recall"]
    assert metrics["f1"] == pytest.approx(2 * metrics["precision"] * metrics["recall"] / both if both else 0.0)
    assert sum(row.predicted for row in scores.table()) == whole.predicted


def test_entities_by_hand() -> None:
    text = "Ann Lee of Rome met Bob in New York City and Eve"
    person, place = TYPES[0], TYPES[2]
    gold = [
        Entity(person, "Ann Lee", (0, 7)), Entity(place, "Rome", (11, 15)), Entity(person, "Bob", (20, 23)),
        Entity(place, "New York City", (27, 40)), Entity(person, "Eve", (45, 48)),
    ]  # fmt: skip
    found = [
        Entity(person, "Ann", (0, 3)),  # boundary
        Entity(person, "Rome", (11, 15)),  # type
        Entity(place, "New  York City", (27, 40)),  # right
        Entity(person, "met", (16, 19)),  # spurious
    ]  # and Bob and Eve are missing
    scores = scored("ner", gold, found, text)
    assert {error: count for (_, error), count in scores.errors.items() if error != "missing"} == {
        "boundary": 1, "type": 1, "spurious": 1,
    }  # fmt: skip
    assert scores.errors[person, "missing"] == 2
    assert scores.errors[place, "type"] == 1
    metrics = scores.metrics()
    assert (metrics["precision"], metrics["recall"]) == (1 / 4, 1 / 5)
    assert metrics["f1"] == pytest.approx(2 / 9)
    assert metrics[f"f1/{place}"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx((0 + 2 / 3) / 2)
    assert metrics["span_f1"] == pytest.approx(2 / 9)
    assert metrics["errors/missing"] == 2.0
    assert scored("ner", gold, found, text, unreadable=[person]).metrics()["errors/unreadable"] == 2.0


def test_twice_in_the_text_is_twice_to_be_found() -> None:
    gold, once = [Entity(TYPES[0], "a", (0, 1)), Entity(TYPES[0], "a", (6, 7))], [Entity(TYPES[0], "a", (0, 1))]
    assert scored("ner", gold, once).metrics()["recall"] == 0.5
    assert scored("ner", gold, once, match="set").metrics()["recall"] == 1.0


def test_by_place_only_where_every_label_has_one() -> None:
    scores = scored("ner", [Entity(TYPES[0], "a", (6, 7))], [Entity(TYPES[0], "a", (0, 1))])
    assert (scores.metrics()["f1"], scores.metrics()["span_f1"]) == (1.0, 0.0)
    scores.add(TEXT, [Entity(TYPES[0], "a")], Extraction())
    assert "span_f1" not in scores.metrics()


def test_boundaries_without_places_are_looked_up() -> None:
    relation = TYPES[1]
    scores = scored("re", [Relation(relation, "a b", "c")], [Relation(relation, "b", "c")])
    assert scores.errors == {(relation, "boundary"): 1}
    scores = scored("re", [Relation(relation, "a", "c")], [Relation(relation, "b", "c")])
    assert scores.errors == {(relation, "spurious"): 1, (relation, "missing"): 1}


def test_events_and_arguments_by_hand() -> None:
    kind = TYPES[0]
    gold = [Event(kind, "a", (Argument("who", "b"), Argument("where", "c")))]
    found = [Event(kind, "a", (Argument("where", "b"),)), Event(kind, "c")]
    metrics = scored("ee", gold, found).metrics()
    assert (metrics["event_precision"], metrics["event_recall"]) == (0.5, 1.0)
    assert (metrics["argument_f1"], metrics["errors/type"]) == (0.0, 1.0)  # the right words, another role
    assert metrics["f1"] == pytest.approx(2 * 1 / (3 + 3))


def test_nothing_wanted_and_nothing_found_is_zero_not_an_error() -> None:
    metrics = scored("ner", [], []).metrics()
    assert (metrics["f1"], metrics["macro_f1"]) == (0.0, 0.0)
    assert all(isinstance(value, float) for value in metrics.values())


def test_replies_of_a_row_together() -> None:
    schema = Schema("ner", ("person", "city"))
    text = "Ann of Rome"
    found = extracted(text, schema, [(["person"], '{"person": ["Ann", "Zoe"]'), (["city"], "no idea")])
    assert found.annotations == (Entity("person", "Ann", (0, 3)), Entity("person", "Zoe"))
    assert found.unreadable == {"city"}
    assert {name: count for name, count in found.counts.items() if count} == {
        "answers": 2, "unreadable": 1, "invalid": 1, "unaligned": 1,
    }  # fmt: skip
    scores = Scores("ner", schema.types)
    scores.add(text, [Entity("person", "Ann", (0, 3)), Entity("city", "Rome", (7, 11))], found)
    assert scores.errors == {("person", "spurious"): 1, ("city", "unreadable"): 1}


def test_the_table_says_it_all() -> None:
    gold: list[Annotation] = [Event(TYPES[0], "a", (Argument("who", "b"),))]
    scores = scored("ee", gold, gold)
    scores.counts.update(answers=3, unreadable=1)
    lines = extraction_text(scores).splitlines()
    assert lines[0].split() == ["type", "precision", "recall", "F1", "wanted", "predicted", *ERRORS]
    assert lines[1].split() == [TYPES[0], "1.000", "1.000", "1.000", "2", "2", "0", "0", "0", "0", "0"]
    assert [line.split()[0] for line in lines[2:6]] == ["event", "argument", "all", "mean"]
    assert lines[-2:] == ["1 row, 3 answers", "  1 of which nothing could be read"]
    many = Scores("ner", tuple(f"t{n:02}" for n in range(80)))
    many.add("a", [Entity(f"t{n:02}", "a", (0, 1)) for n in range(80)], Extraction())
    assert "and 20 types less frequent than these" in extraction_text(many)
