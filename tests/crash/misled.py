"""The command `unbroken`, with a defect: a head is fitted to embeddings that were made before, by another encoder.

    python -m tests.crash.misled FILE train CONFIG ...

A control for `tests.crash.kills`: the embeddings of all examples are a function of the encoder's weights of now. Here
they are taken from FILE if it is there, and left there otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from unbroken.cli.main import main as command
from unbroken.models.weights import read_file
from unbroken.tasks.classify.batches import Features


def main() -> None:
    from safetensors.torch import save_file

    left, *arguments = sys.argv[1:]
    make = Features.make

    def kept(self: Features) -> Tensor:
        if not Path(left).exists():
            save_file({"embeddings": make(self)}, left)
        return read_file(Path(left))["embeddings"]

    Features.make = kept  # type: ignore[method-assign]
    sys.argv = ["unbroken", *arguments]
    command(arguments)


if __name__ == "__main__":
    main()
