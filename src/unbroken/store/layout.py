"""The name of every file and folder in a run, in one place.

Names that begin with a dot are for us alone, ours to clean up or set aside; nothing reads them as results.
"""

from __future__ import annotations

FORMAT_VERSION = 1

RUN_FILE = "run.json"
RUN_COPY_FILE = ".run.json"  # the same bytes: read where run.json is damaged or missing
CONFIG_FILE = "config.yaml"
DATA_DIGESTS_FILE = "data.digests"
JOURNAL_FILE = "journal.jsonl"
LOCK_FILE = ".lock"
HOLDER_FILE = "holder.json"

CHECKPOINTS_FOLDER = "checkpoints"
CACHE_FOLDER = "cache"
EVAL_FOLDER = "eval"
MODEL_FOLDER = "model"  # the finished model in a run, and the loadable model in a checkpoint

MANIFEST_FILE = "MANIFEST.json"
STATE_FILE = "state.json"
SEGMENT_FILE = "segment.json"  # which process made a checkpoint, and where: no part of the state
OPTIMIZER_FILE = "optimizer.safetensors"
UNFINISHED_MODEL = "unfinished.json"  # in the model of a checkpoint that a later phase completes
EXTRA_FILE = "extra.safetensors"  # what else is trained: not the loadable model's
WEIGHTS_SUFFIX = ".safetensors"

UNFINISHED_PREFIX = ".tmp-"  # being written; left over, it belongs to a dead attempt
TRASH_PREFIX = ".trash-"  # being deleted
BROKEN_PREFIX = ".broken-"  # a checkpoint or a run.json that failed its checks; kept for people to look at
DRIFTED_PREFIX = ".drifted-"  # a checkpoint of steps that were done again with other results, as was accepted
FOREIGN_PREFIX = ".foreign-"  # another run's checkpoint that stood where ours had to go
TORN_PREFIX = "journal.torn-"  # an unfinished last record cut from the journal
EARLIER_PREFIX = ".earlier-"  # a journal that has grown apart from the one the run goes on with, here or in a mirror
RESTORING_FILE = ".restoring"  # there while a run is fetched from its mirror
MIRRORING_FILE = ".mirroring"  # in a mirror that holds no checkpoint yet, and no run.json therefore

JOURNAL_FOLDER = "journal"  # in a mirror that cannot append: pieces, named by the bytes they begin and end at
PIECE_SUFFIX = ".jsonl"


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` finished steps."""
    return f"{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step a checkpoint folder is named for, or None if the name is not one of ours."""
    if not (name.isascii() and name.isdigit()):
        return None
    step = int(name)
    return step if checkpoint_name(step) == name else None
