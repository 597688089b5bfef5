"""A run of instruction tuning before it starts: keys that disagree, what is looked at, what of a model trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.exact.runs import train
from tests.tiny_causal import make_causal_folder, make_instructions, make_labelled

from unbroken.base.errors import ConfigError, DataError
from unbroken.models.causal_folder import adapter_values
from unbroken.models.chat import ChatFormat
from unbroken.plan.packing import Bins, fill_bins
from unbroken.run.digests import check_digests
from unbroken.run.verification import Verification
from unbroken.tasks.adapt.asking import Asking
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.encoding import keep_lengths, lengths_of
from unbroken.tasks.adapt.source import Base, find_base, model_bytes, trained_bytes
from unbroken.tasks.adapt.task import base_name, load_trained, prepare, read_rows
from unbroken.tasks.check import check
from unbroken.tasks.request import Request


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_folder(tmp_path_factory.mktemp("models") / "tiny")


def values(model: Path | str = "model", **changes: Any) -> dict[str, Any]:
    return {
        "task": "adapt",
        "model": str(model),
        "output_dir": "run",
        "train_data": make_instructions(6),
        "batch_size": 2,
        "threads": 1,
    } | changes


def config(model: Path | str = "model", **changes: Any) -> AdaptConfig:
    return AdaptConfig.from_values(values(model, **changes))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"packing": True}, "packing needs the size of a bin"),
        ({"quantization": "4bit", "tuning": "full"}, "which cannot be trained"),
        ({"quantization": "8bit", "device": "cpu"}, "quantization needs CUDA"),
        ({"extraction": {"kind": "ner"}, "columns": {"input": "text"}}, "extraction names its own"),
        ({"eval_data": "x.jsonl", "metric_for_best_model": "perplexty"}, "did you mean 'perplexity'"),
        ({"eval_data": "x.jsonl", "metric_for_best_model": "f1"}, "give one of loss, perplexity"),
        ({"lora": {"rank": 4}}, r"unknown key 'lora\.rank'; did you mean 'lora\.r'"),
        ({"lora_alpha": 4}, r"did you mean 'lora\.alpha'"),
        ({"lora": {"target_modules": []}}, "name at least one layer, or give all-linear"),
        ({"extraction": {"kind": "ner", "split_num": 4}}, r"unknown key 'extraction\.split_num'"),
        ({"cutoff_len": 512}, "did you mean 'max_length'"),
    ],
)
def test_keys_that_disagree_are_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(**change)


def test_defaults_hang_on_what_is_tuned_and_measured() -> None:
    assert config().learning_rate == 2e-4
    assert config(tuning="full").learning_rate == 2e-5
    assert config(tuning="full", learning_rate=1e-3).learning_rate == 1e-3
    assert (config().best_metric, config().greater_is_better) == ("loss", False)
    extracting = config(extraction={"kind": "ner"})
    assert (extracting.best_metric, extracting.greater_is_better) == ("f1", True)
    assert config(extraction={"kind": "ner"}, metric_for_best_model="loss").greater_is_better is False
    assert config(lora={"target_modules": ["v_proj", "q_proj", "v_proj"]}).lora.target_modules == ["q_proj", "v_proj"]


def test_the_same_meaning_is_the_same_contract() -> None:
    by_default = config(extraction={"kind": "ner"}).resolved_identity()
    spelt_out = config(extraction={"kind": "ner", "types_per_prompt": 50, "negatives": 1.0}).resolved_identity()
    assert by_default == spelt_out
    assert config(tuning="full").resolved_identity()["lora"] is None
    assert config(lora={"r": 4}).resolved_identity() != config(lora={"r": 8}).resolved_identity()


def test_what_trains_is_told_from_the_weights_shapes(model: Path) -> None:
    for asked in (config(model, device="cpu"), config(model, tuning="full", device="cpu")):
        trained = load_trained(asked, find_base(asked))
        numbers = sum(p.numel() for module in trained.modules.values() for p in module.parameters())
        assert trained_bytes(find_base(asked), asked) == 4 * numbers
    assert model_bytes(find_base(asked)) == trained_bytes(find_base(asked), asked)


def test_check_shows_what_would_be_trained_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    asked = values(
        model,
        output_dir=str(tmp_path / "run"),
        train_data=make_labelled(9),
        eval_data=make_labelled(9)[4:6],
        extraction={"kind": "ner"},
        max_length=240,
    )
    found = check(Request(asked), time_steps=True)
    assert not found.problems
    sections = {section.title: section for section in found.sections}
    assert sections["data"].values["types"] == "place, thing"
    assert "<|im_start|>assistant" in sections["data"].values["first_example"]
    assert 0 < sections["model"].values["trained_parameters"] < sections["model"].values["parameters"]
    assert sections["lengths"].values["tokens"]["cut_examples"] == 0
    assert sections["leakage"].values["rows_in_train_data"] == 2
    assert sections["memory"].values["frozen_weights_bytes"] == model_bytes(find_base(config(model)))
    assert sections["time"].values["tokens_per_second"] > 0
    assert not (tmp_path / "run").exists()


def test_an_answer_that_max_length_cuts_off_whole_is_refused_with_its_row(model: Path) -> None:
    with pytest.raises(DataError, match=r"row 1: max_length 8 keeps none of the answer"):
        prepare(config(model, max_length=8), None)


def test_a_run_goes_on_from_an_adapter_with_the_same_function(model: Path, tmp_path: Path) -> None:
    first = values(model, lora={"r": 4, "alpha": 8}, max_steps=2)
    train(first, tmp_path / "first")
    folder = tmp_path / "first" / "model"
    second = values(folder, lora={"r": 4, "alpha": 8}, max_steps=2)
    assert train(second, tmp_path / "second").finished
    assert adapter_values(tmp_path / "second" / "model")["base_model_name_or_path"] == str(model)
    with pytest.raises(ConfigError, match=r"lora\.alpha: 16.* is asked for, and the adapter .* was trained with 8"):
        train(values(folder, lora={"r": 4, "alpha": 16}), tmp_path / "third")
    with pytest.raises(ConfigError, match="is an adapter, and tuning: full trains a whole model"):
        train(values(folder, tuning="full"), tmp_path / "third")
    for made_with in ({"lora_bias": True}, {"init_lora_weights": "pissa_niter_4"}):
        other = tmp_path / next(iter(made_with))
        shutil.copytree(folder, other)
        config_file = other / "adapter_config.json"
        config_file.write_text(json.dumps(json.loads(config_file.read_bytes()) | made_with), encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"was made with {next(iter(made_with))}.*no key under `lora:`"):
            train(values(other, lora={"r": 4, "alpha": 8}), tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_row_that_makes_several_examples_has_one_digest(model: Path, tmp_path: Path) -> None:
    """Verified as it is; a file of another length is named, as is one of the right length with other bytes."""
    extraction = {"kind": "ner", "types_per_prompt": 1}
    train(values(model, train_data=make_labelled(8), extraction=extraction, max_steps=1), tmp_path / "run")
    file = tmp_path / "run" / "data.digests"
    whole = file.read_bytes()
    assert len(whole) == 8 * 8

    def told() -> list[str]:
        document = json.loads((tmp_path / "run" / "run.json").read_bytes())
        found = Verification("run", document["run_id"])
        check_digests(tmp_path / "run", document, found, lambda line: None)
        return [problem.what for problem in found.problems]

    assert told() == []
    for damaged in (whole[:-8], whole + whole[:8], bytes(8) + whole[8:]):
        file.write_bytes(damaged)
        assert any("data.digests has" in what for what in told())


def test_lengths_are_kept_by_all_that_they_depend_on(model: Path, tmp_path: Path) -> None:
    """The cache can always be made again: whatever another run left in it, the bins are those of an empty one."""
    changes: list[dict[str, Any]] = [
        {},
        {"system_prompt": "Be brief."},
        {"extraction": {"kind": "ner"}},
        {"extraction": {"kind": "ner", "absent": "listed"}},
        {"extraction": {"kind": "ner", "prompt_style": "text"}},
    ]
    seen = set()
    for change in changes:
        rows = make_labelled(12) if "extraction" in change else make_instructions(12)
        asked = config(model, train_data=rows, packing=True, max_length=400, **change)
        found = read_rows(asked.train_data, asked)
        chat = ChatFormat.of(model)
        kept = lengths_of(found, chat, asked, tmp_path)
        keep_lengths(kept, found, chat, asked, tmp_path)
        assert kept.tolist() == lengths_of(found, chat, asked, None).tolist()
        seen.add(kept.tobytes())
    assert len(seen) == len(changes), "each has lengths of its own, or nothing was shown"


def test_code_that_is_run_belongs_to_the_model(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "modeling.py").write_text("ONE = 1\n", encoding="utf-8")
    before = [prepare(config(tmp_path / "model", trust_remote_code=on), None).identity["model"] for on in (True, False)]
    (tmp_path / "model" / "modeling.py").write_text("ONE = 2\n", encoding="utf-8")
    after = [prepare(config(tmp_path / "model", trust_remote_code=on), None).identity["model"] for on in (True, False)]
    assert before[0] != after[0]
    assert before[1] == after[1], "where it is not run it counts for nothing"


def test_an_adapter_names_its_model_by_its_name_on_the_hub_or_its_path(model: Path) -> None:
    snapshot = Base(Path("/cache/models--org--name/snapshots/1"), adapter=None, parent=None)
    assert base_name(config("org/name"), snapshot) == "org/name"
    assert base_name(config(model), find_base(config(model))) == str(model)


def test_what_the_bins_hold_is_part_of_a_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bins of other examples are other batches."""
    asked = config(model, packing=True, max_length=96)
    first = prepare(asked, None).identity["data"]

    def turned(lengths: Any, capacity: int) -> Any:
        bins = fill_bins(lengths, capacity)
        return Bins(bins.members[::-1].copy(), np.cumsum([0, *np.diff(bins.starts)[::-1]]))

    monkeypatch.setattr("unbroken.tasks.adapt.task.fill_bins", turned)
    other = prepare(asked, None).identity["data"]
    assert first["bins"] == other["bins"] > 1
    assert {key for key in first if first[key] != other[key]} == {"bins_digest"}


def test_how_a_model_is_asked_is_the_same_bytes_however_it_was_written() -> None:
    spellings = ({"kind": "ner"}, {"kind": "ner", "types_per_prompt": 50, "negatives": 1.0})
    first, second = (Asking(config(extraction=extraction)).documents() for extraction in spellings)
    assert first == second
    assert first != Asking(config(extraction={"kind": "ner", "types_per_prompt": 6})).documents()
