"""A model of what a disk may hold after a power cut, generated from the log of what a process did to it.

What POSIX promises, and no more: the bytes of a file are durable after fsync of the file, a name after fsync of its
folder, and one change of names within a folder happens or does not. Whatever is not yet durable may have reached the
disk or not, in any order: data absent, in part, as zeros; each name there or not there. Real file systems keep more
order than this; what survives here survives there. The idea is that of ALICE (Pillai et al., OSDI 2014).
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unbroken.store import files
from unbroken.store.system import RENAME_EXCHANGE, renameat2

PAGE = 4096
ROOT = 0

Tree = dict[str, "Tree | bytes"]
Choose = Callable[[int], int]  # a number below the one given


@dataclass(frozen=True)
class Op:
    """Something a process did. `path` is where the thing was then; `node` is the file or folder it was done to."""

    kind: str  # "create", "names", "write", "cut", "reserve", "sync"; "begin", "acknowledge"
    node: int
    path: str = ""
    names: tuple[tuple[str, int | None], ...] = ()  # entries of the folder `node` and what they become, all at once
    offset: int = 0
    data: bytes = b""
    is_folder: bool = False
    said: Any = None


@dataclass
class Node:
    """A file or a folder: what is durable of it, and what was done since."""

    is_folder: bool
    content: bytes = b""
    entries: dict[str, int] = field(default_factory=dict)
    pending: list[Op] = field(default_factory=list)


class Disk:
    """Files and folders after some operations, each with what is durable of it and what is not yet."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {ROOT: Node(is_folder=True)}

    def apply(self, op: Op) -> None:
        if op.kind == "create":
            self.nodes[op.node] = Node(op.is_folder)
        elif op.kind == "sync":
            node = self.nodes[op.node]
            if node.is_folder:
                node.entries = entries_after(node.entries, node.pending)
            else:
                node.content = content_after(node.content, node.pending)
            node.pending = []
        elif op.kind not in ("begin", "acknowledge"):
            self.nodes[op.node].pending.append(op)

    def tree(self, names: Callable[[Node], dict[str, int]], data: Callable[[Node], bytes], start: int = ROOT) -> Tree:
        """Return what is found below `start` if folders hold `names` and files hold `data`."""
        found: Tree = {}
        for name, number in sorted(names(self.nodes[start]).items()):
            node = self.nodes[number]
            found[name] = self.tree(names, data, number) if node.is_folder else data(node)
        return found

    def live(self) -> Tree:
        """Return what a process sees."""
        return self.tree(live_names, live_data)

    def after_power_loss(self, choose: Choose) -> Tree:
        """Return what may be found after a power cut; `choose` decides what became of all that was not durable."""
        return self.tree(lambda node: surviving_names(node, choose), lambda node: surviving_data(node, choose))

    def corners(self) -> Iterator[Tree]:
        """Yield the corner cases: all names gone or there; all data gone, zeros, or there."""
        for names in (durable_names, live_names):
            for data in (durable_data, zeroed_data, live_data):
                yield self.tree(names, data)

    def single_changes(self) -> Iterator[Tree]:
        """For each change that is not durable, yield the state without it alone, and the state with it alone."""
        pending = [op for node in self.nodes.values() for op in node.pending]
        for one in pending:
            for lost in (True, False):
                yield self.tree(
                    lambda node, one=one, lost=lost: entries_after(  # type: ignore[misc]
                        node.entries, [op for op in node.pending if (op is one) != lost]
                    ),
                    lambda node, one=one, lost=lost: content_after(  # type: ignore[misc]
                        node.content, [op for op in node.pending if (op is one) != lost]
                    ),
                )


def entries_after(entries: dict[str, int], ops: list[Op]) -> dict[str, int]:
    found: dict[str, int | None] = dict(entries)
    for op in ops:
        found.update(op.names)
    return {name: number for name, number in found.items() if number is not None}


def content_after(content: bytes, ops: list[Op]) -> bytes:
    for op in ops:
        if op.kind == "cut":
            content = content[: op.offset].ljust(op.offset, b"\0")
        elif op.kind == "reserve":
            content = content.ljust(op.offset, b"\0")
        else:
            content = content.ljust(op.offset, b"\0")
            content = content[: op.offset] + op.data + content[op.offset + len(op.data) :]
    return content


def durable_names(node: Node) -> dict[str, int]:
    return node.entries


def live_names(node: Node) -> dict[str, int]:
    return entries_after(node.entries, node.pending)


def durable_data(node: Node) -> bytes:
    return node.content


def live_data(node: Node) -> bytes:
    return content_after(node.content, node.pending)


def zeroed_data(node: Node) -> bytes:
    """The file has its new size, and no byte of what is new has arrived."""
    size = len(live_data(node))
    return node.content[:size].ljust(size, b"\0")


def surviving_names(node: Node, choose: Choose) -> dict[str, int]:
    return entries_after(node.entries, [op for op in node.pending if choose(2)])


def surviving_data(node: Node, choose: Choose) -> bytes:
    """Choose one of: nothing new, all of it, all up to some byte, or pages in any mixture of old (or zero) and new."""
    if not node.pending:
        return node.content
    sort = choose(4)
    if sort < 2:
        return live_data(node) if sort else node.content
    some = node.pending[: choose(len(node.pending)) + 1]
    after = content_after(node.content, some)
    if sort == 2:
        place = choose(len(after) + 1)
        return after[:place] + node.content[place:]
    old = node.content[: len(after)].ljust(len(after), b"\0")
    return b"".join((old, after)[choose(2)][start : start + PAGE] for start in range(0, len(after), PAGE))


def write_tree(tree: Tree, folder: Path) -> None:
    """Put a tree on the real disk, at `folder`, which must not exist."""
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            write_tree(content, folder / name)


class Recorder:
    """The log of what this process does to files under `root`; used by `recording`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[Op] = []
        self._turn = threading.RLock()
        self._disk = Disk()
        self._handles: dict[int, int] = {}
        self._adopt_tree(root, ROOT)
        for node in self._disk.nodes:
            self._do(Op("sync", node))
        self._do(Op("begin", ROOT))

    def acknowledge(self, said: Any) -> None:
        """Note that from here on `said` was promised."""
        self._do(Op("acknowledge", ROOT, said=said))

    def _do(self, op: Op) -> None:
        self.log.append(op)
        self._disk.apply(op)

    def _adopt_tree(self, folder: Path, number: int) -> None:
        for path in sorted(folder.iterdir()):
            child = self._make(number, path.name, path, is_folder=path.is_dir())
            if path.is_dir():
                self._adopt_tree(path, child)
            else:
                self._do(Op("write", child, str(path), data=path.read_bytes()))

    def _make(self, parent: int, name: str, path: Path, *, is_folder: bool) -> int:
        number = len(self._disk.nodes)
        self._do(Op("create", number, str(path), is_folder=is_folder))
        self._do(Op("names", parent, str(path), names=((name, number),)))
        return number

    def _entries(self, number: int) -> dict[str, int]:
        node = self._disk.nodes[number]
        return entries_after(node.entries, node.pending)

    def _find(self, path: Any, dir_fd: int | None = None) -> tuple[int, str, int | None] | None:
        """Return the folder's number, the name in it and what has that name; None for a path outside."""
        if dir_fd is not None:
            parent = self._handles.get(dir_fd)
            return None if parent is None else (parent, str(path), self._entries(parent).get(str(path)))
        place = Path(os.path.abspath(os.fsdecode(path)))
        if place == self.root:
            return ROOT, "", ROOT
        if not place.is_relative_to(self.root):
            return None
        parent = ROOT
        for name in place.relative_to(self.root).parts[:-1]:
            parent = self._entries(parent)[name]
        found = self._entries(parent).get(place.name)
        if found is None and os.path.isfile(place):  # made in a way that is not watched: not durable, but there
            found = self._make(parent, place.name, place, is_folder=False)
            self._do(Op("write", found, str(place), data=place.read_bytes()))
        return parent, place.name, found

    def open(self, original: Any, path: Any, flags: int, *more: Any, dir_fd: int | None = None) -> int:
        known = self._find(path, dir_fd) if flags & os.O_CREAT or dir_fd is not None else None
        handle: int = original(path, flags, *more, dir_fd=dir_fd)
        found = self._find(path, dir_fd) if known is None else known
        if found is not None:
            parent, name, number = found
            if number is None:
                number = self._make(parent, name, Path(os.fsdecode(path)), is_folder=False)
            self._handles[handle] = number
        else:
            self._handles.pop(handle, None)
        return handle

    def dup(self, original: Any, handle: int) -> int:
        copy: int = original(handle)
        self._handles.pop(copy, None)
        if handle in self._handles:
            self._handles[copy] = self._handles[handle]
        return copy

    def close(self, original: Any, handle: int) -> None:
        self._handles.pop(handle, None)
        original(handle)

    def write(self, original: Any, handle: int, data: Any) -> int:
        number = self._handles.get(handle)
        count: int = original(handle, data)
        if number is not None:
            offset = os.lseek(handle, 0, os.SEEK_CUR) - count
            self._do(Op("write", number, offset=offset, data=bytes(data[:count])))
        return count

    def posix_fallocate(self, original: Any, handle: int, offset: int, size: int) -> None:
        original(handle, offset, size)
        if handle in self._handles:
            self._do(Op("reserve", self._handles[handle], offset=offset + size))

    def ftruncate(self, original: Any, handle: int, size: int) -> None:
        original(handle, size)
        if handle in self._handles:
            self._do(Op("cut", self._handles[handle], offset=size))

    def fsync(self, original: Any, handle: int) -> None:
        original(handle)
        if handle in self._handles:
            self._do(Op("sync", self._handles[handle], os.readlink(f"/proc/self/fd/{handle}")))

    def mkdir(self, original: Any, path: Any, *more: Any, **named: Any) -> None:
        original(path, *more, **named)
        found = self._find(path)
        if found is not None and found[1]:
            self._make(found[0], found[1], Path(path), is_folder=True)

    def unlink(self, original: Any, path: Any, *, dir_fd: int | None = None) -> None:
        found = self._find(path, dir_fd)
        original(path, dir_fd=dir_fd)
        if found is not None:
            self._do(Op("names", found[0], str(path), names=((found[1], None),)))

    def renamed(self, original: Any, source: Any, target: Any, flags: int = 0) -> Any:
        """`os.replace`, `os.rename` and renameat2."""
        old, new = self._find(source), self._find(target)
        answer = original(source, target, flags) if original is renameat2 else original(source, target)
        if old is not None and new is not None and answer in (None, True):
            assert old[0] == new[0], "a rename from one folder to another is not part of the model"
            left = new[2] if flags == RENAME_EXCHANGE else None
            self._do(Op("names", old[0], str(target), names=((new[1], old[2]), (old[1], left))))
        return answer


@contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """Log what this process does under `root`, a folder that exists; what is in it already is durable."""
    recorder = Recorder(root.resolve())
    watched = {name: getattr(os, name) for name in ("open", "dup", "close", "write", "ftruncate", "fsync", "mkdir")}
    watched |= {name: getattr(os, name) for name in ("posix_fallocate", "unlink", "rmdir", "replace", "rename")}
    handlers = {"rmdir": "unlink", "replace": "renamed", "rename": "renamed"}

    def watch(original: Any, handler: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            with recorder._turn:
                return handler(original, *arguments, **named)

        return call

    try:
        for name, original in watched.items():
            setattr(os, name, watch(original, getattr(recorder, handlers.get(name, name))))
        files.renameat2 = watch(renameat2, recorder.renamed)
        yield recorder
    finally:
        for name, original in watched.items():
            setattr(os, name, original)
        files.renameat2 = renameat2


def read_tree(folder: Path) -> Tree:
    """Return what is on the real disk."""
    return {
        path.name: read_tree(path) if stat.S_ISDIR(path.lstat().st_mode) else path.read_bytes()
        for path in sorted(folder.iterdir())
    }


def replace_tree(tree: Tree, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    write_tree(tree, folder)
