"""The command `unbroken`: finds the verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from cyclopts import App, CycloptsError, MissingArgumentError, UnusedCliTokensError
from cyclopts.argument import Argument
from cyclopts.exceptions import UnknownCommandError

from unbroken import __version__
from unbroken.cli.output import notices

HELP = """Fine-tune text models in runs that survive anything, to the bit, and prove it.

Kill a run at any instant, give the same command again, and it finishes with bit for bit the model the uninterrupted
run would have made.

Results go to stdout, progress and messages to stderr. Every command takes --help (with examples), --json where it
prints results, and --debug (a traceback instead of one line).

Exit codes: 0 ok, 1 internal or disk, 2 usage or configuration, 3 data, 4 cannot continue, 5 verification failed or runs
differ, 75 stopped by a signal or --stop-at after committing, or held by another process (run again), 130 Ctrl-C after
committing.
"""

# Lazily imported: `--help` must not pay for torch, numpy or pydantic.
VERBS = {
    "train": ("unbroken.cli.train:train", "Start a run, continue it, or say that it is finished."),
    "check": (
        "unbroken.cli.check:check",
        "Look at configuration, data, lengths, memory, disk and time before a run.",
    ),
    "show": ("unbroken.cli.show:show", "List runs, or describe a run or any checkpoint folder."),
    "fork": ("unbroken.cli.fork:fork", "Begin a new run with the state of another, under a changed configuration."),
    "verify": (
        "unbroken.cli.verify:verify",
        "Compare a run's digests, make recorded steps again, and compare them to the bit.",
    ),
    "diff": ("unbroken.cli.diff:diff", "Compare two runs or checkpoints: first differing step, tensor, key, version."),
    "evaluate": ("unbroken.cli.evaluate:evaluate", "Measure a model on held-out rows."),
    "report": (
        "unbroken.cli.report:report",
        "Say what a classification run came to, beside baselines, and where it errs.",
    ),
    "encode": ("unbroken.cli.encode:encode", "Turn texts into embeddings."),
    "predict": ("unbroken.cli.predict:predict", "Classify texts, or have a language model answer."),
    "export": ("unbroken.cli.export:export", "Write an adapted language model as a folder of its own."),
    "schema": ("unbroken.cli.schema:schema", "Print the JSON schema of a task's configuration."),
    "demo": ("unbroken.cli.demo:demo", "Train, be killed, continue, and prove it made no difference."),
}


def build_app(asked: str = "") -> App:
    """Return the command line; the verb asked for explains itself, from its docstring with the examples."""
    app = App(name="unbroken", help=HELP, version=__version__, help_format="markdown")
    for name, (target, summary) in VERBS.items():
        app.command(target, name=name, **({} if name == asked else {"help": summary}))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code the help documents."""
    # Read when torch is imported: threads that wait sleep instead of spinning, which costs a shared machine dearly and
    # changes no bit of a result.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Read when transformers is imported: what it would log goes to stderr in its own format, beside ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    leave(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command and return its exit code; a failure is one line on stderr, or raised with --debug."""
    debug = "--debug" in arguments
    given = [argument for argument in arguments if argument != "--debug"]
    # A broken pipe is somebody's `| head`, not a fault of ours; it must never stop a run either.
    try:
        with notices(say):
            app = build_app(given[0] if given else "")
            code = app(given, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        return 130
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
    except CycloptsError as failure:
        return usage(failure)
    except Exception as failure:
        if debug:
            raise
        return explain(failure)
    return code if isinstance(code, int) else 0


def say(text: str) -> None:
    """Print one line on stderr, whatever `text` holds."""
    with suppress(OSError):  # nobody listens: the exit code still says it
        print(f"unbroken: {' '.join(text.split())}", file=sys.stderr)


def usage(failure: CycloptsError) -> int:
    """Print one line about a command that was mistyped; return the exit code."""
    verb = " ".join(failure.command_chain or ())
    match failure:
        case UnknownCommandError(unused_tokens=[word, *_]):
            near = difflib.get_close_matches(word, VERBS, n=1)
            what = f"there is no command '{word}'" + (f"; did you mean '{near[0]}'?" if near else "")
        case MissingArgumentError(argument=Argument() as argument):
            given = [name for name in argument.names if name in (failure.root_input_tokens or ())]
            is_option = argument.index is None or len(argument.names) > 1
            name = argument.name if is_option else argument.name.lstrip("-").upper()
            what = f"{given[0]} needs a value" if given else f"{name} is missing"
        case UnusedCliTokensError(unused_tokens=[word, *_]):
            what = f"'{word}' is one argument too many"
        case _:
            what = str(failure).rstrip(".")
    place, command = (f"{verb}: ", f"unbroken {verb}") if verb else ("", "unbroken")
    say(f"{place}{what}; see `{command} --help`")
    return 2


def explain(failure: Exception) -> int:
    """Print one line about a failure; return the exit code."""
    from unbroken.base.errors import UnbrokenError

    if isinstance(failure, UnbrokenError):
        say(str(failure))
        return failure.exit_code
    if isinstance(failure, BrokenPipeError):
        return 0
    say(
        f"internal error: {type(failure).__name__}: {failure}; what was committed stands; "
        "give the command again with --debug for the traceback"
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
