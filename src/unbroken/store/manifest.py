"""MANIFEST.json: what a checkpoint consists of, down to the digest of each file and each tensor.

It is written last and carries its own digest, so a folder with a sound manifest was once complete; whether it
still is, the digests tell. It names its run and step: files cannot be swapped between checkpoints unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from unbroken.base.errors import CannotContinueError
from unbroken.base.fingerprint import canonical, digest
from unbroken.base.reading import MAX_DOCUMENT_BYTES
from unbroken.store.files import DamagedError, FileRecord, digest_file, opened, read_whole, refuse_link
from unbroken.store.journal import Mark
from unbroken.store.layout import FORMAT_VERSION, MANIFEST_FILE, SEGMENT_FILE, step_of


class ForeignError(CannotContinueError):
    """A checkpoint of another run: sound or not, it is not ours to restore, move or delete."""


@dataclass(frozen=True)
class TensorRecord:
    """Where one tensor is and what its bytes were."""

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The content of one checkpoint; `files` by path inside it, `tensors` by fully qualified name."""

    run_id: str
    step: int
    files: Mapping[str, FileRecord]
    tensors: Mapping[str, TensorRecord]
    journal: Mark

    def encode(self) -> bytes:
        """Return the bytes of MANIFEST.json."""
        body = {"format": FORMAT_VERSION, **asdict(self)}
        return canonical({**body, "digest": digest(canonical(body))}) + b"\n"

    def same_content(self, other: Manifest) -> bool:
        """Return whether both hold the same state; which process made them, and when, may differ."""
        return (self.run_id, self.step, self._state_files(), self.tensors) == (
            other.run_id,
            other.step,
            other._state_files(),
            other.tensors,
        )

    def _state_files(self) -> dict[str, FileRecord]:
        return {path: record for path, record in self.files.items() if path != SEGMENT_FILE}


SHAPE_OF_MANIFEST = TypeAdapter(Manifest)


def decode(data: bytes, place: str) -> Manifest:
    """Return the manifest whose bytes are `data`.

    Raises `DamagedError` unless they are exactly what was once written, naming only paths inside the checkpoint,
    and `CannotContinueError` for a format of the future, which is not damage.
    """
    try:
        body = json.loads(data)
        sound = isinstance(body, dict) and body.pop("digest") == digest(canonical(body))
    except (ValueError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise DamagedError(f"{place} does not match its own digest")
    if body.get("format") != FORMAT_VERSION:
        raise CannotContinueError(
            f"{place} has format version {body.get('format')}; this version of unbroken reads {FORMAT_VERSION}",
            next_step="use the version of unbroken that wrote it",
        )
    try:
        manifest = SHAPE_OF_MANIFEST.validate_python(body)
    except ValidationError as failure:
        raise DamagedError(f"{place} is not a manifest: {failure.errors()[0]['msg']}") from None
    if manifest.encode() != data:
        raise DamagedError(f"{place} is not written the way manifests are")
    for path in manifest.files:
        if not stays_inside(path):
            raise DamagedError(f"{place} names {path!r}, which is not a plain path inside the checkpoint")
    for name, tensor in manifest.tensors.items():
        if tensor.file not in manifest.files:
            raise DamagedError(f"{place} puts tensor {name!r} into {tensor.file!r}, which it does not list")
    return manifest


def stays_inside(path: str) -> bool:
    """Return whether a path of a manifest is relative, plain, and leads to no other place than it says."""
    parts = PurePosixPath(path).parts
    plain = bool(parts) and "/".join(parts) == path and "\0" not in path
    return plain and not path.startswith("/") and ".." not in parts and path != MANIFEST_FILE


def read_manifest(folder: Path, run_id: str | None = None) -> Manifest:
    """Read the manifest of a checkpoint and make sure that it is that of this folder and, if given, of this run.

    Raises `DamagedError`, `ForeignError`, or `CannotContinueError` as `decode` does.
    """
    refuse_link(folder)
    manifest = decode(read_whole(folder, MANIFEST_FILE, MAX_DOCUMENT_BYTES), str(folder / MANIFEST_FILE))
    if run_id is not None and manifest.run_id != run_id:
        raise ForeignError(f"{folder} belongs to another run ({manifest.run_id})")
    step = step_of(folder.name)
    if step is not None and manifest.step != step:
        raise DamagedError(f"{folder} holds the checkpoint of step {manifest.step}")
    return manifest


def differences(folder: Path, manifest: Manifest, *, digests: bool = True) -> list[str]:
    """Return in words how the files of a checkpoint differ from its manifest; none if they do not.

    Without `digests` only presence, kind and size are looked at: enough for files this process wrote itself.
    Files the manifest does not name are nobody's business.
    """
    found = []
    for path, expected in sorted(manifest.files.items()):
        try:
            actual = _assumed(folder, path, expected)
            if digests and actual == expected:  # a file of another size is not read, however large
                actual = digest_file(folder, path)
        except DamagedError as damage:
            found.append(damage.what)
            continue
        if actual != expected:
            found.append(describe_difference(folder / path, expected, actual))
    return found


def describe_difference(path: Path, expected: FileRecord, actual: FileRecord) -> str:
    """Return how a file differs from its record, in words."""
    if actual.size != expected.size:
        return f"{path} has {actual.size} bytes instead of {expected.size}"
    return f"{path} does not hold the bytes that were written (digest differs)"


def _assumed(folder: Path, path: str, expected: FileRecord) -> FileRecord:
    with opened(folder, path) as (_, size):
        return FileRecord(size, expected.digest)
