"""Rows of instructions: every format, every bad row in one line, and nothing kept twice."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.base.errors import ConfigError, DataError
from unbroken.plan.source import read_rows
from unbroken.tasks.adapt.conversation import Message
from unbroken.tasks.adapt.instructions import InstructionRows, Reading
from unbroken.tasks.adapt.messages import BadMessagesError, read_messages

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    columns: dict[str, str] = field(default_factory=dict)
    system_prompt: str = ""


PLAIN = Settings()


def said(*pairs: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in pairs)  # type: ignore[arg-type]


def first(row: Row, settings: Settings = PLAIN) -> tuple[Message, ...]:
    return InstructionRows([row], settings).conversation(0)


QA = said(("user", "Q"), ("assistant", "A"))
DEEPKE_ASKED = json.dumps({"instruction": "You extract entities.", "schema": ["person"], "input": "Ada wrote."})
DEEPKE = {"task": "NER", "source": "x", "instruction": DEEPKE_ASKED, "output": '{"person": ["Ada"]}'}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Q", "output": "A"}, QA),
        ({"instruction": "Q", "input": "", "output": "A"}, QA),
        ({"instruction": "Q", "input": None, "output": "A"}, QA),
        ({"instruction": "Q", "input": "text", "output": "A"}, said(("user", "Q\ntext"), ("assistant", "A"))),
        ({"instruction": " ", "input": "Q", "output": "A"}, QA),
        ({"instruction": "Q", "output": "A", "system": "S"}, (Message("system", "S"), *QA)),
        ({"prompt": "Q", "completion": "A"}, QA),
        ({"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]}, QA),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, QA),
        ({"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]'}, QA),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, QA),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
            (Message("system", "S"), *QA),
        ),
        (DEEPKE, said(("user", DEEPKE_ASKED), ("assistant", '{"person": ["Ada"]}'))),
        (
            {"messages": [{"role": role, "content": role[0]} for role in ("system", *("user", "assistant") * 2)]},
            said(("system", "s"), *[("user", "u"), ("assistant", "a")] * 2),
        ),
    ],
)
def test_what_a_row_becomes(row: Row, expected: tuple[Message, ...]) -> None:
    rows = InstructionRows([row], PLAIN)
    assert rows.num_examples == 1
    assert rows.conversation(0, epoch=3) == expected
    assert len(rows.row_digests) == 1


def test_columns_named_by_their_roles() -> None:
    row = {"question": "Q", "reply": "A", "about": "S", "output": "not this"}
    columns = {"prompt": "question", "completion": "reply", "system": "about"}
    assert first(row, Settings(columns)) == (Message("system", "S"), *QA)
    assert first(
        {"talk": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, Settings({"messages": "talk"})
    )
    assert first({"instruction": "Q", "input": "x", "output": "A"}, Settings({"input": "input"}))[0].content == "Q\nx"


def test_the_configured_system_message_gives_way_to_the_rows_own() -> None:
    settings = Settings(system_prompt="C")
    assert first({"prompt": "Q", "completion": "A"}, settings)[0] == Message("system", "C")
    assert first({"prompt": "Q", "completion": "A", "system": " "}, settings)[0] == Message("system", "C")
    assert first({"prompt": "Q", "completion": "A", "system": "S"}, settings)[0] == Message("system", "S")
    own = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert first({"messages": own}, settings)[0] == Message("system", "S")
    assert first({"messages": own[1:]}, settings) == (Message("system", "C"), *QA)
    assert first({"messages": [{"role": "system", "content": ""}, *own[1:]]}, settings)[0] == Message("system", "C")


def talk(*pairs: tuple[Any, Any]) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"instruction": "Q", "output": ""}, "rows: row 1, column 'output' holds an empty answer; there would be noth"),
        ({"instruction": "Q", "output": "\n "}, "rows: row 1, column 'output' holds an empty answer"),
        ({"instruction": "Q", "output": None}, "rows: row 1, column 'output' holds an empty answer"),
        ({"instruction": "Q", "output": {"a": 1}}, "column 'output' holds an object where text is expected"),
        ({"instruction": "Q", "output": 7}, "column 'output' holds a number where text is expected"),
        ({"instruction": None, "output": "A"}, "column 'instruction' holds null where text is expected"),
        (
            {"instruction": "", "input": " ", "output": "A"},
            "column 'instruction' holds an empty text; nothing is",
        ),
        ({"instruction": "Q", "input": ["x"], "output": "A"}, "column 'input' holds a list where text is expected"),
        ({"prompt": "Q\ud800", "completion": "A"}, "column 'prompt' holds text with half a surrogate pair"),
        ({"prompt": [], "completion": "A"}, "column 'prompt' is an empty list"),
        (
            {"prompt": talk(("user", "Q"), ("assistant", "x"))["messages"], "completion": "A"},
            "does not end with a message",
        ),
        (
            {"prompt": talk(("system", "Q"))["messages"], "completion": "A"},
            "column 'prompt' does not end with a message",
        ),
        ({"prompt": "Q", "completion": []}, "column 'completion' does not hold exactly one message of the"),
        ({"prompt": "Q", "completion": talk(("user", "A"))["messages"]}, "does not hold exactly one message"),
        (
            {"prompt": "Q", "completion": talk(("bot", "A"))["messages"]},
            "'completion', message 1 has the unknown",
        ),
        (talk(("user", "Q")), "column 'messages' ends with a message of the user's; there would be no answer to learn"),
        (talk(("system", "Q")), "column 'messages' ends with a message of the system's"),
        (
            talk(("user", "Q"), ("tool", "x"), ("assistant", "A")),
            'message 2 has the unknown role "tool" (known: system, ',
        ),
        (talk(("user", "Q"), (None, "A")), "message 2 has the unknown role null"),
        (talk(("user", "Q"), ("assistant", "")), "column 'messages', message 2 is empty"),
        (talk(("user", "Q"), ("assistant", None)), "message 2 has no text: its `content` is null"),
        (talk(("user", [{"type": "text"}]), ("assistant", "A")), "message 1 has no text: its `content` is a list"),
        (
            talk(("assistant", "A"), ("user", "Q")),
            "message 1 is the assistant's, and nothing of the user's",
        ),
        (
            talk(("user", "Q"), ("system", "S"), ("assistant", "A")),
            "message 2 is a system message, which may",
        ),
        (talk(("user", "\udc00"), ("assistant", "A")), "message 1 holds half a surrogate pair"),
        ({"messages": []}, "column 'messages' is an empty list"),
        ({"messages": None}, "column 'messages' is null, not a list of messages"),
        ({"messages": {"role": "user"}}, "column 'messages' is an object, not a list of messages"),
        ({"messages": "hello"}, "column 'messages' is text, not a list of messages"),
        ({"messages": '"hello"'}, "column 'messages' is text, not a list of messages"),
        ({"messages": ["hello"]}, "message 1 is text, not an object with `role` and `content`"),
        ({"messages": [{"speaker": "x"}]}, "message 1 has neither `role` nor `from`; it has speaker"),
        ({"messages": [{"from": "human"}]}, "message 1 has no text: its `value` is missing"),
    ],
)
def test_a_bad_row_is_named_in_one_line(row: Row, line: str) -> None:
    with pytest.raises(DataError) as failure:
        _ = InstructionRows([row], PLAIN).digest
    assert line in str(failure.value)
    assert str(failure.value).startswith("rows: row 1, column '")
    assert str(failure.value).endswith("; correct it or remove the row")
    assert "\n" not in str(failure.value)


def test_a_bad_row_is_found_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good, bad = json.dumps({"instruction": "Q", "output": "A"}), json.dumps({"instruction": "Q", "output": ""})
    path.write_text(f"{good}\n\n{bad}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"^t\.jsonl: line 3, column 'output' holds an empty answer"):
        _ = InstructionRows(path, PLAIN).digest


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"text": "x"}, "rows has no instructions; it has the columns text; expected are messages, or instruction"),
        (
            {"messages": [], "instruction": "Q", "output": "A"},
            r"can be read as messages or as instruction; .*say",
        ),
        ({"messages": [], "conversations": []}, "can be read as messages or as conversations"),
        ({"instruction": "Q"}, r"has no column 'output' \(for output\)"),
        ({"prompt": "Q", "completed": "A"}, r"no column 'completion' .*`columns: {completion: completed}`"),
    ],
)
def test_columns_of_no_format_or_of_two(row: Row, line: str) -> None:
    with pytest.raises(DataError, match=line):
        _ = InstructionRows([row], PLAIN).digest


def test_two_formats_told_apart_by_naming_a_column() -> None:
    row = {"messages": [], "instruction": "Q", "output": "A"}
    assert first(row, Settings({"instruction": "instruction"})) == QA
    assert first({"prompt": "Q", "completion": "A", "instruction": "half a format"}) == QA


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"instructions": "a"}, "no role 'instructions' of instruction rows; did you mean 'instruction'"),
        ({"zzz": "a"}, "no role 'zzz' of instruction rows; the roles are completion, input"),
        ({"prompt": "a", "output": "b"}, "columns: prompt, output are not the roles of one format"),
        ({"system": "a"}, "columns: system are not the roles of one format"),
    ],
)
def test_roles_that_fit_no_format(columns: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        _ = InstructionRows([{"a": "x", "b": "y"}], Settings(columns)).digest


def test_a_named_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"no column 'inputs' \(for input\); it has .*`columns: {input: input}`"):
        first({"instruction": "Q", "input": "x", "output": "A"}, Settings({"input": "inputs"}))


def test_every_kind_of_file_gives_the_same_conversations(tmp_path: Path) -> None:
    rows = [talk(("user", f"Q{n} é"), ("assistant", "A\n🙂")) for n in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    made = [InstructionRows(path, PLAIN) for path in sorted(tmp_path.iterdir())]
    assert len(made) == 4
    assert len({made.digest for made in made}) == 1
    assert len({tuple(made.conversation(i) for i in range(3)) for made in made}) == 1


def test_digests_name_the_row_that_changed() -> None:
    rows = [{"prompt": f"Q{n}", "completion": "A", "other": n} for n in range(4)]
    base = InstructionRows(rows, PLAIN)
    changed = InstructionRows([*rows[:2], {**rows[2], "completion": "B"}, rows[3]], PLAIN)
    assert np.flatnonzero(base.row_digests != changed.row_digests).tolist() == [2]
    assert base.digest != changed.digest
    assert base.digest == InstructionRows([{**row, "other": "x"} for row in rows], PLAIN).digest
    assert base.digest != InstructionRows(rows[::-1], PLAIN).digest
    assert base.rows([3, 1]) == [3, 1]
    assert base.locate(3) == "rows: row 4"


def test_digests_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "Q", "completion": "A"}\n', encoding="utf-8")
    (tmp_path / "cache").mkdir()
    made = InstructionRows(path, PLAIN)
    digest = made.digest
    made.keep_in(tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()

    swapped = Settings({"prompt": "completion", "completion": "prompt"})

    def fails(*_: Any) -> Any:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "conversation", fails)
        assert InstructionRows(path, PLAIN, tmp_path / "cache").digest == digest
        with pytest.raises(AssertionError, match="read again"):
            _ = InstructionRows(path, swapped, tmp_path / "cache").digest
    kept.write_bytes(kept.read_bytes()[:-1])
    assert InstructionRows(path, PLAIN, tmp_path / "cache").digest == digest
    path.write_text('{"prompt": "Q", "completion": ""}\n', encoding="utf-8")
    with pytest.raises(DataError, match="empty answer"):
        _ = InstructionRows(path, PLAIN, tmp_path / "cache").digest


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Q"},
        {"instruction": "Q", "output": ""},
        {"instruction": "Q", "output": {"label": []}},
        {"id": "x", "task": "NER", "instruction": "Q", "label": "A"},
        {"prompt": "Q"},
        {"prompt": [{"role": "user", "content": "Q"}]},
        talk(("user", "Q")),
        talk(("user", "Q"), ("assistant", "A")),
    ],
)
def test_rows_that_only_ask(row: Row) -> None:
    table = read_rows([row])
    reading = Reading.of(table, Settings(system_prompt="S"), answered=False)
    assert reading.prompt(table, 0) == said(("system", "S"), ("user", "Q"))


def test_rows_that_only_ask_with_named_columns() -> None:
    table = read_rows([{"q": "Q"}])
    reading = Reading.of(table, Settings({"prompt": "q", "completion": "a"}), answered=False)
    assert reading.prompt(table, 0) == said(("user", "Q"))
    with pytest.raises(DataError, match="no column 'a'"):
        Reading.of(table, Settings({"prompt": "q", "completion": "a"}))


@pytest.mark.parametrize("row", [talk(("system", "S")), {"prompt": ""}, {"instruction": 3}])
def test_rows_that_ask_nothing(row: Row) -> None:
    table = read_rows([row])
    with pytest.raises(DataError, match="rows: row 1, column"):
        Reading.of(table, PLAIN, answered=False).prompt(table, 0)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(anything)
def test_no_cell_is_anything_but_messages_or_one_fault(cell: Any) -> None:
    try:
        messages = read_messages(cell)
    except BadMessagesError as fault:
        line = str(fault)
    else:
        line = "fine"
        assert all(message.role in {"system", "user", "assistant"} for message in messages)
        assert all(message.content.strip() for message in messages)
    assert line
    assert "\n" not in line


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4), st.booleans())
def test_messages_are_read_as_they_were_written(turns: list[tuple[str, str]], sharegpt: bool) -> None:
    turns = [(asked or "?", answer) for asked, answer in turns if asked.strip() and answer.strip()]
    if not turns:
        return
    names = ("from", "value", "human", "gpt") if sharegpt else ("role", "content", "user", "assistant")
    role, content, user, assistant = names
    cell = [item for q, a in turns for item in ({role: user, content: q}, {role: assistant, content: a})]
    expected = tuple(m for q, a in turns for m in said(("user", q), ("assistant", a)))
    assert read_messages(cell) == read_messages(json.dumps(cell)) == expected


@given(anything, anything)
def test_no_row_of_texts_is_anything_but_a_conversation_or_one_line(asked: Any, answer: Any) -> None:
    try:
        conversation = first({"prompt": asked, "completion": answer})
    except DataError as failure:
        line = str(failure)
    else:
        line = "rows: row 1, column 'fine'"
        assert [message.role for message in conversation[-2:]] == ["user", "assistant"]
    assert line.startswith("rows: row 1, column '")
    assert "\n" not in line


def test_rows_are_not_kept_twice() -> None:
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(5000)]
    made = InstructionRows(rows, PLAIN)
    _ = made.table
    tracemalloc.start()
    _ = made.digest
    for example in range(5000):
        made.conversation(example)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 5000 * 24, "8 bytes a row for its digest, and no conversation"
