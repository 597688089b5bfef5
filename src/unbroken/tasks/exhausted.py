"""Memory that ran out in the middle of a run: what stands, and how to go on with less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from unbroken.base.errors import StorageError, TrainingError
from unbroken.run.folder import RunFolder
from unbroken.run.preflight import smaller_chunks

PHRASES = ("out of memory", "can't allocate memory", "could not create a memory")  # torch's, CPU and CUDA, and oneDNN's


@contextmanager
def explained(folder: RunFolder) -> Iterator[None]:
    """Turn a want of memory inside the block into a `TrainingError` that offers what needs less of it."""
    try:
        yield
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
        raise out_of_memory(folder, failure) from failure


def is_out_of_memory(failure: Exception) -> bool:
    """Tell whether a failure is a want of memory; torch has a class of its own for GPUs only."""
    return isinstance(failure, MemoryError) or any(phrase in str(failure) for phrase in PHRASES)


def out_of_memory(folder: RunFolder, failure: Exception) -> TrainingError:
    """Return the error that says which commit stands and offers to go on from it in chunks of half the size."""
    with suppress(StorageError):
        folder.checkpoints.wait()
    committed = max(folder.checkpoints.steps(), default=None)
    config = folder.document["config"]
    half = max(1, (config.get("micro_batch_size") or config["batch_size"]) // 2)
    first_line = (str(failure).splitlines() or ["MemoryError"])[0]
    if committed is None:
        advice = f"give it a smaller micro_batch_size: --restart --set micro_batch_size={half}"
    else:
        advice = f"free some memory and run the same command again, or {smaller_chunks(folder.root, half)}"
    stands = "nothing was committed yet" if committed is None else f"the commit of step {committed} stands"
    return TrainingError(f"out of memory: {first_line}", why=stands, next_step=advice)
