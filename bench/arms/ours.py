"""`python -m unbroken train CONFIG`, the command as it is, with a clock in front of what shows its progress."""

from __future__ import annotations

import runpy
import sys
from typing import Any

from bench.arms.recorder import Recorder


def main() -> None:
    recorder = Recorder.from_arguments()

    from unbroken.run.report import Committed, Ended, Event, Stepped
    from unbroken.views.terminal import Terminal

    show = Terminal.__call__
    saved = False

    def record(self: Terminal, event: Event) -> None:
        nonlocal saved
        match event:
            case Stepped(step, loss):
                recorder.emit("step", n=step, loss=loss)
                recorder.maybe_die(step, saved)
            case Committed(step, stall_seconds, write_seconds):
                saved = True
                recorder.emit("saved", n=step, stall=stall_seconds, write=write_seconds)
            case Ended():
                recorder.ended()
        show(self, event)

    terminal: Any = Terminal
    terminal.__call__ = record
    resume = recorder.spec.get("resume")
    place = ["--resume_from_checkpoint", resume] if isinstance(resume, str) else []
    sys.argv = ["unbroken", "train", recorder.spec["config_file"], *place]
    runpy.run_module("unbroken", run_name="__main__")


if __name__ == "__main__":
    main()
