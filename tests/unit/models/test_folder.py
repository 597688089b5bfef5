from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny import make_model_folder
from unbroken.base.errors import ConfigError
from unbroken.models.folder import MODULE_HOMES, read_folder, resolve


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model_folder(tmp_path / "model")


def test_parts_settings_and_documents_are_read(folder: Path) -> None:
    settings = {"prompts": {"query": "q: ", "none": None}, "default_prompt_name": "query", "truncate_dim": 8}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text("# the base model's card")
    read = read_folder(folder)
    assert [part.kind for part in read.parts] == ["Transformer", "Pooling", "Normalize"]
    assert read.settings.prompts == {"query": "q: ", "none": ""}
    assert (read.settings.default_prompt_name, read.settings.truncate_dim) == ("query", 8)
    assert "README.md" not in read.documents
    assert "model.safetensors" not in read.documents
    assert all(content == (folder / path).read_bytes() for path, content in read.documents.items())


@pytest.mark.parametrize(("place", "kind"), list(enumerate(["Transformer", "Pooling", "Normalize"])))
def test_every_known_type_string_is_understood(folder: Path, place: int, kind: str) -> None:
    modules = json.loads((folder / "modules.json").read_bytes())
    for home in MODULE_HOMES[kind]:
        modules[place]["type"] = f"{home}.{kind}"
        (folder / "modules.json").write_text(json.dumps(modules))
        assert read_folder(folder).parts[place].kind == kind


def test_an_unknown_module_is_refused_by_name(folder: Path) -> None:
    edit(folder / "modules.json", lambda modules: modules[2].update(type="sentence_transformers.models.LSTM"))
    with pytest.raises(ConfigError, match=r"'sentence_transformers\.models\.LSTM' is not supported; supported are"):
        read_folder(folder)


def test_modules_must_make_an_encoder(folder: Path) -> None:
    edit(folder / "modules.json", lambda modules: modules.pop(1))
    with pytest.raises(ConfigError, match=r"Transformer \+ Normalize do not make a text encoder"):
        read_folder(folder)


def test_a_path_out_of_the_folder_is_refused(folder: Path) -> None:
    edit(folder / "modules.json", lambda modules: modules[1].update(path="../elsewhere"))
    with pytest.raises(ConfigError, match="leads out of the model folder"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["modules.json", "config.json", "1_Pooling/config.json"])
def test_damaged_json_is_one_line_with_the_file(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    with pytest.raises(ConfigError, match=f"{name} is damaged") as caught:
        read_folder(folder)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"1_Pooling/config\.json is missing"):
        read_folder(folder)
    with pytest.raises(ConfigError, match="no model folder at"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"neither modules\.json nor config\.json"):
        read_folder(tmp_path / "empty")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
        ({"modality_config": {"message": {}}}, "chat template"),
        ({"query_expansion": {"length": 8}}, "'query_expansion' is not supported"),
    ],
)
def test_settings_that_change_a_text_are_refused(folder: Path, values: dict[str, Any], complaint: str) -> None:
    edit(folder / "sentence_bert_config.json", lambda config: config.update(values))
    with pytest.raises(ConfigError, match=complaint):
        read_folder(folder)


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [("BertModel", "mean_tokens"), ("BertForMaskedLM", "mean_tokens"), ("XForCausalLM", "lasttoken")],
)
def test_a_plain_model_gets_the_pooling_sentence_transformers_would_give(
    folder: Path, architecture: str, mode: str
) -> None:
    (folder / "modules.json").unlink()
    edit(folder / "config.json", lambda config: config.update(architectures=[architecture]))
    read = read_folder(folder)
    assert read.parts[1].config[f"pooling_mode_{mode}"] is True
    assert len(read.notes) == 1
    assert json.loads(read.documents["modules.json"])[0]["type"] == "sentence_transformers.models.Transformer"


def test_a_name_that_is_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="no model of that name could be had from the hub"):
        resolve("nobody/no-such-model")
    assert resolve("./not/there") == Path("not/there")


def test_other_files_are_fetched_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.append(allow_patterns) or str(tmp_path),
    )
    assert resolve("somebody/model") == resolve("somebody/model", "head.pkl") == tmp_path
    assert "head.pkl" not in asked[0]
    assert asked[1] == [*asked[0], "head.pkl"]
