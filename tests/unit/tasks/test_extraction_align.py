"""Mentions found in the text they come from."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.tasks.adapt.extraction.align import aligned, overlap, place
from unbroken.tasks.adapt.extraction.annotations import Argument, Entity, Event, Relation


def found(text: str, *mentions: str) -> list[str | None]:
    spans = place(text, [("t", mention) for mention in mentions])
    return [None if span is None else f"{span[0]}:{text[slice(*span)]}" for span in spans]


def test_exact_then_without_case_and_white_space() -> None:
    assert found("ann and Ann", "Ann") == ["8:Ann"]
    assert found("ANN  LEE left", "Ann Lee") == ["0:ANN  LEE"]
    assert found("Ann left", "Bob", " Ann ") == [None, "0:Ann"]


def test_the_same_again_has_the_next_occurrence() -> None:
    assert found("Rome, Rome and Rome", "Rome", "Rome", "Rome", "Rome") == ["0:Rome", "6:Rome", "15:Rome", None]


def test_whole_words_come_first() -> None:
    assert found("Annexed by Ann", "Ann") == ["11:Ann"]
    assert found("Annexed", "Ann") == ["0:Ann"]
    assert found("去北京大学", "北京") == ["1:北京"]


def test_a_part_of_another_mention_is_found_elsewhere_if_it_is_there() -> None:
    assert found("New York Times of New York", "New York", "New York Times") == ["18:New York", "0:New York Times"]
    assert found("the New York Times", "New York", "New York Times") == ["4:New York", "4:New York Times"]


def test_one_place_may_have_two_types() -> None:
    assert place("Washington", [("PER", "Washington"), ("LOC", "Washington")]) == [(0, 10), (0, 10)]


def test_every_part_of_an_annotation_is_placed() -> None:
    text = "Ann sold Rome to Bob, and Bob sold it on"
    given_ = [
        Entity("p", "Bob"), Entity("p", "Eve"), Relation("r", "Ann", "Bob"),
        Event("e", "sold", (Argument("who", "Ann"),)), Event("e", "sold"), Event("e", ""),
    ]  # fmt: skip
    placed, missing = aligned(text, given_)
    assert missing == 1
    assert placed == (
        Entity("p", "Bob", (17, 20)), Entity("p", "Eve"), Relation("r", "Ann", "Bob", "", "", (0, 3), (17, 20)),
        Event("e", "sold", (Argument("who", "Ann", (0, 3)),), (4, 8)), Event("e", "sold", (), (30, 34)), Event("e", ""),
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab 中.", max_size=30), st.lists(st.text(alphabet="abA 中.", max_size=4), max_size=6))
def test_a_span_holds_its_mention(text: str, mentions: list[str]) -> None:
    spans = place(text, [("t", mention) for mention in mentions])
    for mention, span in zip(mentions, spans, strict=True):
        if span is not None:
            assert text[slice(*span)].split() == mention.split() or (
                " ".join(text[slice(*span)].split()).lower() == " ".join(mention.split()).lower()
            )
        elif mention.strip() and mention in text:  # only because others have all of its places
            assert any(other is not None for other in spans)
    placed = [span for span in spans if span is not None]
    assert len(set(placed)) == len(placed)


def test_overlap() -> None:
    assert overlap((0, 3), (2, 5))
    assert not overlap((0, 3), (3, 5))
