"""What a journal tells, read by someone who does not hold the run; and which steps may be made again from where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unbroken.base.errors import CannotContinueError, StorageError
from unbroken.run.evidence import Evidence, Stretch, read_evidence, spans
from unbroken.run.verify import Window, choose_windows
from unbroken.store.journal import START, Mark, advance, encode_record


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {"kind": "step", "n": number, "ids": "a", "loss": loss, "grad_norm": 1.0, "learning_rate": 0.1}


def segment(number: int, at: int, cpu: str = "one") -> dict[str, Any]:
    return {"kind": "segment", "segment": number, "step": at, "environment": {"cpu": cpu}}


def evidence_of(tmp_path: Path, records: list[dict[str, Any]]) -> Evidence:
    (tmp_path / "journal.jsonl").write_bytes(b"".join(map(encode_record, records)))
    return read_evidence(tmp_path)


def steps(first: int, last: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [step(number, loss) for number in range(first, last + 1)]


def test_the_records_that_stand(tmp_path: Path) -> None:
    drift = {"kind": "drift", "n": 4, "text": "differs"}
    records = [segment(1, 0), *steps(1, 6), segment(2, 2, "two"), drift, *steps(4, 7, loss=2.0)]
    found = evidence_of(tmp_path, records)
    assert {number: record["loss"] for number, record in found.steps.items()} == {
        **dict.fromkeys((1, 2, 3), 1.0),
        **dict.fromkeys((4, 5, 6, 7), 2.0),
    }
    assert (found.drifts, found.missing, found.last) == ([4], [], 7)
    assert found.stretches == [Stretch(1, 3), Stretch(4, 7)]
    assert found.environment(3) == {"cpu": "one"}
    assert found.environment(4) == {"cpu": "two"}
    assert found.environment(8) is None
    assert found.num_records == len(records)


def test_an_earlier_drift_takes_a_later_one_back(tmp_path: Path) -> None:
    drifts = [{"kind": "drift", "n": n, "text": ""} for n in (6, 3)]
    records = [*steps(1, 7), drifts[0], *steps(6, 8, 2.0), drifts[1], *steps(3, 4, 3.0)]
    found = evidence_of(tmp_path, records)
    assert found.drifts == [3]
    assert found.stretches == [Stretch(1, 2), Stretch(3, 4)]


def test_marks_are_proved_up_to_the_first_damage(tmp_path: Path) -> None:
    records = [segment(1, 0), *steps(1, 5)]
    marks = [START]
    for record in records:
        marks.append(advance(marks[-1], encode_record(record)))
    found = evidence_of(tmp_path, records)
    assert all(map(found.proves, marks))
    assert not found.proves(Mark(marks[3].offset, marks[2].chain))
    assert not found.proves(Mark(marks[3].offset + 1, marks[3].chain))
    journal = tmp_path / "journal.jsonl"
    content = bytearray(journal.read_bytes())
    content[marks[3].offset + 5] ^= 1
    journal.write_bytes(content)
    damaged = read_evidence(tmp_path)
    assert [damaged.proves(mark) for mark in marks] == [True] * 4 + [False] * 3
    assert damaged.missing == [3]
    assert len(damaged.damaged) == 1


def test_two_records_of_one_step(tmp_path: Path) -> None:
    assert evidence_of(tmp_path, [*steps(1, 3), step(2)]).contradictions == []
    assert evidence_of(tmp_path, [*steps(1, 3), step(2, loss=9.0)]).contradictions == [2]


def test_a_record_that_lacks_what_it_tells_is_damage(tmp_path: Path) -> None:
    found = evidence_of(tmp_path, [*steps(1, 2), {"kind": "step"}, {"kind": "drift", "n": "x"}])
    assert len(found.damaged) == 2
    assert list(found.steps) == [1, 2]


def test_no_journal(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        read_evidence(tmp_path)


def test_steps_in_words() -> None:
    assert spans([]) == ""
    assert spans([1, 2, 3, 5, 7, 8]) == "1 to 3, 5, 7 to 8"


CANARY = {"kind": "canary", "n": 31, "loss": 1.0, "grad_norm": 1.0}
HONEST = [segment(1, 0), *steps(1, 30)]
DRIFTED = [*HONEST, {"kind": "drift", "n": 12, "text": ""}, *steps(12, 30)]
FORKED = [{"kind": "fork", "n": 10}, segment(1, 10), *steps(11, 30)]


@pytest.mark.parametrize(
    ("records", "sound", "asked", "windows"),
    [
        (HONEST, [10, 20, 30], {}, [(10, 20)]),
        (HONEST, [10, 30], {}, [(10, 30)]),
        (HONEST, [5, 30], {}, [(5, 30)]),
        (HONEST, [30], {}, [(0, 20)]),
        (HONEST, [], {"steps": 100}, [(0, 30)]),
        (HONEST, [10, 20], {"step": 20}, [(20, 30)]),
        (HONEST, [10, 20], {"step": 15}, [(10, 20)]),
        (HONEST, [10, 20], {"step": 15, "steps": 2}, [(10, 17)]),
        (HONEST, [10, 20], {"everything": True}, [(0, 30)]),
        ([*HONEST, CANARY], [30], {}, [(30, 30)]),
        ([*HONEST, CANARY], [20, 30], {"step": 30}, [(30, 30)]),
        (DRIFTED, [10, 20, 30], {}, [(10, 11)]),
        (DRIFTED, [10, 20, 30], {"everything": True}, [(0, 11), (20, 30)]),
        (DRIFTED, [11, 20, 30], {}, [(20, 30)]),
        (DRIFTED, [10, 20, 30], {"step": 25}, [(20, 30)]),
        (FORKED, [10, 20, 30], {"everything": True}, [(10, 30)]),
        (FORKED, [20, 30], {"everything": True}, [(20, 30)]),
    ],
)
def test_the_steps_that_are_made_again(
    records: list[dict[str, Any]],
    sound: list[int],
    asked: dict[str, Any],
    windows: list[tuple[int, int]],
    tmp_path: Path,
) -> None:
    options = {"step": None, "steps": None, "everything": False} | asked
    found = choose_windows(evidence_of(tmp_path, records), sound, **options)
    assert [(window.start, window.last) for window in found] == windows
    assert all(isinstance(window, Window) and window.chosen for window in found)


@pytest.mark.parametrize(
    ("records", "sound", "asked", "line"),
    [
        (HONEST, [30], {"step": 30}, "nothing is recorded after step 30; records end at step 30; try @29"),
        (HONEST, [30], {"step": 99}, "nothing is recorded after step 99"),
        (DRIFTED, [10, 20], {"step": 13}, "no state from which step 14 could be made again is there; .* 0, 10, 20"),
        (DRIFTED, [11], {"step": 11}, "no state from which step 12 could"),
        (FORKED, [20], {"step": 15}, "no state from which step 16 could be made again is there; steps with one: 20"),
        (FORKED, [30], {}, "there is nothing to replay"),
        ([], [], {}, "there is nothing to replay"),
    ],
)
def test_what_cannot_be_made_again(
    records: list[dict[str, Any]], sound: list[int], asked: dict[str, Any], line: str, tmp_path: Path
) -> None:
    options = {"step": None, "steps": None, "everything": False} | asked
    with pytest.raises(CannotContinueError, match=line):
        choose_windows(evidence_of(tmp_path, records), sound, **options)
