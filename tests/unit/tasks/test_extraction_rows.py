"""Labelled rows as conversations: every type asked for, the same however often and wherever it is computed."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unbroken.base.errors import ConfigError, DataError
from unbroken.tasks.adapt.extraction.annotations import Entity, Event, Node, Relation
from unbroken.tasks.adapt.extraction.answers import parse
from unbroken.tasks.adapt.extraction.config import ExtractionConfig
from unbroken.tasks.adapt.extraction.instructions import MOST_PHRASINGS, SHAPES, wording
from unbroken.tasks.adapt.extraction.labels import Labels
from unbroken.tasks.adapt.extraction.replies import as_labels
from unbroken.tasks.adapt.extraction.rows import ExtractionRows, split

TYPES = [f"type {number:02}" for number in range(15)]


def config(kind: str = "ner", **values: Any) -> ExtractionConfig:
    """As DeepKE has it: types that do not occur are listed with nothing."""
    return ExtractionConfig.from_values({"kind": kind, "absent": "listed", **values})


def labelled(count: int = 20) -> list[dict[str, Any]]:
    chance = random.Random(7)
    rows = []
    for number in range(count):
        words = [f"w{number}x{place}" for place in range(6)]
        text, found = " ".join(words), []
        for word in chance.sample(words, number % 4):
            start = text.index(word)
            found.append({"start": start, "end": start + len(word), "type": chance.choice(TYPES), "text": word})
        rows.append({"text": text, "entities": found})
    return rows


def asked(rows: ExtractionRows, example: int, epoch: int) -> list[str]:
    return list(json.loads(rows.conversation(example, epoch)[-1].content))


def examples_by_row(rows: ExtractionRows) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for example, row in enumerate(rows.rows(list(range(rows.num_examples)))):
        found.setdefault(row, []).append(example)
    return found


def test_every_type_is_asked_for_in_every_epoch() -> None:
    rows = ExtractionRows(labelled(), config(schema=TYPES))
    assert rows.num_examples == 20 * 3  # 6, 6 and 3
    orders = set()
    for row, examples in examples_by_row(rows).items():
        for epoch in range(3):
            order = [name for example in examples for name in asked(rows, example, epoch)]
            assert sorted(order) == TYPES
            orders.add((row, tuple(order)))
    assert len(orders) == 20 * 3  # another order each time


def test_some_absent_types_beside_those_present() -> None:
    rows = ExtractionRows(labelled(), config(schema=TYPES, negatives=0.25, types_per_prompt=2))
    for row, examples in examples_by_row(rows).items():
        present = {one.type for one in rows.labelled[row]}
        wanted = len(present) + int(0.25 * (15 - len(present)) + 0.5)
        drawn = set()
        for epoch in range(4):
            order = [name for example in examples for name in asked(rows, example, epoch)]
            assert len(order) == len(set(order)) == wanted
            assert present <= set(order)
            drawn.add(frozenset(order))
        assert len(drawn) > 1
    only = ExtractionRows(labelled(), config(schema=TYPES, negatives=0))
    assert [len(asked(only, example, 0)) for example in range(4)] == [1, 1, 2, 3]  # a row of nothing asks for one


def test_present_types_stand_anywhere_among_the_absent() -> None:
    rows = ExtractionRows(labelled(200), config(schema=TYPES, negatives=0.2, types_per_prompt=None))
    places = []
    for row in range(1, 200, 4):  # rows of one entity: it and 3 others
        order = asked(rows, row, 0)
        places.append(order.index(rows.labelled[row][0].type))
    assert 1.0 < sum(places) / len(places) < 2.0  # 1.5 expected, with a deviation of 0.16


def test_the_answer_is_what_the_labels_say() -> None:
    rows = ExtractionRows(labelled(), config(schema=TYPES, names={"type 03": "third"}))
    for row, examples in examples_by_row(rows).items():
        found = [
            one
            for example in examples
            for one in parse(rows.conversation(example, 5)[-1].content, rows.schema).annotations
        ]
        assert sorted((one.type, one.text) for one in found if isinstance(one, Entity)) == sorted(
            (one.type, one.text) for one in rows.labelled[row] if isinstance(one, Entity)
        )


PROGRAM = """
import json, sys
from tests.unit.tasks.test_extraction_rows import *
rows = ExtractionRows(labelled(), config(negatives=0.4, phrasings=5, types_per_prompt=3), seed=int(sys.argv[1]))
said = [[m.content for m in rows.conversation(e, epoch)] for epoch in range(3) for e in range(rows.num_examples)]
print(json.dumps([rows.digest, said]))
"""


def said(hash_seed: str, seed: int = 1) -> Any:
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
    command = [sys.executable, "-c", PROGRAM, str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_another_hash_seed_changes_nothing_and_another_seed_does() -> None:
    first = said("0")
    assert said("1") == said("4242") == first
    other = said("0", seed=2)
    assert other[0] == first[0]
    assert other[1] != first[1]


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(15, 6, [6, 6, 3]), (14, 6, [6, 8]), (8, 6, [8]), (5, 6, [5]), (12, 6, [6, 6]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]),
     (3, 1, [1, 1, 1]), (39, None, [39]), (7, 2, [2, 2, 2, 1])],
)  # fmt: skip
def test_parts_are_divided_as_deepke_divides(count: int, size: int | None, expected: list[int]) -> None:
    parts = split(range(count), size)
    assert [len(part) for part in parts] == expected
    assert [place for part in parts for place in part] == list(range(count))


def test_questions_of_evaluation_never_change() -> None:
    rows = ExtractionRows(labelled(), config(schema=TYPES, negatives=0.1, phrasings=8), system_prompt="Be exact.")
    questions = rows.prompts(0)
    assert [name for names, _ in questions for name in names] == TYPES
    assert questions == ExtractionRows(labelled(), rows.config, seed=9, system_prompt="Be exact.").prompts(0)
    assert [message.role for message in questions[0][1]] == ["system", "user"]
    wordings = {json.loads(message.content)["instruction"] for _, (_, message) in questions}
    assert wordings == {wording("ner", "en", 0)}


def test_json_and_text_questions() -> None:
    rows = labelled(2)
    asked_as = json.loads(ExtractionRows(rows, config(schema=TYPES[:3])).prompts(1)[0][1][0].content)
    assert list(asked_as) == ["instruction", "schema", "input"]
    assert (asked_as["schema"], asked_as["input"]) == (TYPES[:3], rows[1]["text"])
    text = ExtractionRows(rows, config(schema=TYPES[:3], prompt_style="text", phrasings=["Do it."])).prompts(1)[0][1][0]
    assert text.content == f"Do it.\nSchema: type 00, type 01, type 02\nInput: {rows[1]['text']}"
    schema: Any = {"sale": ["who", "what"]}
    events = ExtractionRows([{"text": "x", "events": []}], config("ee", schema=schema))
    assert json.loads(events.prompts(0)[0][1][0].content)["schema"] == [
        {"event_type": "sale", "trigger": True, "arguments": ["who", "what"]}
    ]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_wording_is_another(language: str) -> None:
    for kind in SHAPES[language]:
        assert len({wording(kind, language, number) for number in range(MOST_PHRASINGS)}) == MOST_PHRASINGS


SPANS = [{"start": 0, "end": 3, "type": "PER", "text": "Ann"}, {"start": 13, "end": 21, "type": "LOC"}]
EXPECTED = (Entity("PER", "Ann", (0, 3)), Entity("LOC", "New York", (13, 21)))
BIO = "-DOCSTART- O\n\nAnn\tB-PER\nlives\tO\nin\tO\nNew\tB-LOC\nYork\tI-LOC\n\n\nAnn\tO\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.bio", BIO),
        ("a.conll", BIO.replace("\t", " NNP X ").replace("\n", "\r\n")),
        ("a.txt", BIO.replace("B-PER", "S-PER").replace("I-LOC", "E-LOC")),
        ("a.bio", BIO.replace("B-", "I-")),
        ("a.bio", BIO.replace("B-", "").replace("I-", "")),
    ],
)
def test_files_of_tokens(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    rows = ExtractionRows(tmp_path / name, config())
    assert rows.texts == ["Ann lives in New York", "Ann"]
    assert rows.labelled == [EXPECTED, ()]
    assert rows.place.locate(1) == f"{name}: line 10"


def test_neighbours_of_one_type_are_two_where_the_tags_say_so(tmp_path: Path) -> None:
    path = tmp_path / "a.bio"
    path.write_text("北\tB-L\n京\tI-L\n上\tB-L\n海\tE-L\n人\tI-L\n")
    rows = ExtractionRows(path, config(language="zh"))
    assert rows.texts == ["北京上海人"]
    assert [one.text for one in rows.labelled[0] if isinstance(one, Entity)] == ["北京", "上海", "人"]


def test_other_formats_say_the_same(tmp_path: Path) -> None:
    text = "Ann lives in New York"
    with (tmp_path / "a.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerows([["sentence", "marks"], [text, json.dumps(SPANS)]])
    rows = ExtractionRows(tmp_path / "a.csv", config(text="sentence", entities="marks"))
    assert rows.labelled == [EXPECTED]
    named = [{"entity": "Ann", "entity_type": "PER"}, {"entity": "New York", "entity_type": "LOC"}]
    for form in ("auto", "deepke"):
        rows = ExtractionRows([{"text": text, "entity": named}], config(format=form))
        assert rows.labelled == [(Entity("PER", "Ann"), Entity("LOC", "New York"))]
    relation = {"head": "Ann", "relation": "lives", "tail": "New York", "head_type": "PER", "tail_type": "LOC"}
    rows = ExtractionRows([{"text": text, "relation": [relation]}], config("re"))
    assert rows.labelled == [(Relation("lives", "Ann", "New York"),)]
    rows = ExtractionRows([{"text": text, "relations": [relation]}], config("spo"))
    assert rows.labelled == [(Relation("lives", "Ann", "New York", "PER", "LOC"),)]
    assert rows.schema.parts == {"lives": (("PER", "LOC"),)}
    event = {"event_trigger": "NAN", "event_type": "stay", "arguments": [{"argument": "Ann", "role": "who"}]}
    rows = ExtractionRows([{"text": text, "event": [event]}], config("eea"))
    assert [one.trigger for one in rows.labelled[0] if isinstance(one, Event)] == [""]
    assert rows.schema.parts == {"stay": ("who",)}
    node = {"text": "Ann", "type": "PER", "attributes": {"age": None, "home": "New York", "job": ["a", "b"]}}
    rows = ExtractionRows([{"text": text, "entities": [node]}], config("kg"))
    assert rows.labelled == [(Node("PER", "Ann", (("home", "New York"), ("job", "a"), ("job", "b"))),)]


def test_what_is_extracted_can_be_trained_on() -> None:
    for kind, found in {
        "ner": EXPECTED,
        "spo": (Relation("r", "Ann", "New York", "P", "L", (0, 3), (13, 21)), Relation("r", "Ann", "x", "P", "L")),
        "ee": (Event("e", "", ()), Event("e", "lives", (), (4, 9))),
        "kg": (Node("PER", "Ann", (("a", "b"), ("a", "c")), (0, 3)),),
    }.items():
        cell = json.loads(json.dumps(as_labels(found)))  # type: ignore[arg-type]
        assert Labels(kind, "spans").annotations(cell, "Ann lives in New York", "") == found  # type: ignore[arg-type]


def test_the_schema_of_deepke(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('["sale", "fire"]\n["who", "sold to"]\n{"sale": ["who"], "fire": []}\n')
    row = {"text": "a", "entities": [], "relations": [], "events": []}
    for kind, types in {"ner": ("sale", "fire"), "re": ("who", "sold to"), "ee": ("sale", "fire")}.items():
        assert ExtractionRows([row], config(kind, schema=str(path))).schema.types == types
    with pytest.raises(ConfigError, match=r"has 3 lines of JSON, no schema of spo; write type -> pairs"):
        ExtractionRows([row], config("spo", schema=str(path)))


def test_evaluation_has_the_schema_of_training() -> None:
    train = ExtractionRows(labelled(), config(names={"type 03": "third"}))
    held_out = [{"text": "b", "entities": [{"text": "b", "type": "type 99"}]}]
    assert ExtractionRows(labelled(3), train.config, schema=train.schema).schema is train.schema
    with pytest.raises(
        DataError, match=r"rows: row 1, column 'entities', item 1 has the type 'type 99', which is not in"
    ):
        ExtractionRows(held_out, train.config, schema=train.schema)


def test_the_digest_is_of_rows_and_schema() -> None:
    rows = labelled()
    one = ExtractionRows(rows, config(schema=TYPES))
    assert one.digest == ExtractionRows([{**row, "other": 1} for row in rows], config(schema=TYPES)).digest
    assert one.digest != ExtractionRows(rows, config(schema=[*TYPES, "more"])).digest
    assert one.digest != ExtractionRows(rows[::-1], config(schema=TYPES)).digest
    assert len(one.row_digests) == len(rows)


def entity(**values: Any) -> dict[str, Any]:
    return {"text": "Ann in Rome", "entities": [{"start": 0, "end": 3, "type": "PER"} | values]}


EVENT: dict[str, Any] = {"type": "PER", "trigger": "A"}
NODE: dict[str, Any] = {"type": "PER", "text": "A"}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("ner", entity(text="Bob"), "item 1 is 'Bob', but characters 0 to 3 are 'Ann'; count characters"),
        ("ner", entity(end=12), "item 1 goes from 0 to 12 in a text of 11 characters; count from 0"),
        ("ner", entity(start=3), "goes from 3 to 3"),
        ("ner", entity(start=-1), "goes from -1 to 3"),
        ("ner", entity(start=3, end=4), "marks characters 3 to 4, which are white space"),
        ("ner", entity(end=None), "has start 0 and end null, where two whole numbers are expected"),
        ("ner", entity(end=True), "has start 0 and end true"),
        ("ner", entity(type=""), "has '' as 'type', where text is expected"),
        ("ner", entity(type="PERS"), "has the type 'PERS', which is not in the schema; did you mean 'PER'"),
        ("ner", {"text": "Ann", "entities": [{"type": "PER"}]}, "item 1 has no 'text'; it has type"),
        ("ner", {"text": "Ann", "entities": [{"text": "Ann"}]}, "item 1 has no 'type'; it has text"),
        ("ner", {"text": "Ann", "entities": None}, "column 'entities' holds null, not a list"),
        ("ner", {"text": "Ann", "entities": "Ann"}, "column 'entities' holds 'Ann', not a list"),
        ("ner", {"text": "Ann", "entities": ["Ann"]}, "item 1 is 'Ann', not an object"),
        ("ner", {"text": None, "entities": []}, "column 'text' holds null where text is expected"),
        ("ner", {"text": " ", "entities": []}, "column 'text' holds an empty text"),
        ("ner", {"text": "A", "entities": [{"text": "\ud800", "type": "PER"}]}, r"has '\ud800' as 'text'"),
        ("re", {"text": "A", "relations": [{"head": "A", "relation": "PER"}]}, "item 1 has no 'tail'; it has head"),
        ("spo", {"text": "A", "relations": [{"head": "A", "relation": "PER", "tail": "A"}]}, "has no head_type"),
        ("ee", {"text": "A", "events": [{"type": "PER", "arguments": {}}]}, "has arguments that are {}, not a list"),
        ("ee", {"text": "A", "events": [{"type": "PER", "arguments": {"a": 1}}]}, "has arguments that are {"),
        ("ee", {"text": "A", "events": [EVENT | {"arguments": [{"role": "b", "text": "A"}]}]}, "has the role 'b'"),
        ("ee", {"text": "A", "events": [{"type": "PER", "arguments": [{"text": "A"}]}]}, "argument 1 has no 'role'"),
        ("eet", {"text": "A", "events": [EVENT | {"trigger": "NAN"}]}, "item 1 has no trigger, which is all"),
        ("kg", {"text": "A", "entities": [NODE | {"attributes": {"a": 1}}]}, "has 1 as the attribute 'a'"),
        ("kg", {"text": "A", "entities": [NODE | {"attributes": {"b": "x"}}]}, "has the attribute 'b', which"),
        ("kg", {"text": "A", "entities": [NODE | {"attributes": []}]}, "has attributes that are [], not an object"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(kind: str, row: dict[str, Any], message: str) -> None:
    schema: Any = {"spo": {"PER": ["a", "b"]}, "ee": {"PER": ["a"]}, "kg": {"PER": ["a"]}}.get(kind, ["PER", "ORG"])
    good = {**row, "text": "good"} | {name: [] for name in ("entities", "relations", "events") if name in row}
    with pytest.raises(DataError) as raised:
        ExtractionRows([good, row], config(kind, schema=schema))
    assert message in str(raised.value)
    assert str(raised.value).startswith("rows: row 2, column '")
    assert "\n" not in str(raised.value)


def test_one_place_marked_twice_is_refused() -> None:
    row = entity()
    row["entities"] *= 2
    with pytest.raises(DataError, match="item 2 says a second time that 'Ann' is of type 'PER'"):
        ExtractionRows([row], config())


def test_missing_columns_and_labels(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no column 'entities' \(for entities\); it has text, entites; .*`extraction: {ent"
    ):
        ExtractionRows([{"text": "a", "entites": []}], config())
    with pytest.raises(DataError, match="has no label at all"):
        ExtractionRows([{"text": "a", "entities": []}], config())
    (tmp_path / "a.bio").write_text("Ann\tB-PER\nleft\n")
    with pytest.raises(DataError, match=r"a.bio: line 2 is not a token and a tag; it holds 'left'"):
        ExtractionRows(tmp_path / "a.bio", config())
    (tmp_path / "a.bio").write_text("Ann\tB-PER\nleft\tLOC\n")
    with pytest.raises(DataError, match=r"a.bio: line 2 has the tag 'LOC', unlike the tags before it"):
        ExtractionRows(tmp_path / "a.bio", config())
    (tmp_path / "a.bio").write_text("\n\n")
    with pytest.raises(DataError, match="is empty"):
        ExtractionRows(tmp_path / "a.bio", config())
    with pytest.raises(ConfigError, match="does not go with kind 're'"):
        ExtractionRows(tmp_path / "a.bio", config("re"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "nerr"}, "did you mean 'ner'"),
        ({"kind": "re", "format": "conll"}, "conll holds entities"),
        ({"kind": "ner", "phrasings": []}, "an instruction is empty"),
        ({"kind": "ner", "phrasings": 99}, "at most 8"),
        ({"kind": "ner", "negatives": 2}, "at most 1"),
        ({"kind": "ner", "types_per_prompt": 0}, "above 0|greater than 0"),
        ({"kind": "ner", "scheme": ["a"]}, "did you mean 'schema'"),
    ],
)
def test_a_bad_configuration_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExtractionConfig.from_values(values)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("ner", {"schema": {"a": []}}, "a schema of kind 'ner' is a list of types"),
        ("ee", {"schema": ["a"]}, "a schema of kind 'ee' is type -> roles"),
        ("ner", {"schema": ["a", "a"]}, "the type 'a' is there twice"),
        ("ner", {"schema": ["a", " "]}, '" " is no type'),
        ("spo", {"schema": {"a": ["b"]}}, "what belongs to 'a' should be pairs"),
        ("ner", {"schema": ["a"], "names": {"b": "c"}}, "there is no type 'b'; the types are a"),
        ("ner", {"schema": ["a", "b"], "names": {"b": "A"}}, "the phrase of type 'b' is the same as 'a' has"),
        ("ner", {"schema": ["a"], "names": {"a": " "}}, "the phrase of type 'a' is empty"),
        ("ner", {"schema": "nowhere.json"}, "nowhere.json cannot be read"),
    ],
)
def test_a_bad_schema_is_named(kind: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExtractionRows([{"text": "a", "entities": [], "relations": [], "events": []}], config(kind, **values))


def test_an_answer_leaves_out_what_does_not_occur_unless_it_is_to_list_it() -> None:
    data = [{"text": "Ada in Rome", "entities": [{"type": "city", "text": "Rome"}]}, {"text": "no one", "entities": []}]
    rows = ExtractionRows(data, config(schema=["person", "city", "year"], absent="left_out"))
    assert [json.loads(rows.conversation(row, 0)[-1].content) for row in range(2)] == [{"city": ["Rome"]}, {}]
    assert "leave out what does not occur" in rows.conversation(0, 0)[0].content
    listed = ExtractionRows(data, config(schema=["person", "city", "year"]))
    assert json.loads(listed.conversation(1, 0)[-1].content) == {"person": [], "city": [], "year": []}
    assert "empty list" in listed.conversation(0, 0)[0].content


def test_a_question_asks_for_many_types_where_answers_leave_out() -> None:
    rows = ExtractionRows(labelled(), config(schema=TYPES, absent="left_out"))
    assert rows.num_examples == 20
    assert len(rows.prompts(0)) == 1
    assert config(absent="left_out", types_per_prompt=6).at_once == 6


def test_both_forms_of_an_answer_say_the_same_of_what_occurs() -> None:
    both = [
        ExtractionRows(labelled(), config(schema=TYPES, types_per_prompt=None, absent=how))
        for how in ("listed", "left_out")
    ]
    for row in range(20):
        whole, short = (json.loads(rows.conversation(row, 0)[-1].content) for rows in both)
        assert short == {name: found for name, found in whole.items() if found}
