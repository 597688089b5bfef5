"""Every operation that must survive a crash, in one place, so that faults can be injected at each of them.

What the callers rely on (resume.md 2(c); fsync(2); Pillai et al., OSDI 2014; Rebello et al., ATC 2020):

* a file's bytes are durable after fsync of the file, its name only after fsync of the folder that holds it;
* rename within one folder happens or does not, and never shows half a file or half a folder;
* after a failed fsync the kernel marks the lost pages clean, so a second fsync of that file proves nothing:
  nothing here retries one, the caller discards the file and writes another.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from unbroken.base.errors import CannotContinueError, StorageError
from unbroken.base.fingerprint import digest_blocks
from unbroken.base.stopping import poll
from unbroken.store.layout import TRASH_PREFIX, UNFINISHED_PREFIX
from unbroken.store.system import RENAME_EXCHANGE, RENAME_NOREPLACE, UNSUPPORTED, renameat2, reserve, sync_file

BLOCK_BYTES = 4 << 20  # hashing and writing release the interpreter lock once per block
MISSING_OR_BAD = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EIO}
ADVICE = {
    errno.ENOSPC: "free some space on that disk and run the same command again",
    errno.EDQUOT: "the quota is used up: free some space and run the same command again",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check who owns the folder and its permissions"),
    errno.EROFS: "the disk is mounted read-only: choose another folder or remount it",
    errno.EIO: "the disk reported an error: check it, or move the run to another one",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "too many files are open on this machine",
}


class DamagedError(CannotContinueError):
    """A file does not hold what was written to it: cut short, changed, or never ours."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and XXH3-128 digest of a whole file."""

    size: int
    digest: str


@contextmanager
def refusals(doing: str, path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a `StorageError` that says what, where, why and what next."""
    try:
        yield
    except OSError as failure:
        reason = failure.strerror or str(failure)
        advice = ADVICE.get(failure.errno or 0, "check the disk and run the same command again")
        raise StorageError(f"cannot {doing} {path}: {reason}", next_step=advice) from failure


def create_file(path: Path, blocks: Iterable[bytes | memoryview], size: int | None = None) -> FileRecord:
    """Create `path` with the given bytes and make them durable; its *name* is durable after `sync_folder`.

    `size`, when known, is reserved beforehand so that a full disk is found out early. The file must not exist.
    The digest is that of the bytes handed to the operating system. Raises `StorageError`; what it leaves then
    must be discarded.
    """
    with refusals("write", path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if size:
                reserve(handle, size)
            state, written = xxhash.xxh3_128(), 0
            for block in blocks:
                view = memoryview(block).cast("B")
                for piece in (view[start : start + BLOCK_BYTES] for start in range(0, len(view), BLOCK_BYTES)):
                    state.update(piece)
                    write_fully(handle, piece)
                    written += len(piece)
            sync_file(handle)
        except BaseException:
            with suppress(OSError):
                os.close(handle)
            raise
        os.close(handle)  # close may report a delayed write error (NFS, quotas): not suppressed
    return FileRecord(written, state.hexdigest())


def write_fully(handle: int, data: memoryview) -> None:
    """Write all of `data`, however few bytes each call takes. Raises `OSError`."""
    while data:
        data = data[os.write(handle, data) :]


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. A file system that cannot is tolerated, with one warning."""
    with refusals("make durable", path):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        except OSError as failure:
            if failure.errno not in UNSUPPORTED:
                raise
            warnings.warn(f"{path}: this file system cannot sync folders; power loss may lose commits", stacklevel=2)
        finally:
            os.close(handle)


def make_folder(path: Path) -> None:
    """Create one folder that must not exist; its name is durable after `sync_folder` of its parent."""
    with refusals("create", path):
        os.mkdir(path, 0o777)


def make_folders(path: Path) -> None:
    """Create `path` and every missing ancestor, each of them durable."""
    with refusals("create", path):
        missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        with refusals("create", folder), suppress(FileExistsError):
            os.mkdir(folder, 0o777)
        sync_folder(folder.parent)


def make_parents(folder: Path, paths: Iterable[str]) -> None:
    """Create inside the new `folder` every folder that the relative `paths` need; durable after `sync_parents`."""
    for parent in reversed(_parents(paths)):
        make_folder(folder / parent)


def sync_parents(folder: Path, paths: Iterable[str]) -> None:
    """Make the names in every folder between `folder` and `paths` durable, the inner ones first."""
    for parent in _parents(paths):
        sync_folder(folder / parent)


def rename_new(source: Path, target: Path) -> bool:
    """Rename `source` to `target` and return True, or return False, changing nothing, if that name is taken.

    Durable after `sync_folder` of the folder. Raises `StorageError`.
    """
    with refusals("rename", source):
        renamed = _rename_no_replace(source, target)
        if renamed is None:
            # Nobody else takes the name in between: this process holds the run's lock.
            renamed = not os.path.lexists(target)
            if renamed:
                os.rename(source, target)
    return renamed


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step and return True, or False where that cannot be done. Raises `StorageError`."""
    with refusals("rename", one):
        return bool(renameat2(one, other, RENAME_EXCHANGE))


def replace_file(path: Path, *blocks: bytes | memoryview) -> None:
    """Give `path` the content `blocks`, durably; at every instant it is the old file or the new one, whole."""
    replace_with(path, blocks)


def replace_with(path: Path, blocks: Iterable[bytes | memoryview]) -> None:
    """As `replace_file`, block by block."""
    aside = path.with_name(f"{UNFINISHED_PREFIX}{path.name}-{nonce()}")
    try:
        create_file(aside, blocks)
        with refusals("replace", path):
            os.replace(aside, path)
    except BaseException:
        discard(aside)
        raise
    sync_folder(path.parent)


def set_aside(path: Path, prefix: str) -> Path:
    """Rename `path` to `<prefix><name>-<n>` beside it, durably, and return the new name. Raises `StorageError`."""
    target = _rename_numbered(path, path, prefix)
    sync_folder(path.parent)
    return target


def take_place(new: Path, path: Path, prefix: str) -> Path:
    """Give `new` the name `path`, and what has that name `<prefix><name>-<n>` beside it, durably; return that name.

    At every instant `path` is the old one or the new one, but for a moment where the file system cannot exchange
    names. Raises `StorageError`.
    """
    aside = _rename_numbered(new, path, prefix)  # the name that is to be that of the old one
    try:
        exchanged = exchange(aside, path)
    except StorageError:
        with suppress(StorageError):
            rename_new(aside, new)
        raise
    if not exchanged:
        rename_new(aside, new)
        aside = set_aside(path, prefix)
        rename_new(new, path)
    sync_folder(path.parent)
    return aside


def _rename_numbered(path: Path, old: Path, prefix: str) -> Path:
    """Rename `path` to the first free one of `<prefix><old>-0`, `<prefix><old>-1`, ... beside `old`, and return it."""
    number = 0
    while not rename_new(path, target := old.with_name(f"{prefix}{old.name.lstrip('.')}-{number}")):
        number += 1
    return target


def remove_tree(path: Path) -> None:
    """Remove a folder: first its name, durably, then its content: no half of it is ever seen under its name.

    Raises `StorageError`; a rest named `.trash-*` may then remain, and `sweep` removes it later.
    """
    trash = path if path.name.startswith(TRASH_PREFIX) else set_aside(path, f"{TRASH_PREFIX}{nonce()}-")
    with refusals("remove", trash):
        if trash.is_dir() and not trash.is_symlink():
            shutil.rmtree(trash)
        else:
            os.unlink(trash)


def discard(path: Path) -> None:
    """Remove a file or folder of a failed attempt as far as the disk allows; `sweep` finds the rest later."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            os.unlink(path)


def sweep(folder: Path, prefixes: tuple[str, ...]) -> list[str]:
    """Remove what dead attempts left in `folder`: entries whose names begin with one of `prefixes`.

    Return in words what would not go: untidy, but no reason to stop. Only for the holder of the run's lock.
    """
    problems = []
    for name in list_folder(folder):
        if name.startswith(prefixes):
            try:
                remove_tree(folder / name)
            except StorageError as failure:
                problems.append(str(failure))
    return problems


def list_folder(folder: Path) -> list[str]:
    """Return the sorted names in a folder, none if it does not exist. Raises `StorageError`."""
    with refusals("read", folder):
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []


def open_append(path: Path) -> int:
    """Open `path` for reading and for appending whole records, creating it durably. Raises `StorageError`."""
    with refusals("open", path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    sync_folder(path.parent)
    return handle


def cut_file(handle: int, size: int) -> None:
    """Shorten an open file to `size` bytes. Raises `OSError`."""
    os.ftruncate(handle, size)


@contextmanager
def opened(root: Path, relative: str) -> Iterator[tuple[int, int]]:
    """Open the file at `relative` under `root` for reading; give its descriptor and size.

    Links are not followed below `root`, and only regular files are opened: a checkpoint from elsewhere cannot make
    us read another place, or wait on a pipe. Raises `DamagedError` for such a file or a missing one.
    """
    path = root / relative
    for place in [*reversed(Path(relative).parents[:-1]), Path(relative)]:
        refuse_link(root / place)
    with reading(path):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with reading(path):
            status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(f"{path} is not a regular file")
        yield handle, status.st_size
    finally:
        with suppress(OSError):
            os.close(handle)


def refuse_link(path: Path) -> None:
    """Raise `DamagedError` if `path` is a symbolic link, or if the disk cannot even say what it is."""
    with reading(path):
        linked = path.is_symlink()
    if linked:
        raise DamagedError(f"{path} is a symbolic link")


def read_into(handle: int, target: memoryview, path: Path) -> Iterator[memoryview]:
    """Fill `target` from an open file, yielding each piece once it is there.

    Raises `DamagedError` if the file ends early or cannot be read.
    """
    filled = 0
    while filled < len(target):
        poll()
        piece = target[filled : filled + BLOCK_BYTES]
        with reading(path):
            count = os.readv(handle, [piece])
        if count == 0:
            raise DamagedError(f"{path} ends {len(target) - filled} bytes early")
        yield piece[:count]
        filled += count


def read_blocks(handle: int, size: int, path: Path) -> Iterator[memoryview]:
    """Yield the first `size` bytes of an open file through one small buffer; each block is gone with the next."""
    buffer = memoryview(bytearray(min(size, BLOCK_BYTES)))
    for start in range(0, size, BLOCK_BYTES):
        yield from read_into(handle, buffer[: size - start], path)


def read_whole(root: Path, relative: str, limit: int = sys.maxsize) -> bytes:
    """Return the content of a regular file under `root`.

    Raises `DamagedError` as `opened` and `read_into` do, and for a file of more than `limit` bytes.
    """
    with opened(root, relative) as (handle, size):
        if size > limit:
            raise DamagedError(f"{root / relative} has {size:,} bytes, too many for what it should be")
        return b"".join(map(bytes, read_blocks(handle, size, root / relative)))


def digest_file(root: Path, relative: str) -> FileRecord:
    """Return size and digest of a regular file under `root`. Raises `DamagedError` as `read_whole` does."""
    with opened(root, relative) as (handle, size):
        return FileRecord(size, digest_blocks(read_blocks(handle, size, root / relative)))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tell a file that is damaged (`DamagedError`) from one that only cannot be read now (`StorageError`)."""
    try:
        with refusals("read", path):
            yield
    except StorageError as failure:
        if isinstance(failure.__cause__, OSError) and failure.__cause__.errno in MISSING_OR_BAD:
            raise DamagedError(failure.what) from failure
        raise


def free_bytes(path: Path) -> int:
    """Return the bytes this user may still write on the disk of `path`. Raises `StorageError`."""
    with refusals("measure", path):
        status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def free_inodes(path: Path) -> int | None:
    """Return how many files may still be created there, or None where the file system has no such limit."""
    with refusals("measure", path):
        status = os.statvfs(path)
    return status.f_favail if status.f_files else None


def nonce() -> str:
    """Return 8 hexadecimal digits that no other attempt has, drawn from the system, not from a seed."""
    return secrets.token_hex(4)


def _parents(paths: Iterable[str]) -> list[Path]:
    """Return the folders that hold `paths`, the inner ones first, without the outermost."""
    found = {parent for path in paths for parent in Path(path).parents if parent != Path()}
    return sorted(found, key=lambda folder: (-len(folder.parts), folder))


def _rename_no_replace(source: Path, target: Path) -> bool | None:
    """Rename unless the target exists, and say whether; None where the system or the file system has no such call."""
    return renameat2(source, target, RENAME_NOREPLACE)
