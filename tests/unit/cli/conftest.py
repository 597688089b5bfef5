"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny import make_model_folder
from tests.unit.cli.bad_input import Desk


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, tiny_model, capfd)
