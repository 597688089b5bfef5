"""Random draws as a function of a seed alone, for code that draws from the process-wide generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed32: int) -> Iterator[None]:
    """Inside the block every process-wide generator starts from `seed32`; afterwards each is where it was before.

    Covers torch's default generators (CPU, and every CUDA device once CUDA is initialised), Python's `random` and
    numpy's legacy global one: stock `nn.Dropout` draws from the first, users' code from any of them. Entering
    twice with one seed replays the same draws, and blocks nest. No other thread may draw meanwhile.
    """
    generators = [torch.default_generator, *torch.cuda.default_generators]  # none of CUDA until it is initialised
    before = [generator.get_state() for generator in generators]
    python_before = random.getstate()
    numpy_before = np.random.get_state()
    try:
        # Not torch.manual_seed: it visits every backend there is and costs twenty times this whole loop.
        for generator in generators:
            generator.manual_seed(seed32)
        random.seed(seed32)
        np.random.seed(seed32)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
        random.setstate(python_before)
        np.random.set_state(numpy_before)
