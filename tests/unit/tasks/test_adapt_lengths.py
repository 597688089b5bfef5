"""What a limit of tokens does to examples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.chat_examples import PLAIN
from tests.tiny_chat import make_chat_folder

from unbroken.models.chat import ChatFormat
from unbroken.tasks.adapt.instructions import InstructionRows
from unbroken.tasks.adapt.lengths import measure


@dataclass(frozen=True)
class Settings:
    columns: dict[str, str]
    system_prompt: str = ""


def test_how_many_examples_are_cut_and_how_many_keep_nothing_to_learn(tmp_path: Path) -> None:
    form = ChatFormat.of(make_chat_folder(tmp_path / "m", PLAIN))
    asked = ["Q", "Q", "Q " * 60]
    answers = ["yes", "no " * 60, "yes"]
    source = [{"prompt": q, "completion": a} for q, a in zip(asked, answers, strict=True)]
    rows = InstructionRows(source, Settings({}))
    unlimited = measure(rows, partial(form.encode, loss_on="answers", max_length=None))
    assert unlimited.cut.tolist() == unlimited.unanswered.tolist() == []
    assert unlimited.kept.tolist() == unlimited.whole.tolist()
    limit = int(unlimited.whole[0])
    lengths = measure(rows, partial(form.encode, loss_on="answers", max_length=limit))
    assert lengths.cut.tolist() == [1, 2]
    assert lengths.unanswered.tolist() == [2]
    assert lengths.whole.tolist() == unlimited.whole.tolist()
    assert lengths.kept.tolist() == [limit] * 3
    assert lengths.targets[0] == unlimited.targets[0]
    some = measure(rows, partial(form.encode, loss_on="answers", max_length=limit), examples=[2, 0])
    assert some.examples.tolist() == [2, 0]
    assert some.cut.tolist() == some.unanswered.tolist() == [2]
