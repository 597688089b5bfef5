"""Arrays as files that other programs read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbroken.store.files import replace_file


def replace_array(path: Path, array: NDArray[Any]) -> None:
    """Give `path` the array in the .npy format, as `replace_file` does."""
    start, array = io.BytesIO(), np.asarray(array, order="C")
    np.lib.format.write_array_header_1_0(start, np.lib.format.header_data_from_array_1_0(array))
    replace_file(path, start.getvalue(), array.reshape(-1).view(np.uint8).data)
