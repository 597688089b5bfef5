"""`unbroken diff`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def diff(first: str, second: str, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Compare two runs, or two checkpoints: configuration, environment, recorded steps, tensors.

    Says which keys differ and whether they make another run, which versions and machines, which step is the first to
    differ and in what, and which tensor of the newest checkpoint that both have, and of the finished models. Only
    what both hold is compared; nothing is written. It ends with 0 if recorded steps and tensors are identical to the
    bit, and with 5 if they differ (4: there is nothing to compare). Other differences do not change that.

    **Examples**

        unbroken diff runs/debian runs/b64
        unbroken diff runs/debian@500 runs/b64@500      the state after the same step
        unbroken diff runs/debian@400 runs/debian@500   two states of one run
        unbroken diff runs/debian runs/b64 --json | jq .first_differing_step

    Parameters
    ----------
    first
        A run, RUN@STEP, or one of its checkpoints.
    second
        Another one.
    json
        Print one JSON object.
    """
    from unbroken.base.errors import VerificationError
    from unbroken.cli.output import print_json
    from unbroken.tasks.diff import diff as compare
    from unbroken.tasks.origin import parse_run_at
    from unbroken.views.diff import diff_text

    found = compare(parse_run_at(first), parse_run_at(second))
    print_json(found.flat()) if json else print(diff_text(found))
    return 0 if found.same else VerificationError.exit_code
