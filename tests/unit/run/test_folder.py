"""What a process that was killed leaves in a run's folder, and letting go of the run whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from unbroken.run.folder import RunFolder
from unbroken.store.run import is_run


def create(root: Path) -> RunFolder:
    return RunFolder.create(root, {"seed": 1}, config={"seed": 1}, keep=2)


def test_what_a_killed_process_was_writing_is_swept(tmp_path: Path) -> None:
    root = tmp_path / "run"
    create(root).close()
    for folder in ("", "eval", "cache", "model"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / ".tmp-config.yaml-0123").write_text("half")
    (root / "cache" / ".tmp-tokens-ab-77").mkdir()
    (root / "cache" / "tokens-cd").mkdir()
    RunFolder.open(root, keep=2).close()
    left = sorted(str(path.relative_to(root)) for path in root.rglob(".tmp-*"))
    assert left == ["model/.tmp-config.yaml-0123"], "what is published is swept when it is published"
    assert (root / "cache" / "tokens-cd").is_dir()


def test_a_run_is_let_go_of_whatever_a_commit_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = create(tmp_path / "run")

    def raising() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(folder.checkpoints, "wait", raising)
    with pytest.raises(RuntimeError, match="a defect"):
        folder.close()
    assert is_run(tmp_path / "run")
    RunFolder.open(tmp_path / "run", keep=2).close()
