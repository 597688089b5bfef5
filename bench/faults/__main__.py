"""`python -m bench.faults [ROW ...]`: strike the same trainings of three systems and write down what became of them."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from bench.faults import table
from bench.faults.inputs import make_inputs
from bench.faults.outcome import Outcome
from bench.faults.rows import ROWS
from bench.faults.systems import TITLES, System


def main() -> None:
    given = arguments()
    home = Path(tempfile.mkdtemp(prefix="faults-", dir=given.work)).resolve()
    try:
        cells = strike(given.rows, given.system, home, given.out)
    finally:
        if not given.keep:
            shutil.rmtree(home, ignore_errors=True)
    if given.out is None:
        print(cells)


def strike(rows: list[str], systems: list[str], home: Path, out: Path | None) -> str:
    """Run each row for each system in turn; return the page, written anew after every row if there is `out`."""
    make_inputs(home)
    cells: dict[tuple[str, str], list[Outcome]] = {}
    seconds: dict[str, float] = {}
    text = ""
    trainers = [System(name, home) for name in systems]
    for row in (ROWS[key] for key in rows):
        for system in (found for found in trainers if found.name in row.systems):
            began = time.monotonic()
            cells[row.name, system.name] = row.run(system)
            seconds[f"{system.name} {row.name}"] = taken = time.monotonic() - began
            counted = table.summary(cells[row.name, system.name], applies=True)
            print(f"{system.name} row {row.name}, {taken:.0f} s: {counted}", file=sys.stderr, flush=True)
            text = table.board(cells, systems, seconds)
            if out:
                table.write(out, text)
    for system in trainers:
        system.server.close()
    return text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    listed = "; ".join(f"{row.name}: {row.title}" for row in ROWS.values())
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{listed}. Default: all")
    parser.add_argument("--system", nargs="+", choices=list(TITLES), default=list(TITLES), help="default: all three")
    parser.add_argument("--work", type=Path, help="folder for the runs; default: the system's temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep the runs and what they printed")
    parser.add_argument("--out", type=Path, help="Markdown file; default: stdout")
    given = parser.parse_args()
    for name in given.rows:
        if name not in ROWS:
            parser.error(f"there is no row '{name}'; there are {', '.join(ROWS)}")
    given.rows = given.rows or list(ROWS)
    return given


if __name__ == "__main__":
    main()
