"""Answers: what was written is read, what is damaged is read as far as it is whole, and nothing ever raises."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.tasks.extraction_cases import KINDS, TYPES, annotations, schema_of

from unbroken.tasks.adapt.extraction.annotations import Argument, Entity, Event, Node, Relation
from unbroken.tasks.adapt.extraction.answers import Answer, parse
from unbroken.tasks.adapt.extraction.prompts import answer
from unbroken.tasks.adapt.extraction.schema import Schema

EVERYTHING = range(len(TYPES))
PLAIN = Schema("ner", ("person", "city"))
JUNK = st.text(alphabet=st.sampled_from(list("{}[]\"':,\\ \nuaNAnull0-9.`“”é\ud800")), max_size=60)


def texts(reply: str, schema: Schema = PLAIN) -> list[tuple[str, str]]:
    return [(one.type, one.text) for one in parse(reply, schema).annotations if isinstance(one, Entity)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read(kind: str, data: st.DataObject) -> None:
    found = data.draw(annotations(kind))
    read = parse(answer(schema_of(kind), EVERYTHING, found), schema_of(kind))
    assert read == Answer(found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_an_answer_cut_anywhere_keeps_only_what_was_in_it(kind: str, data: st.DataObject) -> None:
    found = data.draw(annotations(kind))
    whole = answer(schema_of(kind), EVERYTHING, found)
    read = parse(whole[: data.draw(st.integers(0, len(whole) - 1))], schema_of(kind))
    assert len(read.annotations) <= len(found)
    assert not read.valid
    for mine, theirs in zip(read.annotations, found, strict=False):
        assert mine == theirs or isinstance(mine, Event | Node)
        if isinstance(mine, Event) and isinstance(theirs, Event):
            assert mine.trigger in (theirs.trigger, "")
            assert mine.arguments == theirs.arguments[: len(mine.arguments)]
        if isinstance(mine, Node) and isinstance(theirs, Node):
            assert (mine.text, mine.attributes) == (theirs.text, theirs.attributes[: len(mine.attributes)])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_text_raises(kind: str, data: st.DataObject) -> None:
    whole = answer(schema_of(kind), EVERYTHING, data.draw(annotations(kind)))
    at = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.one_of(JUNK, st.text(max_size=40)))
    for text in (junk, "{" + junk, whole[:at] + junk + whole[at:], whole[:at] + junk):
        read = parse(text, schema_of(kind))
        assert read.readable or not read.annotations


@pytest.mark.parametrize("text", ["{" * 100_000, "[" * 100_000, '{"a":' * 50_000, '{"person":["' * 20_000, "\\" * 9999])
def test_pages_of_brackets_take_no_time(text: str) -> None:
    began = time.monotonic()
    for page in (text, '{"person": ' + text):
        assert len(parse(page, PLAIN).annotations) < 3
    assert time.monotonic() - began < 20  # without limits, hours


ANN = [("person", "Ann")]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('```json\n{"person": ["Ann"]}\n```', ANN),
        ('Sure! Here it is: {"person": ["Ann"]} I hope {this} helps.', ANN),
        ('<think>{"person": ["Bob"]}?</think>{"person": ["Ann"]}', ANN),
        ("{'person': ['Ann']}", ANN),
        ("{'person': ['Ann O'Hara', 'Bob']}", [("person", "Ann O'Hara"), ("person", "Bob")]),
        ('{"person": ["Ann",], }', ANN),
        ('{"person": ["Ann", "Bo', ANN),
        ('{"person": ["Ann"], "ci', ANN),
        ('{"person": ["Ann"], "city": ["Ro', ANN),
        ('{"person": ["Ann"], "person": ["Bob"]}', [*ANN, ("person", "Bob")]),
        ("{person: [Ann, Bob Lee]}", [*ANN, ("person", "Bob Lee")]),
        ('{"person": ["Ann" "Bob"]}', [*ANN, ("person", "Bob")]),
        ("{“person”: [“Ann”]}", ANN),
        ('{"person": ["Ann"}', ANN),
        ('{"Person ": "Ann", "city": null}', ANN),
        ('{"person": [{"text": "Ann"}, ["Bob"], true, 7, ""]}', [*ANN, ("person", "7")]),
        ('{"answer": {"person": ["Ann"]}}', ANN),
        ('[{"person": ["Ann"]}]', ANN),
        ('{"person": ["A\\u006en"], city: []}', ANN),
        ('{"person": ["\\ud83d\\ude00"], x', [("person", "😀")]),
        ("{}", []),
    ],
)
def test_damage(reply: str, expected: list[tuple[str, str]]) -> None:
    assert parse(reply, PLAIN).readable
    assert texts(reply) == expected


@pytest.mark.parametrize(
    "reply", ["", "none", "Ann lives in Rome", '["Ann"]', "{", '{"person": [', '{"person": ["An', "7"]
)
def test_of_which_nothing_can_be_read(reply: str) -> None:
    assert parse(reply, PLAIN) == Answer(readable=False, valid=False)


def test_what_is_left_out_is_counted() -> None:
    read = parse('{"person": [true, "Ann"], "city": ["Rome"], "planet": ["Mars"]}', PLAIN, ["person"])
    assert read == Answer((Entity("person", "Ann"),), malformed=1, unasked=2)


def one(kind: str, parts: Any, reply: str) -> Any:
    read = parse(reply, Schema(kind, ("t",), {"t": parts}))  # type: ignore[arg-type]
    assert read.valid
    return read.annotations


def test_other_shapes_that_mean_the_same() -> None:
    relation = (Relation("t", "a", "b"),)
    assert one("re", (), '{"t": [{"subject": "a", "object": "b"}]}') == relation
    assert one("re", (), '{"t": [["a", "b"]]}') == relation
    assert one("re", (), '{"t": {"head": "a", "tail": "b"}}') == relation
    typed = (Relation("t", "a", "b", "x", "y"),)
    assert one("spo", (("x", "y"),), '{"t": [{"head": "a", "tail": "b"}]}') == typed
    several = Schema("spo", ("t",), {"t": (("x", "y"), ("y", "x"))})
    assert parse('{"t": [{"head": "a", "head_type": "x", "tail": "b"}]}', several).annotations == typed
    assert parse('{"t": [{"head": "a", "tail": "b"}]}', several) == Answer(malformed=1)
    event = (Event("t", "sold", (Argument("who", "Ann"), Argument("who", "Bob"))),)
    assert one("ee", ("who",), '{"t": [{"trigger": "sold", "arguments": {"who": ["Ann", "Bob", "NAN"]}}]}') == event
    assert one("ee", ("who",), '{"t": "sold"}') == (Event("t", "sold"),)
    assert one("eea", ("who",), '{"t": [{"arguments": {"who": "Ann"}}]}') == (
        Event("t", "", (Argument("who", "Ann"),)),
    )
    assert one("kg", ("age",), '{"t": ["Ann", {"Bob": {"age": 7}}]}') == (
        Node("t", "Ann"),
        Node("t", "Bob", (("age", "7"),)),
    )


def test_phrases_stand_for_types() -> None:
    schema = Schema("ner", ("PER", "LOC")).named({"PER": "name of a person"})
    assert texts('{"name of a Person": ["Ann"], "LOC": ["Rome"]}', schema) == [("PER", "Ann"), ("LOC", "Rome")]
    assert parse('{"PER": ["Ann"]}', schema).unasked == 1
