"""Verify a run: every digest, and recorded steps made again from its inputs; nothing in the run is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from unbroken.base.errors import CannotContinueError, ConfigError, DataError, VerificationError
from unbroken.run import contract
from unbroken.run.verification import Problem, Verification
from unbroken.store import layout
from unbroken.store.files import DamagedError
from unbroken.store.run import read_run
from unbroken.tasks.common import EVALUATION_DECIDES, RunConfig
from unbroken.tasks.contract import compose_contract, first_changed_row, resolve_threads
from unbroken.tasks.request import Request, resolve_config
from unbroken.tasks.task import Prepared, Progress, find_task

if TYPE_CHECKING:  # both bring torch
    from unbroken.run.evidence import Evidence
    from unbroken.run.verify import Window

INPUTS = ("model", "train_data", "eval_data", "teacher")  # what may have moved since; everything else is as recorded
LOOP = "loop"
LOOP_NOTE = "no step was replayed: the steps of a Loop are your own code"


def verify(
    run: str | os.PathLike[str],
    *,
    step: int | None = None,
    steps: int | None = None,
    everything: bool = False,
    inputs: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda *args: None,
) -> Verification:
    """Compare all digests of a run, then make recorded steps again and compare them, and tensors, to the bit.

    `step` is the finished step to start after, `steps` how many to make; `everything` makes all that can be reached.
    `inputs` says where model, train_data, eval_data or teacher are now, if not where they were. What is not as
    recorded is in `problems` of what is returned; `failure` is the error for it. Needs no lock, writes nothing into
    the run.

    Raises `ConfigError` for what is no run or no input, `VerificationError` if run.json and its copy were changed,
    `CannotContinueError` if a newer version of unbroken wrote the run.
    """
    root, asked = Path(run), everything or step is not None or steps is not None
    for key in inputs or {}:
        if key not in INPUTS:
            raise ConfigError(
                f"{key} cannot be set here: a run is verified with what it recorded",
                next_step=f"only where inputs are now can be said: {', '.join(INPUTS)}",
            )
    document = _document(root)
    task = str(document["config"].get("task"))
    if task == LOOP and asked:
        raise CannotContinueError(
            f"{root} cannot be replayed here: the steps of a Loop are your own code",
            next_step="leave out step, --steps and --all to compare its digests, or run your script again",
        )
    from unbroken.run.digests import check_digests

    found = Verification(str(root), document["run_id"], task)
    evidence = check_digests(root, document, found, say)
    if task == LOOP:
        found.unchecked.append(LOOP_NOTE)
        return found
    try:
        config, prepared = _inputs(root, document, inputs or {})
    except (ConfigError, DataError) as failure:
        found.not_replayed = str(failure)
        return found
    threads = resolve_threads(config, document["contract"])
    if not _as_recorded(root, document, config, prepared, threads, found):
        found.unchecked.append("no step was replayed: with other inputs it would be another run")
        return found
    from unbroken.run.verify import open_windows
    from unbroken.tasks.device import resolve_device

    try:
        windows = open_windows(root, evidence, found, step=step, steps=steps, everything=everything)
        resolve_device(config.device, root)
        _replay(root, prepared, threads, evidence, windows, found, say, progress)
    except (ConfigError, DataError, CannotContinueError) as failure:
        found.not_replayed = str(failure)
    return found


def _document(root: Path) -> dict[str, Any]:
    try:
        document = read_run(root)
    except DamagedError as damage:
        raise VerificationError(damage.what, why=damage.why, next_step="put the original file back") from damage
    if document is None:
        raise ConfigError(f"{root} is no run (it has no {layout.RUN_FILE})", next_step="give the folder of a run")
    return document


def _replay(
    root: Path,
    prepared: Prepared,
    threads: int,
    evidence: Evidence,
    windows: list[Window],
    found: Verification,
    say: Callable[[str], None],
    progress: Progress,
) -> None:
    """Build the job, with a cache of its own, and replay."""
    from unbroken.run import environment
    from unbroken.run.verify import replay

    environment.pin(threads)
    build = prepared.load()
    with TemporaryDirectory(prefix="unbroken-verify-") as name:
        overlay(root / layout.CACHE_FOLDER, Path(name))
        job = build(Path(name), progress)
        for window in windows:
            first = window.start + 1
            span = f"step {first}" if window.last <= first else f"steps {first} to {window.last}"
            say(f"replaying {span}: {window.chosen}")
        replay(job, root, evidence, windows, found, progress)


def _inputs(root: Path, document: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[RunConfig, Prepared]:
    """Read data and model files anew, not from the run's cache."""
    values = {**document["config"], "output_dir": str(root), **inputs}
    if not any(document["config"].get(key) for key in EVALUATION_DECIDES) and "eval_data" not in inputs:
        values["eval_data"] = None  # nothing is evaluated here, and it may be gone
    config = resolve_config(Request(values, dict.fromkeys(values, str(root))), document)
    return config, find_task(config.task).prepare(config, None)


def _as_recorded(
    root: Path,
    document: Mapping[str, Any],
    config: RunConfig,
    prepared: Prepared,
    threads: int,
    found: Verification,
) -> bool:
    """Compare the inputs with the contract, and the rows with the row digests; say what differs."""
    recorded, asked = document["contract"], compose_contract(config, prepared, threads, config.device)
    if recorded["data"] != asked["data"]:
        found.data = "changed"
        where = first_changed_row(root, prepared.row_digests)
        what = f"the training data are not those the run was started with: {where}"
        found.problems.append(Problem(what, "", None, "train_data", "put the data back"))
    else:
        found.data = "as recorded"
        _compare_rows(root, prepared, found)
    changed = [one for one in contract.differences(recorded, asked) if not one[0].startswith("data.")]
    found.base_model = "changed" if any(path.startswith("model.") for path, _, _ in changed) else "as recorded"
    for path, old, new in changed:
        name = path.removeprefix("config.").removesuffix(contract.DIGEST)
        what = f"{name} is not what the run was started with: {str(old)[:12]} then, {str(new)[:12]} now"
        found.problems.append(Problem(what, "", None, name, _way_out(name)))
    return found.data == "as recorded" and not changed


def _way_out(name: str) -> str:
    if name in (*INPUTS, "tokenizer"):
        return f"put it back, or say where it is: --set {name if name in INPUTS else 'model'}=PATH"
    return "use the version of unbroken that made the run"


def _compare_rows(root: Path, prepared: Prepared, found: Verification) -> None:
    try:
        content = (root / layout.DATA_DIGESTS_FILE).read_bytes()
    except OSError:
        return  # named already
    if content and content != prepared.row_digests and len(content) == len(prepared.row_digests):
        what = f"{layout.DATA_DIGESTS_FILE} is damaged: the data are as recorded, the digests of their rows are not"
        found.problems.append(Problem(what, "a changed row could not be named", None, layout.DATA_DIGESTS_FILE))


def overlay(cache: Path, folder: Path) -> None:
    """Make `folder` look like `cache`: what is read there comes from the cache, what is written there stays there."""
    for place, _, names in os.walk(cache):
        inside = folder / Path(place).relative_to(cache)
        inside.mkdir(exist_ok=True)
        for name in names:
            os.symlink(Path(place, name).resolve(), inside / name)
