"""Every mistake that people who resume the tuning of an adapter are warned of, made on purpose, by real commands.

The list is that of DeepKE's page: what its reader is to look after by hand is refused here in one line with nothing
written, or handled and said.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.exact.runs import step_records, train
from tests.tiny_causal import SHAPE, make_causal_folder, make_instructions
from tests.unit.cli.bad_input import Desk

from unbroken.cli.main import run
from unbroken.store.lock import RunLock

LORA = {"r": 4, "alpha": 8, "dropout": 0.1}
TAUGHT: dict[str, Any] = {
    "task": "adapt",
    "model": "model",
    "output_dir": "runs/a",
    "train_data": "train.jsonl",
    "batch_size": 4,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "lora": LORA,
    "save_steps": 1,
    "save_total_limit": 3,
    "threads": 1,
    "seed": 7,
}
NEWEST = "runs/a/checkpoints/00000004"
ADAPTER = "model/adapter_model.safetensors"
CHANGED = "runs/a was started with another configuration: "


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_folder(tmp_path_factory.mktemp("models") / "causal")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, language_model: Path) -> Path:
    """A run of six steps that was stopped after four, `a`, and one that is finished, `p`."""
    root = tmp_path_factory.mktemp("runs")
    asked = TAUGHT | {"model": str(language_model), "train_data": make_instructions(12)}
    assert train(asked, root / "a", stop_after=4).step == 4
    assert train(asked, root / "p").finished
    return root


class Bench(Desk):
    """A desk with a language model, the two runs, and `peft`: the finished run's adapter by itself."""

    def __init__(self, root: Path, model: Path, runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
        super().__init__(root, model, capfd)
        (root / "model").unlink()
        shutil.copytree(model, root / "model")
        shutil.copytree(runs, root / "runs")
        shutil.copytree(runs / "p" / "model", root / "peft")
        self.edit("peft/adapter_config.json", base_model_name_or_path=str(root / "model"))
        self.write_rows("train.jsonl", make_instructions(12))
        self.configure()

    def configure(self, **changes: Any) -> None:
        (self.root / "c.yaml").write_text(yaml.safe_dump({**TAUGHT, **changes}, sort_keys=False), encoding="utf-8")

    def says(self, *arguments: str) -> str:
        """Run a command that must succeed; return what it said on stderr."""
        self.capfd.readouterr()
        assert run(list(arguments or ("train", "c.yaml"))) == 0
        return self.capfd.readouterr().err

    def edit(self, document: str, **changes: Any) -> None:
        path = self.root / document
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes), encoding="utf-8")


@pytest.fixture
def bench(
    tmp_path: Path,
    language_model: Path,
    runs: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, language_model, runs, capfd)


def assert_finished_alike() -> None:
    """The run that was stopped has become what the other one is; the model it names lies at another place."""
    ours, theirs = Path("runs/a"), Path("runs/p")
    assert step_records(ours) == step_records(theirs)
    assert (ours / ADAPTER).read_bytes() == (theirs / ADAPTER).read_bytes()


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


# What is wrong with the newest checkpoint, and what is said of it. The run goes on from the one before it.
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no optimizer state": ("optimizer.safetensors", os.remove, "cannot read {}: No such file or directory"),
    "no adapter": (ADAPTER, os.remove, "cannot read {}: No such file or directory"),
    "a cut adapter": (ADAPTER, cut, "{} has 100 bytes instead of "),
    "a flipped bit": (ADAPTER, flip, "{}: tensor 'adapter."),
    "no configuration": ("model/adapter_config.json", os.remove, "cannot read {}: No such file or directory"),
    "no state": ("state.json", os.remove, "cannot read {}: No such file or directory"),
    "no manifest": ("MANIFEST.json", os.remove, ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_is_not_whole_is_passed_over(damage: str, bench: Bench) -> None:
    name, harm, told = DAMAGES[damage]
    harm(Path(NEWEST) / name)
    said = bench.says()
    assert told.format(f"{NEWEST}/{name}") in said
    assert "moved to .broken-00000004-0" in said
    assert "restored after step 3 of 6" in said
    assert "replayed 2 steps (4 to 5): identical to the bit" in said
    assert_finished_alike()


def test_an_edited_alpha_in_a_checkpoint_is_passed_over(bench: Bench) -> None:
    bench.edit(f"{NEWEST}/model/adapter_config.json", lora_alpha=16)
    assert "adapter_config.json has" in bench.says()
    assert_finished_alike()


def test_no_checkpoint_left_that_is_whole(bench: Bench) -> None:
    for folder in Path("runs/a/checkpoints").iterdir():
        (folder / ADAPTER).unlink()
    assert run(["train", "c.yaml"]) == 4
    said = bench.capfd.readouterr().err
    assert said.startswith("unbroken: no checkpoint of runs/a verifies; checkpoint of step 4: cannot read ")
    assert said.endswith("put an intact copy back into checkpoints/, or start over with --restart\n")
    assert not Path("runs/a/model").exists()


def test_one_checkpoint_asked_for_that_is_not_whole(bench: Bench) -> None:
    Path("runs/a/checkpoints/00000003/optimizer.safetensors").unlink()
    assert run(["train", "c.yaml", "--resume_from_checkpoint", "runs/a/checkpoints/00000003"]) == 4
    said = bench.capfd.readouterr().err
    assert "the checkpoint of step 3 is broken: cannot read runs/a/checkpoints/00000003/optimizer.safetensors" in said
    assert "steps there are: 2, 3, 4" in said


RESUMED = {
    "another run": ("runs/p", "runs/p is not in the run runs/a; to start a new run from those weights, give them as"),
    "another run's checkpoint": ("runs/p/checkpoints/00000006", "is not in the run runs/a; to start a new run from"),
    "an adapter": ("peft", "peft is not in the run runs/a; to start a new run from those weights, give them as `model"),
    "the base model": ("model", "model is not in the run runs/a; to start a new run from those weights, give them as"),
    "nothing": ("runs/a/checkpoints/00000400", "is not there; leave it out: the run goes on from its newest good"),
    "the cache": ("runs/a/cache", "is neither the run"),
}


@pytest.mark.parametrize("case", RESUMED)
def test_the_wrong_folder_to_resume_from(case: str, bench: Bench) -> None:
    path, said = RESUMED[case]
    bench.refuses(2, f"resume_from_checkpoint: …{said}…", "train", "c.yaml", "--resume_from_checkpoint", path)


@pytest.mark.parametrize("path", ["True", "runs/a", "runs/a/checkpoints", NEWEST, f"{NEWEST}/model"])
def test_the_right_folder_to_resume_from(path: str, bench: Bench) -> None:
    assert "restored after step 4 of 6" in bench.says("train", "c.yaml", "--resume_from_checkpoint", path)
    assert_finished_alike()


WITHOUT_FORK = "choose a new output_dir for a new run, or --restart to move this run aside and start over"
CHANGES: dict[str, tuple[dict[str, Any], str, str]] = {
    "alpha": ({"lora": LORA | {"alpha": 16}}, "lora.alpha: 8.0 (this run) -> 16.0 (c.yaml)", WITHOUT_FORK),
    "rank": ({"lora": LORA | {"r": 8}}, "lora.r: 4 (this run) -> 8 (c.yaml)", WITHOUT_FORK),
    "targets": (
        {"lora": LORA | {"target_modules": ["q_proj"]}},
        "lora.target_modules: 'all-linear' (this run) -> ['q_proj'] (c.yaml)",
        WITHOUT_FORK,
    ),
    "dropout": (
        {"lora": LORA | {"dropout": 0.0}},
        "lora.dropout: 0.1 (this run) -> 0.0 (c.yaml)",
        "`unbroken fork runs/a NEW --set lora.dropout=0.0` for a new run from the state of this one",
    ),
    "template": ({"template": "alpaca"}, "template: 'model' (this run) -> 'alpaca' (c.yaml)", WITHOUT_FORK),
    "tuning": ({"tuning": "full"}, "tuning: 'lora' (this run) -> 'full' (c.yaml)", WITHOUT_FORK),
    "another model": ({"model": "other"}, "model: content … (this run) -> content … (c.yaml)", WITHOUT_FORK),
    "one bit of it": ({"model": "bit"}, "model: content … (this run) -> content … (c.yaml)", WITHOUT_FORK),
    "its adapter": ({"model": "runs/p"}, "adapter: none (this run) -> content … (c.yaml)", WITHOUT_FORK),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_makes_it_another_adapter(case: str, bench: Bench) -> None:
    changes, differs, ways_out = CHANGES[case]
    if case == "another model":
        make_causal_folder(bench.root / "other", seed=1)
    if case == "one bit of it":
        shutil.copytree("model", "bit")
        flip(bench.root / "bit" / "model.safetensors")
    bench.configure(**changes)
    bench.refuses(4, f"{CHANGED}{differs}…{ways_out}…")


def test_a_base_model_that_was_moved_and_one_that_is_gone(bench: Bench) -> None:
    Path("model").rename("moved")
    advice = "put the model back, or give its new path as `model:` (its content is compared)"
    bench.refuses(2, f"no model folder at model…checkpoints hold the adapters alone…{advice}")
    bench.configure(model="peft", output_dir="runs/n")
    bench.refuses(2, "peft is an adapter for …/model, which is not there; put the model there; a link will do")
    bench.configure(model="moved")
    assert "restored after step 4 of 6" in bench.says()
    assert_finished_alike()
    Path("model").symlink_to("moved")
    bench.configure(model="peft", output_dir="runs/n")
    assert "weights only, step 0" in bench.says()


def test_a_run_named_as_the_model_is_the_start_of_another(bench: Bench) -> None:
    """What is `checkpoint_dir` elsewhere: visibly another act than resuming."""
    bench.configure(output_dir="runs/n", model="runs/p")
    said = bench.says()
    assert "new run from the weights of runs/p: weights only, step 0; to resume that run: unbroken train runs/p" in said
    assert json.loads(Path("runs/n/run.json").read_bytes())["parent"]["run"] == "runs/p"
    assert_first_loss_is_of(Path("runs/n"), "runs/p/model", bench)
    bench.configure(output_dir="runs/m", model="runs/p/checkpoints/00000005")
    assert "new run from the weights of " in bench.says()
    assert json.loads(Path("runs/m/run.json").read_bytes())["parent"]["step"] == 5


def assert_first_loss_is_of(root: Path, adapter: str, bench: Bench) -> None:
    """The run of the same adapter, named as a folder, begins with the same loss; one of the base does not."""
    bench.configure(output_dir="runs/other", model=adapter)
    bench.says()
    bench.configure(output_dir="runs/base")
    bench.says()
    first = [json.loads(line) for line in (root / "journal.jsonl").read_bytes().splitlines() if b'"n":1,' in line]
    assert first[0]["kind"] == "step"
    losses = [first[0]["loss"], *(loss_of(name) for name in ("runs/other", "runs/base"))]
    assert losses[0] == losses[1] != losses[2]


def loss_of(root: str) -> float:
    lines = map(json.loads, Path(root, "journal.jsonl").read_bytes().splitlines())
    return float(next(line["loss"] for line in lines if line["kind"] == "step" and line["n"] == 1))


def test_an_adapter_of_anybodys_is_the_start_of_a_run(bench: Bench) -> None:
    bench.configure(output_dir="runs/n", model="peft")
    assert f"new run from the weights of the adapter {bench.root / 'peft'}: weights only, step 0\n" in bench.says()
    assert json.loads(Path("runs/n/run.json").read_bytes())["parent"] == {"adapter": str(bench.root / "peft")}
    assert run(["show", "runs/n"]) == 0
    assert "peft" in bench.capfd.readouterr().out


@pytest.mark.parametrize("model", ["runs/a", NEWEST, f"{NEWEST}/model"])
def test_the_run_itself_named_as_its_model(model: str, bench: Bench) -> None:
    bench.configure(model=model)
    bench.refuses(
        2,
        f"model: {model} belongs to the run in output_dir itself; to resume it, `unbroken train …runs/a`; "
        "to train its result further, choose a new output_dir",
    )


def other_shapes(bench: Bench) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPE, "hidden_size", 64)
        make_causal_folder(bench.root / "wider")
    bench.edit("peft/adapter_config.json", base_model_name_or_path="wider")
    Path("peft/base_model.json").unlink()


def other_family(bench: Bench) -> None:
    make_causal_folder(bench.root / "llama", "llama")
    bench.edit("peft/adapter_config.json", base_model_name_or_path="llama")


def as_pickle(bench: Bench) -> None:
    Path("peft/adapter_model.safetensors").rename("peft/adapter_model.bin")


ADAPTERS: dict[str, tuple[Callable[[Bench], object], dict[str, Any], str]] = {
    "another alpha": (
        lambda bench: None,
        {"lora": LORA | {"alpha": 16}},
        "lora.alpha: 16.0 is asked for, and the adapter … was trained with 8; its weights would be another function; "
        "set lora.alpha to 8",
    ),
    "another rank": (lambda bench: None, {"lora": LORA | {"r": 8}}, "lora.r: 8 is asked for, …; set lora.r to 4"),
    "other targets": (
        lambda bench: None,
        {"lora": LORA | {"target_modules": ["q_proj"]}},
        "peft/adapter_model.safetensors holds '…'; adapter and configuration do not belong together; give "
        "target_modules, …",
    ),
    "an alpha by layer": (
        lambda bench: bench.edit("peft/adapter_config.json", alpha_pattern={"q_proj": 32}),
        {},
        "peft/adapter_config.json: alpha_pattern gives layers a rank or an alpha of their own; …",
    ),
    "every weight": (lambda bench: None, {"tuning": "full"}, "model: peft is an adapter, and tuning: full trains …"),
    "a changed base": (
        lambda bench: flip(bench.root / "model" / "model.safetensors"),
        {},
        "the model … is not the one that the adapter peft was trained on: its content differs; …",
    ),
    "another base of the same shapes": (other_family, {}, "the model …llama is not the one that the adapter peft …"),
    "another base": (other_shapes, {}, "peft/adapter_model.safetensors: '…' has shape (…), but (…) by …"),
    "no weights": (
        lambda bench: Path("peft/adapter_model.safetensors").unlink(),
        {},
        "peft has no weights: adapter_model.safetensors is missing; copy the adapter's folder again, whole",
    ),
    "weights as a pickle": (
        as_pickle,
        {},
        "peft has its weights only as adapter_model.bin, which can run code when loaded; load it with PEFT where …",
    ),
    "cut weights": (
        lambda bench: cut(bench.root / "peft" / "adapter_model.safetensors"),
        {},
        "weights file peft/adapter_model.safetensors is damaged: …",
    ),
    "no configuration": (
        lambda bench: Path("peft/adapter_config.json").unlink(),
        {},
        "peft is not a language model's folder: it holds neither config.json nor adapter_config.json nor …",
    ),
    "another method": (
        lambda bench: bench.edit("peft/adapter_config.json", peft_type="IA3"),
        {},
        "peft/adapter_config.json: peft_type 'IA3' is not supported; LORA is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_that_is_not_what_it_should_be(case: str, bench: Bench) -> None:
    prepare, changes, told = ADAPTERS[case]
    prepare(bench)
    bench.configure(output_dir="runs/n", model="peft", **changes)
    bench.refuses(2, told)


def test_an_adapter_is_not_used_on_another_model(bench: Bench) -> None:
    assert run(["predict", "peft", "train.jsonl", "--output", "out.jsonl", "--max-new-tokens", "2"]) == 0
    flip(bench.root / "model" / "model.safetensors")
    refused = "the model … is not the one that the adapter peft was trained on: …"
    bench.refuses(2, refused, "export", "peft", "n", "--merge")
    assert run(["predict", "peft", "train.jsonl", "--output", "n.jsonl"]) == 2
    assert "is not the one that the adapter peft was trained on" in bench.capfd.readouterr().err
    assert not Path("n.jsonl").exists()


def converted_away(bench: Bench) -> None:
    gone = Path(os.environ["UNBROKEN_CACHE"]) / "converted" / "smollm2-0123"
    bench.edit("peft/adapter_config.json", base_model_name_or_path=str(gone))
    Path("named").symlink_to("peft")


def checkpoints_of_another_trainer(bench: Bench) -> None:
    shutil.copytree("peft", "named/checkpoint-500")


def two_files(bench: Bench) -> None:
    for name in ("a.gguf", "b.gguf"):
        bench.place({f"named/{name}": b"GGUF"})


def without(name: str, **files: bytes) -> Callable[[Bench], object]:
    def prepare(bench: Bench) -> None:
        shutil.copytree("model", "named")
        (bench.root / "named" / name).unlink()
        bench.place({f"named/{key.replace('__', '.')}": content for key, content in files.items()})

    return prepare


MODELS: dict[str, tuple[Callable[[Bench], object], str, str]] = {
    "a GGUF file that is not there": (lambda bench: None, "x.gguf", "there is no GGUF file x.gguf; give the path of …"),
    "what is no GGUF file": (lambda b: b.place({"x.gguf": b"hello"}), "x.gguf", "x.gguf is not a GGUF file; copy it …"),
    "a damaged GGUF file": (
        lambda bench: bench.place({"x.gguf": b"GGUF" + bytes(50)}),
        "x.gguf",
        "x.gguf: transformers cannot read this GGUF file: …; copy it again, whole, or use the model's …",
    ),
    "two GGUF files": (two_files, "named", "named holds 2 GGUF files: a.gguf, b.gguf; name one of them"),
    "a conversion that is gone": (converted_away, "named", "named is an adapter for …; it was made of a GGUF file: …"),
    "checkpoints of another trainer": (
        checkpoints_of_another_trainer,
        "named",
        "named is not a language model's folder: …; did you mean 'named/checkpoint-500'?",
    ),
    "a pickle alone": (
        without("model.safetensors", pytorch_model__bin=b"x"),
        "named",
        "…named has its weights only as pytorch_model.bin, which can run code when loaded; convert it: …",
    ),
    "no weights": (without("model.safetensors"), "named", "…named has no weights: …"),
    "cut weights": (without("config.json", config__json=b"{"), "named", "named/config.json…"),
    "a pointer of Git LFS": (
        without("model.safetensors", model__safetensors=b"version https://git-lfs.github.com/spec/v1\n"),
        "named",
        "named/model.safetensors is a pointer of Git LFS, not the file itself; fetch the file: …",
    ),
    "a misspelt folder": (lambda bench: None, "./modle", "model: there is no folder ./modle; did you mean 'model'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_is_not_what_it_should_be(
    case: str, bench: Bench, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNBROKEN_CACHE", str(tmp_path_factory.mktemp("cache")))
    prepare, model, told = MODELS[case]
    prepare(bench)
    bench.configure(output_dir="runs/n", model=model)
    bench.refuses(2, told)


def test_an_output_folder_in_use(bench: Bench) -> None:
    for folder in ("peft", "model"):
        bench.configure(output_dir=folder)
        bench.refuses(2, f"output_dir {folder} holds files (…) but is no run; choose a new or an empty folder")
    bench.configure()
    lock = RunLock(bench.root / "runs" / "a")
    lock.acquire()
    try:
        assert run(["train", "c.yaml"]) == 75
        assert "runs/a is in use by process" in bench.capfd.readouterr().err
    finally:
        lock.release()


KEYS = {
    "lora_r": (8, "did you mean 'lora.r'?"),
    "lora_alpha": (16, "did you mean 'lora.alpha'?"),
    "lora_target_modules": (["q_proj"], "did you mean 'lora.target_modules'?"),
    "cutoff_len": (512, "did you mean 'max_length'?"),
    "per_device_train_batch_size": (4, "did you mean 'batch_size'?"),
    "gradient_accumulation_steps": (4, "did you mean 'micro_batch_size'?"),
    "finetuning_type": ("lora", "did you mean 'tuning'?"),
    "train_file": ("x", "did you mean 'train_data'?"),
    "val_set_size": (100, "keep rows apart yourself, and give them as `eval_data: FILE`"),
    "bits": (4, "did you mean 'quantization'?"),
    "bf16": (True, "say it as `precision: bfloat16` or `precision: float32`"),
    "deepspeed": ("ds.json", "leave it out: a run trains on one device"),
    "overwrite_output_dir": (True, "leave it out: no run is overwritten; `--restart` moves an earlier one aside"),
    "checkpoint_dir": (
        "x",
        "to resume, give the same command again; a new run from an adapter's weights: `model: FOLDER`",
    ),
    "resume_from_checkpoint": (True, "leave it out: the same command goes on; …"),
    "split_num": (6, "did you mean 'extraction.types_per_prompt'?"),
    "lora": ({"rank": 8}, "did you mean 'lora.r'?"),
    "extraction": ({"kind": "ner", "task": "NER"}, "did you mean 'extraction.kind'?"),
}


@pytest.mark.parametrize("key", KEYS)
def test_what_it_is_called_elsewhere(key: str, bench: Bench) -> None:
    value, advice = KEYS[key]
    inside = f"{key}.{[*value][-1]}" if isinstance(value, dict) else key
    bench.configure(**{key: value})
    bench.refuses(2, f"c.yaml: unknown key '{inside}'; {advice}")


def test_changed_rows(bench: Bench) -> None:
    bench.write_rows("train.jsonl", [*make_instructions(11), {"instruction": "a", "output": "b"}])
    bench.refuses(4, "the training data are not those runs/a was started with: 12 rows then, 12 now …row 12; …")


def test_a_template_nobody_knows(bench: Bench) -> None:
    bench.configure(output_dir="runs/n", template="qwen7")
    bench.refuses(2, "there is no template 'qwen7'; did you mean 'qwen'?")


ROW = {"instruction": "a", "input": "b", "output": "c"}
TAGGED = {"extraction": {"kind": "ner"}}
ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "no answer": ([{"instruction": "a"}], {}, "has no column 'output' (for output); …"),
    "an empty answer": ([ROW, ROW | {"output": ""}], {}, "line 2, column 'output' holds an empty answer; …"),
    "a number": ([ROW, ROW | {"output": 3}], {}, "line 2, column 'output' holds a number where text is expected; …"),
    "nothing said": (
        [{"messages": [{"role": "user", "content": "x"}]}],
        {},
        "line 1, column 'messages' ends with a message of the user's; there would be no answer to learn; …",
    ),
    "other columns": ([{"question": "a", "answer": "b"}], {}, "has no instructions; it has the columns question, …"),
    "no labels": ([{"text": "x"}], TAGGED, "has no column 'entities' (for entities); it has text; …"),
    "a span outside of the text": (
        [{"text": "abc", "entities": [{"start": 0, "end": 9, "type": "t"}]}],
        TAGGED,
        "line 1, column 'entities', item 1 goes from 0 to 9 in a text of 3 characters; …",
    ),
    "a span of another text": (
        [{"text": "abc", "entities": [{"start": 0, "end": 2, "type": "t", "text": "zz"}]}],
        TAGGED,
        "line 1, column 'entities', item 1 is 'zz', but characters 0 to 2 are 'ab'; …",
    ),
    "no label anywhere": ([{"text": "abc", "entities": []}], TAGGED, "has no label at all; …"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row(case: str, bench: Bench) -> None:
    rows, changes, told = ROWS[case]
    bench.write_rows("bad.jsonl", rows)
    bench.configure(output_dir="runs/n", train_data="bad.jsonl", **changes)
    bench.refuses(3, f"bad.jsonl{' ' if told.startswith('has') else ': '}{told}")


def test_an_answer_that_no_token_is_kept_of(bench: Bench) -> None:
    bench.write_rows("bad.jsonl", [ROW])
    bench.configure(output_dir="runs/n", train_data="bad.jsonl", max_length=5)
    bench.refuses(3, "bad.jsonl: line 1: max_length 5 keeps none of the answer (14 tokens in all); …")
    bench.configure(output_dir="runs/n", max_length=5000)
    bench.refuses(2, "max_length 5000 is more than the 512 tokens the model takes; set max_length to 512 or less")


def test_what_is_shown_of_an_adapter(bench: Bench) -> None:
    for path, expected in (
        ("runs/a", ["stopped: step 4 of 6", "lora", "to go on: "]),
        (NEWEST, ["verifies", "adapter_model.safetensors", "PeftModel.from_pretrained(<"]),
        ("peft", ["PEFT adapter", "alpha", "digest", "must be at hand and unchanged"]),
    ):
        assert run(["show", path]) == 0
        out = bench.capfd.readouterr().out
        assert [text for text in expected if text not in out] == []


def test_the_command_line_is_on_record_and_shown(bench: Bench) -> None:
    asked = ["train", "c.yaml", "--set", "eval_data=train.jsonl"]
    bench.says(*asked)
    assert run(["show", "runs/a", "--json"]) == 0
    shown = json.loads(bench.capfd.readouterr().out)
    assert all(segment["command"] for segment in shown["segments"])
    assert len(shown["segments"]) == 2
