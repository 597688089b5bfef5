"""Which foreign folder is what, what it lacks, and that nothing in it is unpickled or changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny import make_model_folder

from unbroken.bridges.foreign import Foreign, recognise, step_folders

ADAPTER = {"base_model_name_or_path": "some/base", "r": 8, "lora_alpha": 16}


class Trap:
    """Unpickling this would raise: whoever opens the file is found out."""

    def __reduce__(self) -> Any:
        return (_fail, ())


def _fail() -> None:
    raise AssertionError("somebody unpickled a foreign file")


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def trainer_files(folder: Path, *, numbers: int = 6, step: int = 500, **state: Any) -> Path:
    """Add what Hugging Face's Trainer saves beside a model of `numbers` trained numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = [torch.zeros(numbers - 1, requires_grad=True), torch.zeros(1, requires_grad=True)]
    optimizer = torch.optim.AdamW(weights)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    for name in ("scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"trap": Trap()}, folder / name)
    write(folder / "trainer_state.json", {"global_step": step, "max_steps": 1000, "epoch": 0.5, **state})
    return folder


def model(folder: Path, architecture: str = "BertModel") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "config.json", {"architectures": [architecture]})
    save_file({"weight": torch.zeros(2, 3)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def adapter(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "adapter_config.json", ADAPTER)
    save_file({"lora_A": torch.zeros(2, 3)}, folder / "adapter_model.safetensors")
    return folder


def found(folder: Path) -> Foreign:
    what = recognise(folder)
    assert what is not None
    return what


def says(lines: list[str], text: str) -> bool:
    return any(text in line for line in lines)


def test_a_trainer_checkpoint(tmp_path: Path) -> None:
    what = found(trainer_files(model(tmp_path / "checkpoint-500")))
    assert what.kind == "Hugging Face Trainer checkpoint"
    assert (what.values["step"], what.values["steps_in_all"]) == (500, 1000)
    assert "1 tensors, 6 numbers, F32" in what.parts["model.safetensors"]["holds"]
    assert says(what.resumable, "their number fits the weights")
    assert says(what.lost, "order of the data")
    assert not says(what.lost, "begin at zero")
    assert what.problems == []


def test_a_sentence_transformers_checkpoint_lacks_the_loss(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "checkpoint-500")
    numbers = sum(int(part["holds"].split()[2].replace(",", "")) for part in found(folder).parts.values())
    what = found(trainer_files(folder, numbers=numbers))
    assert what.kind == "sentence-transformers checkpoint"
    assert what.loads_as == f"SentenceTransformer({str(folder)!r})"
    assert says(what.lost, "parameters of the loss")
    assert says(what.resumable, "their number fits the weights")
    what = found(trainer_files(folder, numbers=numbers + 1000))
    assert says(what.resumable, "for 1,000 numbers more than the weights hold: the loss had parameters")
    what = found(trainer_files(folder, numbers=numbers // 2))
    assert says(what.resumable, "the rest was not trained")


def test_a_sentence_transformers_model(tmp_path: Path) -> None:
    what = found(make_model_folder(tmp_path / "model"))
    assert what.kind == "sentence-transformers model"
    assert says(what.lost, "begin at zero")


def test_adapters(tmp_path: Path) -> None:
    what = found(adapter(tmp_path / "adapter"))
    assert what.kind == "PEFT adapter"
    assert what.values["base_model"] == "some/base"
    assert says(what.lost, "adapter weights only")
    what = found(trainer_files(adapter(tmp_path / "checkpoint-500")))
    assert what.kind == "Hugging Face Trainer checkpoint of a PEFT adapter"


def test_the_checkpoint_of_an_adapter_says_what_resuming_takes(tmp_path: Path) -> None:
    """DeepKE's and LLaMA-Factory's: Hugging Face's Trainer around PEFT."""
    what = found(trainer_files(adapter(tmp_path / "checkpoint-500")))
    assert (what.values["lora_r"], what.values["lora_alpha"], what.values["step"]) == (8, 16, 500)
    assert says(what.resumable, "the adapter's weights: as the start of a new run (`model: ")
    assert says(what.resumable, "their number fits the weights")
    assert says(what.lost, "no digest says which weights it had")
    assert says(what.lost, "checkpoint_dir")
    assert what.problems == []
    write(what.root / "base_model.json", {"digest": "0123"})
    what = found(what.root)
    assert what.values["base_digest"] == "0123"
    assert not says(what.lost, "no digest")
    (what.root / "optimizer.pt").unlink()
    assert says(found(what.root).lost, "begin at zero")
    (what.root / "adapter_model.safetensors").unlink()
    what = found(what.root)
    assert what.loads_as == "nothing: it has no weights"
    assert says(what.problems, "adapter_model.safetensors is missing")


def test_an_adapter_as_a_pickle_or_without_its_configuration(tmp_path: Path) -> None:
    folder = trainer_files(adapter(tmp_path / "checkpoint-500"))
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"lora_A": Trap()}, folder / "adapter_model.bin")
    what = found(folder)
    assert what.kind == "Hugging Face Trainer checkpoint of a PEFT adapter"
    assert what.parts["adapter_model.bin"]["holds"] == "weights (pickle, not opened)"
    assert says(what.resumable, "once PEFT has loaded them")
    (folder / "adapter_config.json").unlink()
    what = found(folder)
    assert what.loads_as.startswith("nothing: adapter_config.json")
    assert says(what.problems, "rank, alpha and targets are not known")
    (folder / "adapter_model.bin").write_bytes(b"PK")
    assert says(found(folder).problems, "adapter_model.bin is cut or damaged")


def test_setfit_has_no_head_in_its_checkpoints(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "checkpoint-500")
    what = found(trainer_files(folder, log_history=[{"embedding_loss": 0.25, "step": 1}]))
    assert what.kind == "SetFit checkpoint"
    assert what.values["last_logged_loss"] == 0.25
    assert says(what.lost, "the classification head")
    whole = make_model_folder(tmp_path / "whole")
    write(whole / "config_setfit.json", {})
    torch.save(Trap(), whole / "model_head.pkl")
    what = found(whole)
    assert what.kind == "SetFit model"
    assert what.loads_as == f"SetFitModel.from_pretrained({str(whole)!r})"
    assert not says(what.lost, "the classification head")


def test_flag_embedding_is_known_by_its_arguments_and_its_heads(tmp_path: Path) -> None:
    folder = trainer_files(model(tmp_path / "checkpoint-500"))
    torch.save({"class": "FlagEmbedding.finetune.embedder.Arguments"}, folder / "training_args.bin")
    what = found(folder)
    assert what.kind == "FlagEmbedding checkpoint"
    assert says(what.lost, "by FlagEmbedding itself")
    m3 = model(tmp_path / "m3")
    torch.save(Trap(), m3 / "colbert_linear.pt")
    assert found(m3).kind == "FlagEmbedding model"


def test_deepspeed_keeps_everything_in_its_own_folder(tmp_path: Path) -> None:
    folder = trainer_files(tmp_path / "checkpoint-500")
    (folder / "optimizer.pt").unlink()
    (folder / "global_step500").mkdir()
    what = found(folder)
    assert says(what.resumable, "zero_to_fp32.py")
    assert not says(what.lost, "begin at zero")


def test_a_cross_encoder(tmp_path: Path) -> None:
    what = found(model(tmp_path / "reranker", "BertForSequenceClassification"))
    assert what.loads_as.startswith("CrossEncoder(")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder = trainer_files(model(tmp_path / "checkpoint-500"))
    (folder / "scheduler.pt").unlink()
    assert says(found(folder).lost, "skips them silently")
    (folder / "optimizer.pt").unlink()
    assert says(found(folder).lost, "begin at zero")
    (folder / "model.safetensors").unlink()
    assert says(found(folder).lost, "the weights: there are none")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_a_cut_file_is_one_line(tmp_path: Path, name: str) -> None:
    folder = trainer_files(model(tmp_path / "checkpoint-500"))
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    problems = found(folder).problems
    assert len(problems) == 1
    assert problems[0].startswith(f"{name} is cut or damaged")


def test_a_save_cut_short(tmp_path: Path) -> None:
    folder = trainer_files(model(tmp_path / "checkpoint-500"))
    write(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    (folder / "checkpoint-is-incomplete.txt").touch()
    (folder / "trainer_state.json").unlink()
    problems = found(folder).problems
    assert says(problems, "trainer_state.json, which is written last")
    assert says(problems, "checkpoint-is-incomplete.txt")
    assert says(problems, "model-00002-of-00002.safetensors, named in")
    renamed = trainer_files(model(tmp_path / "checkpoint-600"))
    assert says(found(renamed).problems, "trainer_state.json says 500")


def test_odd_documents_do_no_harm(tmp_path: Path) -> None:
    folder = trainer_files(model(tmp_path / "checkpoint-500"), log_history="none")
    write(folder / "config.json", {"architectures": 7})
    write(folder / "adapter_config.json", [1])
    assert says(found(folder).problems, "adapter_config.json is not a JSON object")
    assert found(folder).values["step"] == 500


def test_nothing_to_recognise(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    assert recognise(tmp_path) is None


def test_step_folders_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-1000", "checkpoint-500", "checkpoint-last"):
        (tmp_path / name).mkdir()
    assert [path.name for path in step_folders(tmp_path)] == ["checkpoint-500", "checkpoint-1000"]
