"""A model folder of its own, outside any run: written aside, durably, and there whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from unbroken.store import files
from unbroken.store.layout import TRASH_PREFIX, UNFINISHED_PREFIX
from unbroken.store.tensors import arrange, bytes_of, header


def replace_model(root: Path, documents: Mapping[str, bytes], tensor_files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give `root` these files and no others: documents by relative path, and tensors by file and key.

    At every instant `root` is the old folder or the new one, but for a moment where the file system cannot exchange
    names. Raises `StorageError`; the old folder then stands.
    """
    root = root.resolve()
    files.make_folders(root.parent)
    aside = root.with_name(f"{UNFINISHED_PREFIX}{root.name}-{files.nonce()}")
    try:
        write_folder(aside, documents, tensor_files)
        old = None if files.rename_new(aside, root) else files.take_place(aside, root, TRASH_PREFIX)
    except BaseException:
        files.discard(aside)
        raise
    files.sync_folder(root.parent)
    if old is not None:
        files.remove_tree(old)


def write_folder(
    folder: Path, documents: Mapping[str, bytes], tensor_files: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write all files into the new `folder`; all of it is durable but its own name."""
    files.make_folder(folder)
    files.make_parents(folder, [*documents, *tensor_files])
    for path, content in documents.items():
        files.create_file(folder / path, [content])
    for path, tensors in tensor_files.items():
        slots = arrange(tensors)
        data = (bytes_of(tensors[slot.key].detach().cpu().contiguous()) for slot in slots)
        files.create_file(folder / path, [header(slots), *data])
    files.sync_parents(folder, [*documents, *tensor_files])
    files.sync_folder(folder)
