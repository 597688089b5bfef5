"""The command `unbroken`: finds the verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App

from unbroken import __version__

HELP = """Fine-tune text models in runs that survive anything, to the bit, and prove it.

Kill a run at any instant, give the same command again, and it finishes with bit for bit the model the uninterrupted
run would have made.

Results go to stdout, progress and messages to stderr. Every command takes --help (with examples), --json where it
prints results, and --debug (a traceback instead of one line).

Exit codes: 0 ok, 1 internal or disk, 2 usage or configuration, 3 data, 4 cannot continue, 5 verification failed,
75 stopped by a signal after committing or held by another process (run again), 130 Ctrl-C after committing.
"""

# Lazily imported: `--help` must not pay for torch, numpy or pydantic.
VERBS = {
    "train": ("unbroken.cli.train:train", "Start a run, continue it, or say that it is finished."),
    "check": (
        "unbroken.cli.check:check",
        "Look at configuration, data, lengths, memory, disk and time before a run.",
    ),
    "show": ("unbroken.cli.show:show", "List runs, or describe a run or any checkpoint folder."),
    "evaluate": ("unbroken.cli.evaluate:evaluate", "Measure a model on held-out rows."),
    "encode": ("unbroken.cli.encode:encode", "Turn texts into embeddings."),
    "schema": ("unbroken.cli.schema:schema", "Print the JSON schema of a task's configuration."),
    "demo": ("unbroken.cli.demo:demo", "Train, be killed, continue, and prove it made no difference."),
}


def build_app() -> App:
    """Return the command line."""
    app = App(name="unbroken", help=HELP, version=__version__, help_format="markdown")
    for name, (target, summary) in VERBS.items():
        app.command(target, name=name, help=summary)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code the help documents."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    # A broken pipe is somebody's `| head`, not a fault of ours; it must never stop a run either.
    try:
        code = build_app()(given, exit_on_error=True, print_error=True, result_action="return_value")
    except KeyboardInterrupt:
        leave(130)
    except Exception as failure:
        if debug:
            raise
        leave(explain(failure))
    leave(code if isinstance(code, int) else 0)


def explain(failure: Exception) -> int:
    """Print one line about a failure; return the exit code."""
    from unbroken.base.errors import UnbrokenError

    if isinstance(failure, UnbrokenError):
        print(f"unbroken: {' '.join(str(failure).split())}", file=sys.stderr)
        return failure.exit_code
    if isinstance(failure, BrokenPipeError):
        return 0
    text = " ".join(str(failure).split())
    print(
        f"unbroken: internal error: {type(failure).__name__}: {text}; what was committed stands; "
        "give the command again with --debug for the traceback",
        file=sys.stderr,
    )
    return 1


def leave(code: int) -> None:
    """End the process now: results are flushed, and tearing down torch would only cost time."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 0
    os._exit(code)


if __name__ == "__main__":
    main()
