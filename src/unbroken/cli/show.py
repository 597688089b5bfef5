"""`unbroken show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def show(path: Path | None = None, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """List runs, or describe a run, a checkpoint, or any other trainer's checkpoint folder.

    Of a foreign folder (Hugging Face Trainer, sentence-transformers, SetFit, FlagEmbedding, PEFT) it says what is
    there, what could be resumed and what would be lost. Nothing is changed, locked or unpickled; a run may be
    training meanwhile.

    **Examples**

        unbroken show                         all runs in runs/, or here
        unbroken show runs/debian             segments, losses, checkpoints, proof
        unbroken show runs/debian/checkpoints/00000500
        unbroken show output/checkpoint-500   a checkpoint of another trainer
        unbroken show --json | jq '.runs[] | select(.state == "killed") | .resume'

    Parameters
    ----------
    path
        A folder of runs, a run, a checkpoint, or a model folder. Default: runs/, or this folder.
    json
        Print one JSON object.
    """
    from unbroken.cli.output import print_json
    from unbroken.run.summary import describe_run, find_runs, list_run, looks_like_run
    from unbroken.store import layout
    from unbroken.views.show import run_text, runs_text

    folder = require_folder(path)
    if folder.name == layout.CHECKPOINTS_FOLDER and looks_like_run(folder.resolve().parent):
        folder = folder.resolve().parent
    if looks_like_run(folder):
        run = describe_run(folder)
        print_json(run.flat()) if json else print(run_text(run))
        return 0
    runs = [list_run(root) for root in find_runs(folder)]
    if runs:
        print_json({"runs": [run.flat() for run in runs]}) if json else print(runs_text(runs))
        return 0
    sections = describe_folder(folder)
    if json:
        from unbroken.run.findings import flat

        print_json(flat(sections) | {"warnings": [text for section in sections for text in section.warnings]})
    else:
        from unbroken.views.text import page

        print(page(sections))
    return 0


def require_folder(path: Path | None) -> Path:
    """Return the folder meant. Raises `ConfigError` if there is none."""
    from unbroken.base.config import closest
    from unbroken.base.errors import ConfigError

    if path is None:
        return Path("runs") if Path("runs").is_dir() else Path()
    if path.is_dir():
        return path
    if path.exists():
        raise ConfigError(f"{path} is a file", next_step=f"give its folder: unbroken show {path.parent}")
    there = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = closest(path.name, there)
    raise ConfigError(f"there is no folder {path}", next_step=f"did you mean {path.parent / near}?" if near else "")


def describe_folder(folder: Path) -> list[Any]:
    """Return the sections of a checkpoint of ours, of a foreign one, or of a folder of foreign ones."""
    from unbroken.base.errors import ConfigError
    from unbroken.bridges.foreign import recognise, step_folders
    from unbroken.run.checkpoint_page import describe_checkpoint
    from unbroken.run.findings import Section
    from unbroken.store import layout

    ours = layout.step_of(folder.resolve().name) is not None and folder.resolve().parent.name == "checkpoints"
    if ours or (folder / layout.MANIFEST_FILE).is_file():
        model = folder / layout.MODEL_FOLDER
        found = recognise(model) if model.is_dir() else None
        loads = [Section("model", {"path": str(model), "loads_as": found.loads_as})] if found else []
        return describe_checkpoint(folder) + loads
    foreign = recognise(folder)
    if foreign is not None:
        return foreign.sections()
    below = [found for found in map(recognise, step_folders(folder)) if found is not None]
    if not below:
        raise ConfigError(
            f"{folder} holds no run, no checkpoint and no model",
            next_step="give the folder of one, or of runs: unbroken show runs",
        )
    rows = {found.root.name: {"kind": found.kind, "problems": "; ".join(found.problems)} for found in below}
    newest = [found for found in below if not found.problems] or below
    return [Section("checkpoints", {"checkpoint": rows}), *newest[-1].sections()]
