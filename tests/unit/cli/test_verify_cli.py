"""`unbroken verify` and `unbroken diff`: what is printed where, exit codes, and every way to ask for it wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.exact.runs import train
from tests.exact.test_verify import change_record
from tests.tiny import make_rows
from tests.unit.cli.bad_input import CONFIG, Desk, assert_one_line, listing
from torch import nn, optim

from unbroken import Loop
from unbroken.cli.main import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Four steps with a checkpoint after each."""
    root = tmp_path_factory.mktemp("finished")
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(20)), encoding="utf-8")
    changes = {"model": str(tiny_model), "train_data": str(root / "train.jsonl"), "save_steps": 1}
    assert train({**CONFIG, **changes, "save_total_limit": 9}, root / "a").finished
    return root / "a"


@pytest.fixture
def runs(desk: Desk, finished: Path) -> Desk:
    """A desk with that run twice."""
    for name in "ab":
        shutil.copytree(finished, desk.root / "runs" / name)
    return desk


WRONG = {
    "verify": (2, "verify: RUN is missing; see `unbroken verify --help`"),
    "verify nowhere": (2, "there is no nowhere; give the folder of a run"),
    "verify runs/c": (2, "there is no runs/c…"),
    "verify runs": (2, "runs is no run (it has no run.json); give the folder of a run"),
    "verify runs/a@two": (2, "runs/a@two: 'two' is no number of steps; write it as runs/a@500"),
    "verify runs/a --steps 0": (2, "--steps 0: no step would be made again; give 1 or more"),
    "verify runs/a --steps some": (
        2,
        'verify: Invalid value for --steps: unable to convert "some" into int; see `unbroken verify --help`',
    ),
    "verify runs/a --all --steps 3": (
        2,
        "--all makes every recorded step again; leave out the step and --steps, or --all",
    ),
    "verify runs/a@2 --all": (2, "--all makes every recorded step again; leave out the step and --steps, or --all"),
    "verify runs/a --set model": (2, "--set model: there is no key=value; write it as --set batch_size=64"),
    "verify runs/a --set seed=3": (
        2,
        "seed cannot be set here: a run is verified with what it recorded; "
        "only where inputs are now can be said: model, train_data, eval_data, teacher",
    ),
    "diff runs/a": (2, "diff: SECOND is missing; see `unbroken diff --help`"),
    "diff runs/a runs/c": (2, "there is no runs/c…"),
    "diff runs/a@9 runs/b": (4, "runs/a has no checkpoint of step 9; there are: 1, 2, 3, 4"),
    "diff runs/a runs/b@x": (2, "runs/b@x: 'x' is no number of steps; write it as runs/b@500"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_asked_for_wrongly(typed: str, runs: Desk) -> None:
    code, line = WRONG[typed]
    runs.refuses(code, line, *typed.split())


def said(desk: Desk, *arguments: str, code: int = 0) -> tuple[str, str]:
    before = listing(desk.root)
    desk.capfd.readouterr()
    assert run(arguments) == code
    out, err = desk.capfd.readouterr()
    assert listing(desk.root) == before, "something was written"
    assert "\x1b" not in out + err
    return out, err


def last_line(err: str) -> str:
    return err.splitlines(keepends=True)[-1]


def test_an_honest_run(runs: Desk) -> None:
    out, err = said(runs, "verify", "runs/a")
    assert "4 of 4 verify" in out
    assert "step 2 from checkpoint 1 (from the oldest checkpoint to the next one): 1 step identical to the bit" in out
    assert "steps 1, 3 to 4 were not replayed" in out
    assert out.splitlines()[-1].startswith("verdict: 4 checkpoints and the journal hold what was written; ")
    assert "replaying step 2" in err
    whole, _ = said(runs, "verify", "runs/a", "--all")
    assert "steps 1 to 4 from the base model (all that is recorded): 4 steps identical to the bit" in whole
    assert "not checked" not in whole
    found = json.loads(said(runs, "verify", "runs/a/checkpoints/00000002", "--steps", "1", "--json")[0])
    expected = {"verified": True, "checkpoints_good": [1, 2, 3, 4], "replayed_first": 3, "replayed_last": 3}
    expected |= {"identical_steps": 1, "checkpoints_compared": [3], "first_difference": None, "data": "as recorded"}
    assert {key: found[key] for key in expected} == expected


def test_a_difference_is_one_line_and_code_5(runs: Desk) -> None:
    change_record(runs.root / "runs" / "a", "step", 2, loss=1.5)
    out, err = said(runs, "verify", "runs/a", code=5)
    assert "verdict: something is not as recorded" in out
    assert "step 2 does not repeat: loss was 1.5, is now " in out
    assert_one_line("the records before checkpoint 2 are not those it was committed with…", last_line(err))
    found = json.loads(said(runs, "verify", "runs/a", "--json", code=5)[0])
    assert (found["verified"], found["first_difference_step"], found["first_difference_in"]) == (
        False,
        2,
        "journal.jsonl",
    )


def test_inputs_that_moved(runs: Desk, finished: Path) -> None:
    moved = runs.root / "elsewhere.jsonl"
    shutil.move(finished.parent / "train.jsonl", moved)
    try:
        out, err = said(runs, "verify", "runs/a", code=4)
        assert "verdict: nothing was replayed" in out
        assert_one_line("runs/a was not replayed: …", last_line(err))
        said(runs, "verify", "runs/a", "--set", "train_data=elsewhere.jsonl")
    finally:
        shutil.move(moved, finished.parent / "train.jsonl")


def test_rows_that_were_in_memory(runs: Desk, tiny_model: Path) -> None:
    root = runs.root / "runs" / "c"
    train({**CONFIG, "model": str(tiny_model), "train_data": runs.rows}, root)
    _, err = said(runs, "verify", "runs/c", code=4)
    assert_one_line(
        "runs/c was not replayed: train_data: the run was started from Python with 20 rows in memory; …", last_line(err)
    )
    said(runs, "verify", "runs/c", "--set", "train_data=train.jsonl")


def test_a_loop_has_its_digests_compared(runs: Desk) -> None:
    root = runs.root / "runs" / "loop"
    module = nn.Linear(4, 2)
    optimizer = optim.SGD(module.parameters(), lr=0.1)
    rows: list[Any] = [np.full(4, i, dtype=np.float32) for i in range(12)]
    loop = Loop(root, modules={"linear": module}, optimizer=optimizer, data=rows, batch_size=4, max_steps=3, threads=1)
    for batch in loop.batches():
        loop.step(module(torch.from_numpy(np.stack(batch))).square().mean())
    out, _ = said(runs, "verify", "runs/loop")
    assert "no step was replayed: the steps of a Loop are your own code" in out
    _, err = said(runs, "verify", "runs/loop", "--all", code=4)
    assert_one_line("runs/loop cannot be replayed here: the steps of a Loop are your own code; …", err)
    weights = min((root / "checkpoints" / "00000003").rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "checkpoint 3 does not verify" in said(runs, "verify", "runs/loop", code=5)[1]


def test_diff(runs: Desk) -> None:
    out, err = said(runs, "diff", "runs/a", "runs/b")
    assert err == ""
    assert "configuration and inputs: the same" in out
    assert "steps: 4 are on record in both, identical to the bit" in out
    assert out.splitlines()[-1] == "everything that both hold, and that matters, is identical to the bit"
    change_record(runs.root / "runs" / "b", "step", 3, grad_norm=2.5)
    out, err = said(runs, "diff", "runs/a", "runs/b", code=5)
    assert err == "", "the question was answered"
    assert "steps: 2 equal steps, then step 3 differs in grad_norm" in out
    found = json.loads(said(runs, "diff", "runs/a", "runs/b", "--json", code=5)[0])
    expected = {"same": False, "equal_steps": 2, "first_differing_step": 3, "step.second.grad_norm": 2.5}
    assert {key: found[key] for key in expected} == expected
    out, _ = said(runs, "diff", "runs/a@2", "runs/a@3", code=5)
    assert "tensors of checkpoints 2 and 3: 0 of " in out
    assert "elements differ, by up to " in out


@pytest.mark.parametrize("verb", ["verify", "diff"])
def test_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert f"unbroken {verb} runs/debian" in capsys.readouterr().out
