"""Commands typed wrong, warnings, and how soon a mistake is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from tests.unit.cli.bad_input import COMMAND, Desk, assert_one_line

from unbroken.cli.main import run
from unbroken.cli.output import notices
from unbroken.tasks.embed.config import METRICS, EmbedConfig
from unbroken.tasks.embed.data import EmbedData
from unbroken.tasks.embed.evaluation import Evaluation

HEAVY = ("torch", "transformers", "tokenizers", "sklearn", "scipy", "pyarrow", "peft", "datasets")

# What is typed after `unbroken`, and the line that must come.
TYPED = {
    "trian c.yaml": "there is no command 'trian'; did you mean 'train'?; see `unbroken --help`",
    "frobnicate": "there is no command 'frobnicate'; see `unbroken --help`",
    "train": "train: CONFIG is missing; see `unbroken train --help`",
    "train c.yaml more": "train: 'more' is one argument too many; see `unbroken train --help`",
    "train c.yaml --batch_size 5": "train: Unknown option: --batch_size; see `unbroken train --help`",
    "train c.yaml --resume_from_chekpoint True": (
        "train: Unknown option: --resume_from_chekpoint. Did you mean --resume_from_checkpoint?; "
        "see `unbroken train --help`"
    ),
    "train c.yaml --set": "train: --set needs a value; see `unbroken train --help`",
    "train c.yaml --set batch_size": "--set batch_size: there is no key=value; write it as --set batch_size=64",
    "train c.yaml --set batchsize=5": "--set: unknown key 'batchsize'; did you mean 'batch_size'?",
    "train c.yaml --set batch_size=five": (
        "--set: batch_size: 'five' is not valid; it should be a whole number (examples per step); correct it"
    ),
    "train c.yaml --set seed=1 --set seed.x=2": "--set seed.x=2: 'seed' was set to a single value; leave out one",
    "train c.yaml --set columns=[": "--set columns, line 1: …",
    "train d.yaml": "no configuration file at d.yaml; did you mean 'c.yaml'?",
    "train nowhere/at/all": "no configuration file at nowhere/at/all; give a YAML file, or the folder of a run",
    "train folder": "folder is no run (it has no run.json); give a configuration file",
    "train train.jsonl": "train.jsonl, line 2: …",
    "train model/model.safetensors": "model/model.safetensors is not text in UTF-8; give a YAML file, …",
    "schema embd": "task: 'embd' is not known; did you mean 'embed'?",
    "encode model": "encode: TEXTS is missing; see `unbroken encode --help`",
    "encode model train.jsonl": "encode: --output is missing; see `unbroken encode --help`",
    "encode ./nowhere train.jsonl -o x.npy": "no model folder at nowhere, …",
    "encode model train.jsonl -o nowhere/x.npy": (
        "--output nowhere/x.npy cannot be written: there is no folder nowhere; "
        "give the path of a .npy file in a folder that exists"
    ),
    "encode model train.jsonl -o folder": "--output folder is a folder; give the path of a .npy file …",
    "evaluate model": "no rows to measure model on; give a file: unbroken evaluate MODEL FILE",
    "evaluate model eval.jsonl --columns anchor": (
        "--columns anchor: there is no role=column; write it as anchor=question"
    ),
    "evaluate model eval.jsonl --columns query=anchor": "loss 'multiple_negatives_ranking' reads …",
    "evaluate model eval.jsonl --loss tripplet": "loss: 'tripplet' is not valid; …did you mean 'triplet'?",
    "evaluate folder eval.jsonl": "folder …",
}
ABOUT_ROWS = {
    "encode model train.jsonl -o x.npy": "train.jsonl: there is no column 'text'; the columns are …",
    "encode model nowhere.txt -o x.npy": "nowhere.txt cannot be read: No such file or directory; …",
    "encode model empty.txt -o x.npy": "empty.txt is empty: it has no line; give a file with one text a line",
    "evaluate model nowhere.jsonl": "no file nowhere.jsonl; …",
    "evaluate model eval.jsonl --columns anchor=question": "eval.jsonl has no column 'question' (for anchor); …",
}


@pytest.mark.parametrize("typed", TYPED)
def test_typed_wrong(typed: str, desk: Desk) -> None:
    (desk.root / "folder").mkdir()
    desk.refuses(2, TYPED[typed], *typed.split())


@pytest.mark.parametrize("typed", ABOUT_ROWS)
def test_rows_named_wrong(typed: str, desk: Desk) -> None:
    desk.place({"empty.txt": b""})
    desk.refuses(3, ABOUT_ROWS[typed], *typed.split())


@pytest.mark.parametrize(("key", "value"), [("batchsize", 4), ("batch_size", -4), ("train_data", "trian.jsonl")])
def test_a_mistake_is_found_before_anything_heavy_is_imported(key: str, value: object, desk: Desk) -> None:
    """Torch alone takes two seconds."""
    desk.configure(**{key: value})
    script = (
        "import sys; from unbroken.cli.main import run; code = run(['train', 'c.yaml']); "
        f"print(code, *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout.split() == ["3" if key == "train_data" else "2"]


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["train", "c.yaml"], 2, "c.yaml: unknown key 'batchsize'; did you mean 'batch_size'?"),
        (["train", "--cofnig", "c.yaml"], 2, "train: Unknown option: --cofnig. Did you mean --config?…"),
        (["evaluate", "model", "trian.jsonl"], 3, "no file trian.jsonl; did you mean 'train.jsonl'?"),
    ],
)
def test_as_a_process(arguments: list[str], code: int, line: str, desk: Desk) -> None:
    desk.configure(batchsize=3)
    outcome = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert_one_line(line, outcome.stderr)
    assert (outcome.returncode, outcome.stdout) == (code, "")


def test_debug_gives_the_traceback(desk: Desk) -> None:
    desk.configure(batchsize=3)
    outcome = subprocess.run([*COMMAND, "train", "c.yaml", "--debug"], capture_output=True, text=True)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("Traceback")


def test_a_note_about_a_model_is_one_line(desk: Desk, tiny_model: Path) -> None:
    """A folder without pooling: something was chosen for the user, who is told once, without lines of our source."""
    shutil.copytree(tiny_model, desk.root / "plain")
    (desk.root / "plain" / "modules.json").unlink()
    note = "plain is a plain Hugging Face model: its token vectors are pooled by mean"
    desk.configure(model="plain")
    for command in (["evaluate", "plain", "eval.jsonl"], ["train", "c.yaml"]):
        outcome = subprocess.run([*COMMAND, *command], capture_output=True, text=True, check=True)
        lines = outcome.stderr.splitlines()
        assert [line.removeprefix("unbroken: ") for line in lines if "plain" in line] == [note]
        assert "Warning" not in outcome.stderr
        assert "warn(" not in outcome.stderr


def test_warnings_are_said_once_and_in_one_line() -> None:
    said: list[str] = []
    before = warnings.showwarning
    with notices(said.append):
        for _ in range(2):
            warnings.warn("something\n  odd", UserWarning, stacklevel=1)
            warnings.warn("for programmers", DeprecationWarning, stacklevel=1)
    assert said == ["something odd"]
    assert warnings.showwarning is before


@pytest.mark.parametrize("loss", METRICS)
def test_the_metrics_known_beforehand_are_those_measured(loss: str, desk: Desk) -> None:
    class AnyEncoder:
        def encode(self, texts: list[str], prompt: str = "") -> np.ndarray:
            return np.random.default_rng(0).normal(size=(len(texts), 4)).astype(np.float32)

    config = EmbedConfig.from_values({"model": "m", "output_dir": "o", "train_data": "eval.jsonl", "loss": loss})
    measured = Evaluation(EmbedData("eval.jsonl", config), config).measure(AnyEncoder())  # type: ignore[arg-type]
    assert set(measured) == set(METRICS[loss])  # type: ignore[index]


def test_a_command_without_a_mistake(desk: Desk) -> None:
    assert run(["train", "c.yaml"]) == 0
    assert desk.capfd.readouterr().out == "runs/a/model\n"
    assert run(["train", "c.yaml"]) == 0, "finished runs say so"
