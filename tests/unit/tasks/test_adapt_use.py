"""A finished language model in use: how it is asked goes with it, answers stopped anywhere, scores, merging."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tests.exact.runs import train
from tests.tiny_causal import make_causal_folder, make_instructions, make_labelled
from tests.unit.models.test_gguf import write_tiny

from unbroken.base.errors import CannotContinueError, ConfigError, DataError
from unbroken.models.chat import ChatFormat
from unbroken.run.stop import StopRequest
from unbroken.tasks.adapt import predict as predicting
from unbroken.tasks.adapt.asking import ASKING_FILE, asking_of, is_adapted
from unbroken.tasks.adapt.export import export
from unbroken.tasks.adapt.measure import measure
from unbroken.tasks.adapt.predict import Predicted, predict_file

SLOTS: dict[str, Any] = {
    "extraction": {"kind": "ner", "types_per_prompt": 1, "names": {"thing": "item"}},
    "system_prompt": "Be brief.",
    "max_new_tokens": 12,
    "eval_rows": 3,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, a run that learns to extract and one that learns instructions, whole; rows of both kinds."""
    folder = tmp_path_factory.mktemp("use")
    common = {
        "task": "adapt",
        "model": str(make_causal_folder(folder / "base")),
        "batch_size": 4,
        "max_steps": 6,
        "learning_rate": 3e-2,
        "lora": {"r": 4, "alpha": 16},
        "seed": 7,
        "threads": 1,
    }
    write(folder / "labelled.jsonl", make_labelled(20))
    write(
        folder / "asked.jsonl", [{"instruction": row["instruction"], "input": row["input"]} for row in instructions()]
    )
    write(folder / "answered.jsonl", instructions())
    slots = common | SLOTS | {"train_data": str(folder / "labelled.jsonl"), "eval_data": str(folder / "labelled.jsonl")}
    train(slots, folder / "slots")
    train(common | {"train_data": instructions(), "tuning": "full", "learning_rate": 1e-2}, folder / "whole")
    (folder / "slots.yaml").write_text(json.dumps(slots | {"output_dir": str(folder / "slots")}), encoding="utf-8")
    return folder


def instructions() -> list[dict[str, Any]]:
    return make_instructions(70)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_how_it_is_asked_goes_with_the_model(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "slots" / "model", tmp_path / "copy")
    checkpoint = max((place / "slots" / "checkpoints").iterdir())
    found = [asking_of(one) for one in (place / "slots", checkpoint, tmp_path / "copy")]
    assert len({json.dumps(one.values) for one in found}) == 1
    schema = found[0].schema
    assert schema is not None
    assert (schema.kind, schema.types, schema.phrases) == (
        "ner",
        ("place", "thing"),
        {"place": "place", "thing": "item"},
    )
    same = asking_of(place / "base", place / "slots.yaml")
    assert same.values == found[0].values
    assert asking_of(place / "base", tmp_path / "copy").values == found[0].values
    questions = [message for _, messages in found[0].questions().questions("A text.") for message in messages]
    assert [message.role for message in questions] == ["system", "user", "system", "user"]
    assert '"item"' in questions[3].content
    plain = asking_of(place / "base")
    assert plain.schema is None
    assert plain.config.extraction is None
    with pytest.raises(ConfigError, match=f"{ASKING_FILE} is missing"):
        asking_of(place / "slots", place / "base")


def test_what_a_path_is(place: Path, tiny_encoder: Path) -> None:
    assert all(map(is_adapted, (place / "slots", place / "slots" / "model", place / "whole", place / "base", "x.gguf")))
    assert not is_adapted(tiny_encoder)


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Path:
    from tests.tiny import make_model_folder

    return make_model_folder(tmp_path / "encoder")


def test_stopped_after_every_batch_the_file_is_the_same(place: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"max_new_tokens": 8, "keep": True}
    rows, whole, out = place / "asked.jsonl", tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert predict_file(place / "whole", rows, whole, **how) == Predicted(70, 70, 0)
    told: list[tuple[int, int]] = []
    for before, done in ((0, 32), (32, 64)):
        stop = StopRequest()

        def ask(done: int, total: int, stop: StopRequest = stop, before: int = before) -> None:
            told.append((done, total))
            if done > before:
                stop.ask("test")

        found = predict_file(place / "whole", rows, out, stop=stop, on_progress=ask, **how)
        assert (found, found.finished) == (Predicted(70, done, before), False)
        assert not out.exists()
    assert predict_file(place / "whole", rows, out, **how) == Predicted(70, 70, 64)
    assert out.read_bytes() == whole.read_bytes()
    assert told == [(0, 70), (32, 70), (32, 70), (64, 70)]
    assert [row["input"] for row in read(out)] == read(rows)
    assert len({row["answer"] for row in read(out)}) > 1


def test_the_last_batch_is_made_again_where_something_changed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, stop = tmp_path / "out.jsonl", StopRequest()
    arguments: Any = (place / "whole", place / "asked.jsonl", out)
    predict_file(*arguments, max_new_tokens=4, stop=stop, on_progress=lambda done, _: done and stop.ask("test"))
    real, made = predicting.lines, []

    def elsewhere(device: str) -> dict[str, Any]:
        return {"cpu": "another", "threads": 1}

    def another(*arguments: Any, **options: Any) -> bytes:
        made.append(1)
        return real(*arguments, **options).replace(b"{", b"{ ", 1)

    with monkeypatch.context() as patch:
        patch.setattr(predicting, "surroundings", elsewhere)
        patch.setattr(predicting, "lines", another)
        with pytest.raises(CannotContinueError, match=r"begun elsewhere .*cpu.* come out otherwise"):
            predict_file(*arguments, max_new_tokens=4)
        assert len(made) == 1
        patch.setattr(predicting, "lines", lambda *a, **o: made.append(1) or real(*a, **o))
        assert predict_file(*arguments, max_new_tokens=4).finished
        assert len(made) == 1 + 1 + 2, "the last batch that stood, and the two that were left"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "base"}, "the model changed"),
        ({"keep": True}, "keep False, not True"),
        ({"max_new_tokens": 5}, "the questions changed"),
        ({"rows": "answered.jsonl"}, "the data changed"),
    ],
)
def test_another_command_does_not_go_on(changes: dict[str, Any], told: str, place: Path, tmp_path: Path) -> None:
    out, stop = tmp_path / "out.jsonl", StopRequest()
    how: dict[str, Any] = {"model": "whole", "rows": "asked.jsonl", "max_new_tokens": 4}
    stop.ask("before the first batch")

    def predicted(values: dict[str, Any]) -> Predicted:
        rest = {key: value for key, value in values.items() if key not in ("model", "rows")}
        return predict_file(place / values["model"], place / values["rows"], out, stop=stop, **rest)

    assert predicted(how).done == 0
    with pytest.raises(CannotContinueError, match=told):
        predicted(how | changes)


@pytest.mark.parametrize("change", ["template", "tokenizer", "end tokens"])
def test_a_model_that_is_asked_otherwise_does_not_go_on(change: str, place: Path, tmp_path: Path) -> None:
    """The weights are the same; half of the file would answer other questions, or end elsewhere."""
    shutil.copytree(place / "base", tmp_path / "base")
    arguments = (tmp_path / "base", place / "asked.jsonl", tmp_path / "out.jsonl")
    stop = StopRequest()
    stop.ask("before the first batch")
    assert predict_file(*arguments, stop=stop, max_new_tokens=4).done == 0
    assert predict_file(*arguments, stop=stop, max_new_tokens=4).done == 0
    file = tmp_path / "base" / ("generation_config.json" if change == "end tokens" else "tokenizer_config.json")
    if change == "tokenizer":
        file = file.with_name("tokenizer.json")
    values = json.loads(file.read_bytes())
    if change == "template":
        template = ChatFormat.of(tmp_path / "base").template
        file.with_name("chat_template.jinja").write_text(f"Be rude. {template}", encoding="utf-8")
    elif change == "tokenizer":
        values["normalizer"] = {"type": "Lowercase"}
    else:
        values["eos_token_id"] = 70
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CannotContinueError, match="the template changed"):
        predict_file(*arguments, max_new_tokens=4)


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the package gguf")
def test_a_cache_that_is_emptied_takes_no_run_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion is made again; of a file with other content the run's adapter is not put on it."""
    monkeypatch.setenv("UNBROKEN_CACHE", str(tmp_path / "cache"))
    file = write_tiny(tmp_path / "tiny.gguf")
    rows = [{"instruction": "abc", "output": "cd" * (1 + n % 3)} for n in range(8)]
    values = {"task": "adapt", "model": str(file), "train_data": rows, "template": "default", "lora": {"r": 2}}
    train(values | {"batch_size": 2, "max_steps": 1, "threads": 1}, tmp_path / "run")
    write(tmp_path / "rows.jsonl", rows)
    outs = []
    for name in ("one", "two"):
        predict_file(tmp_path / "run", tmp_path / "rows.jsonl", tmp_path / f"{name}.jsonl", max_new_tokens=2)
        outs.append((tmp_path / f"{name}.jsonl").read_bytes())
        shutil.rmtree(tmp_path / "cache")
    assert outs[0] == outs[1]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"is an adapter for .* which is not there"):
        predict_file(tmp_path / "run", tmp_path / "rows.jsonl", tmp_path / "three.jsonl", max_new_tokens=2)


def test_what_fails_before_its_first_batch_leaves_nothing(place: Path, tmp_path: Path) -> None:
    """Else the command that is given again, the adapter put right, would be refused for another model's sake."""
    adapter, out = tmp_path / "adapter", tmp_path / "out.jsonl"
    shutil.copytree(place / "slots" / "model", adapter)
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(ConfigError, match="is damaged"):
        predict_file(adapter, place / "labelled.jsonl", out, max_new_tokens=2)
    assert list(tmp_path.iterdir()) == [adapter]
    weights.unlink()
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors"):
        predict_file(adapter, place / "labelled.jsonl", out, max_new_tokens=2)
    weights.write_bytes(whole)
    assert predict_file(adapter, place / "labelled.jsonl", out, max_new_tokens=2).finished


def test_extracted_labels_stand_in_the_text(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a well taught model would say, in the place of a tiny one."""
    said = iter(['{"place": ["window", "moon"]}', '{"item": ["river"]}', "no idea", '{"item": []}'])
    monkeypatch.setattr("unbroken.tasks.adapt.use.answers", lambda lm, chat, asked, *_: [next(said) for _ in asked])
    rows = [{"text": "The river is near the window."}, {"text": " "}, {"text": "Nothing."}]
    write(tmp_path / "rows.jsonl", rows)
    predict_file(place / "slots", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", keep=True)
    first, blank, last = read(tmp_path / "out.jsonl")
    assert first == {
        "input": rows[0],
        "answer": '{"place": ["window", "moon"]}\n{"item": ["river"]}',
        "extracted": [
            {"start": 22, "end": 28, "type": "place", "text": "window"},
            {"type": "place", "text": "moon"},
            {"start": 4, "end": 9, "type": "thing", "text": "river"},
        ],
        "readable": True,
    }
    assert blank == {"input": rows[1], "answer": "", "extracted": [], "readable": True}
    assert (last["readable"], last["extracted"]) == (False, [])


def test_bad_rows_are_found_before_anything_is_made(place: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Text {n}."} for n in range(40)] + [{"text": None}]
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match="line 41, column 'text' holds null"):
        predict_file(place / "slots", tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="did you mean --column text"):
        predict_file(place / "slots", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", column="txt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_lines_of_a_text_file_are_asked(place: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("Say a\nSay b\n", encoding="utf-8")
    for model in ("slots", "whole"):
        predict_file(place / model, tmp_path / "rows.txt", tmp_path / "out.jsonl", max_new_tokens=2)
        assert len(read(tmp_path / "out.jsonl")) == 2


def test_measured_as_the_run_was(place: Path) -> None:
    """The run's own last evaluation: the same rows, the same questions, the same figures."""
    recorded = json.loads(max((place / "slots" / "eval").iterdir()).read_bytes())["metrics"]
    found = measure(place / "slots")
    assert found.metrics == recorded
    assert found.metrics["rows"] == 3
    assert found.metrics["answers"] == 6
    assert next(iter(found.metrics)) == "f1"
    assert found.scores is not None
    assert found.scores.num_rows == 3
    assert measure(place / "slots", str(place / "labelled.jsonl")).metrics["rows"] == 20
    before = measure(place / "base", str(place / "labelled.jsonl"), like=place / "slots", num_rows=3).metrics
    assert before["loss"] > recorded["loss"]
    said = measure(place / "whole", str(place / "answered.jsonl"))
    assert list(said.metrics) == ["loss", "perplexity"]
    fewer = measure(place / "whole", str(place / "answered.jsonl"), num_rows=5)
    assert fewer.metrics["loss"] != said.metrics["loss"], "as many rows as were asked for"
    with pytest.raises(ConfigError, match="no rows to measure"):
        measure(place / "base")


@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_is_asked_as_it_was_taught(place: Path, tmp_path: Path) -> None:
    values = {"task": "adapt", "model": str(place / "base"), "train_data": instructions(), "max_steps": 4, "seed": 7}
    told = {"template": "alpaca", "system_prompt": "Be brief.", "lora": {"r": 2}}
    train(values | told | {"batch_size": 4, "learning_rate": 3e-2, "threads": 1}, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "merged", merge=True)
    assert asking_of(tmp_path / "merged").values == asking_of(tmp_path / "run").values
    for name in (ASKING_FILE, "chat_template.jinja"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "run" / "model" / name).read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert "### Instruction" in tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)


def peers_answers(model: Any, folder: Path, count: int) -> list[str]:
    """By transformers alone: its tokenizer, its template, its loop."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    said = []
    for row in instructions()[:count]:
        messages = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
        said.append(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    return said


@pytest.mark.filterwarnings("ignore")
def test_a_run_says_in_peft_and_merged_what_it_says_here(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    adapters = {"task": "adapt", "model": str(place / "base"), "train_data": instructions(), "max_steps": 6, "seed": 7}
    train(adapters | {"batch_size": 4, "learning_rate": 3e-2, "lora": {"r": 4, "alpha": 16}, "threads": 1}, run)
    predict_file(run, place / "asked.jsonl", tmp_path / "out.jsonl", max_new_tokens=10)
    predict_file(place / "base", place / "asked.jsonl", tmp_path / "bare.jsonl", max_new_tokens=10)
    ours = [row["answer"] for row in read(tmp_path / "out.jsonl")]
    assert ours != [row["answer"] for row in read(tmp_path / "bare.jsonl")]
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(run / "model")).eval()
    assert peers_answers(theirs, run / "model", 8) == ours[:8]

    export(run, tmp_path / "merged", merge=True)
    predict_file(tmp_path / "merged", place / "asked.jsonl", tmp_path / "again.jsonl", max_new_tokens=10)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert peers_answers(whole, tmp_path / "merged", 8) == ours[:8]
    ids = torch.arange(60, 100)[None]
    with torch.inference_mode():
        assert (whole(ids).logits - theirs(ids).logits).abs().max() <= 1e-5 * theirs(ids).logits.abs().max()


TIED = {
    "head": {"r": 2, "modules_to_save": ["lm_head"]},
    "embeddings": {"r": 2, "modules_to_save": ["embed_tokens"]},
    "head by rank": {"r": 2, "alpha": 32, "target_modules": ["lm_head", "q_proj"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", TIED.values(), ids=TIED)
def test_what_was_one_table_is_two_where_one_was_trained(lora: dict[str, Any], place: Path, tmp_path: Path) -> None:
    """The tiny model's head is its table of embeddings: merged under one name, what was trained would be lost."""
    values = {"task": "adapt", "model": str(place / "base"), "train_data": instructions(), "max_steps": 4, "seed": 7}
    train(values | {"batch_size": 4, "learning_rate": 3e-2, "lora": lora, "threads": 1}, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "merged", merge=True)
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    bare = copy.deepcopy(base).eval()
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "model")).eval()
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ids = torch.arange(60, 100)[None]
    with torch.inference_mode():
        wanted = theirs(ids).logits
        assert (whole(ids).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert (bare(ids).logits - wanted).abs().max() > 1e-2 * wanted.abs().max()


def test_exported_files_are_the_runs(place: Path, tmp_path: Path) -> None:
    for run in ("slots", "whole"):
        export(place / run, tmp_path / run)
        there = {path.name: path.read_bytes() for path in (place / run / "model").iterdir()}
        assert {path.name: path.read_bytes() for path in (tmp_path / run).iterdir()} == there
    export(place / "whole", tmp_path / "slots")
    assert not (tmp_path / "slots" / "adapter_config.json").exists(), "an earlier model there is replaced"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    for output, told in (("mine", "no model folder"), (place / "slots" / "x", "belongs to the run")):
        with pytest.raises(ConfigError, match=told):
            export(place / "slots", tmp_path / output)
    with pytest.raises(ConfigError, match="no adapter to merge"):
        export(place / "whole", tmp_path / "x", merge=True)
