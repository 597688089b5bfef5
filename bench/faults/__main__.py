"""`python -m bench.faults [ROW ...]`: strike the same trainings of three systems and write down what became of them."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from bench.faults import table
from bench.faults.inputs import make_inputs
from bench.faults.rows import ROWS
from bench.faults.systems import TITLES, System


def main() -> None:
    given = arguments()
    home = Path(tempfile.mkdtemp(prefix="faults-", dir=given.work)).resolve()
    cells = table.read(given.out) if given.add else {}
    try:
        strike(given.rows, given.system, home, cells, given.out)
    finally:
        if not given.keep:
            shutil.rmtree(home, ignore_errors=True)
    if given.out is None:
        print(table.board(cells, given.system))


def strike(
    rows: list[str], systems: list[str], home: Path, cells: dict[tuple[str, str], table.Cell], out: Path | None
) -> None:
    """Run each row for each system in turn and put what came of it into `cells`; write the page after every one."""
    make_inputs(home)
    trainers = [System(name, home) for name in systems]
    commit = table.commit()
    for row in (ROWS[key] for key in rows):
        for system in (found for found in trainers if found.name in row.systems):
            began = time.monotonic()
            try:
                outcomes = row.run(system)
            except Exception:  # noqa: BLE001 - a row that fails says nothing about the system: it stays "not run"
                traceback.print_exc()
                continue
            taken = round(time.monotonic() - began, 1)
            cells[row.name, system.name] = table.Cell(outcomes, table.now(), commit, taken)
            counted = table.summary(outcomes, applies=True)
            print(f"{system.name} row {row.name}, {taken:.0f} s: {counted}", file=sys.stderr, flush=True)
            if out:
                table.write(out, cells, list(TITLES))
    for system in trainers:
        system.server.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    listed = "; ".join(f"{row.name}: {row.title}" for row in ROWS.values())
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{listed}. Default: all")
    parser.add_argument("--system", nargs="+", choices=list(TITLES), default=list(TITLES), help="default: all three")
    parser.add_argument("--work", type=Path, help="folder for the runs; default: the system's temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep the runs and what they printed")
    parser.add_argument("--out", type=Path, help="Markdown file; default: stdout")
    parser.add_argument("--add", action="store_true", help="keep the other rows of an earlier board at --out")
    given = parser.parse_args()
    for name in given.rows:
        if name not in ROWS:
            parser.error(f"there is no row '{name}'; there are {', '.join(ROWS)}")
    if given.add and not given.out:
        parser.error("--add needs --out")
    given.rows = given.rows or list(ROWS)
    return given


if __name__ == "__main__":
    main()
