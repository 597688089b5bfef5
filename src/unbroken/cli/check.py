"""`unbroken check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def check(
    config: Path,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    time: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Look before a run: configuration, data, lengths, duplicates, leakage, steps, memory, disk and time.

    Before a resume: what differs from what the run was started with, who holds it, which checkpoint verifies, how
    many steps are left. Writes nothing. Ends with the code `train` would refuse with (2, 3, 4 or 75), else with 0;
    warnings do not change it.

    **Examples**

        unbroken check debian.yaml
        unbroken check debian.yaml --set max_length=64
        unbroken check debian.yaml --time       measure a few steps, too
        unbroken check runs/debian              could this run go on?
        unbroken check debian.yaml --json | jq '."steps.steps"'

    Parameters
    ----------
    config
        YAML file, or the folder of a run.
    set_
        Change one key: `--set learning_rate=1e-5`; may be given several times.
    time
        Load the model on its device and measure forward and backward of a few steps, updating nothing.
    json
        Print everything as one flat JSON object.
    """
    from unbroken.base.config import merge, parse_overrides
    from unbroken.cli.output import print_json
    from unbroken.run.findings import flat
    from unbroken.tasks.check import check as look
    from unbroken.tasks.request import Request
    from unbroken.views.terminal import Terminal
    from unbroken.views.text import page

    overrides = parse_overrides(set_ or [])
    request = Request.of(config)
    request = request.with_values(merge(request.values, overrides), dict.fromkeys(overrides, "--set"))
    terminal = Terminal(sys.stderr)
    progress = terminal.progress if terminal.live else lambda *args: None
    found = look(request, time_steps=time, progress=progress)
    if json:
        warnings = [text for section in found.sections for text in section.warnings]
        outcome = {"problems": list(map(str, found.problems)), "warnings": warnings, "exit_code": found.exit_code}
        print_json(flat(found.sections) | outcome)
    else:
        print(page(found.sections))
    for problem in found.problems:
        print(f"unbroken: {' '.join(str(problem).split())}", file=sys.stderr)
    return found.exit_code
