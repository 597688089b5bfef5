"""`unbroken show`: each kind of folder as text and as JSON, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.exact.runs import train
from tests.tiny import make_rows

from unbroken.cli.main import run


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("show") / "runs"
    values = {"task": "embed", "model": str(tiny_model), "batch_size": 4, "threads": 1, "max_steps": 4}
    data = root.parent / "rows.json"
    data.write_text(json.dumps(make_rows(12)), encoding="utf-8")
    values |= {"train_data": str(data), "eval_data": str(data)}
    train(values, root / "stopped", stop_after=2)
    train(values, root / "finished", stop_after=2)
    train(values, root / "finished")
    return root


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run(["show", *arguments]) == code
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    return out if code == 0 else err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found = json.loads(shown(capsys, *arguments, "--json"))
    assert isinstance(found, dict)
    return found


def test_a_list(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    heading, first, second = shown(capsys, str(runs)).splitlines()
    assert heading.split()[:4] == ["name", "task", "state", "step"]
    assert first.split()[:6] == ["finished", "embed", "finished", "4", "of", "4"]
    assert second.split()[:6] == ["stopped", "embed", "stopped", "2", "of", "4"]
    monkeypatch.chdir(runs.parent)
    assert shown(capsys).splitlines()[0] == heading
    listed = as_json(capsys)["runs"]
    assert [(one["name"], one["state"], one["metric"]) for one in listed] == [
        ("finished", "finished", "ndcg@10"),
        ("stopped", "stopped", "ndcg@10"),
    ]


def test_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, str(runs / "finished"))
    assert "finished: step 4 of 4" in text
    assert "safe up to step 4" in text
    assert "stopped: the test" in text
    assert "loss before" in text
    assert "proof: " in text
    assert "identical to the bit" in text
    assert "to go on" not in text
    assert f"to go on: unbroken train {runs / 'stopped'}" in shown(capsys, str(runs / "stopped"))
    values = as_json(capsys, str(runs / "finished"))
    assert values["config.batch_size"] == 4
    assert [one["ended"] for one in values["segments"]] == ["stopped: the test", "finished"]
    assert shown(capsys, str(runs / "finished" / "checkpoints")) == text.replace(
        str(runs / "finished"), str((runs / "finished").resolve())
    )


def test_a_checkpoint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = runs / "stopped" / "checkpoints" / "00000002"
    text = shown(capsys, str(checkpoint))
    assert "verifies  yes" in text
    assert "SentenceTransformer(" in text
    values = as_json(capsys, str(checkpoint))
    assert values["checkpoint.step"] == 2
    assert values["tensors.of_the_modules"] > 0
    assert values["files.file.optimizer.safetensors.tensors"] == values["tensors.of_the_optimizer"]


def test_a_damaged_checkpoint(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints" / "00000002"
    folder.mkdir(parents=True)
    assert "MANIFEST.json" in shown(capsys, str(folder))
    (folder / "MANIFEST.json").write_bytes(b"{")
    assert "does not match its own digest" in shown(capsys, str(folder))
    assert as_json(capsys, str(folder))["checkpoint.verifies"] is False


def test_a_foreign_folder(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "sentence-transformers model" in shown(capsys, str(tiny_model))
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"PK")
    text = shown(capsys, str(tmp_path))
    assert "checkpoint-10" in text
    assert "optimizer.pt is cut or damaged" in text
    assert as_json(capsys, str(tmp_path))["folder.kind"] == "Hugging Face Trainer checkpoint"


def test_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run, no checkpoint and no model" in shown(capsys, str(tmp_path), code=2)
    (tmp_path / "debian").mkdir()
    assert f"did you mean {tmp_path / 'debian'}?" in shown(capsys, str(tmp_path / "debain"), code=2)
    (tmp_path / "file").touch()
    assert "is a file" in shown(capsys, str(tmp_path / "file"), code=2)


@pytest.mark.parametrize("verb", ["check", "show"])
def test_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert f"unbroken {verb} runs/debian" in capsys.readouterr().out
