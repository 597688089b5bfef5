"""The command `unbroken`, telling over a pipe what it is doing, so that a kill can be aimed and placed exactly.

    python -m tests.crash.victim PIPE AIM EDGE COUNT HOLD AFTER -- train CONFIG ...

The functions that are the phases of a run are wrapped when their modules are imported; what they compute is left
alone. One line a message, from `main` or `writer` (the thread of a commit):

    main + commit/write         a phase begins; the path names those around it
    main - commit/write         it ends
    main ! commit/write         this was occurrence COUNT of the EDGE (+ or -) of a phase AIM matches: strike now
    main = step 12              a step that was on no record before is on record now
    main @ 12                   so many steps are finished, of the state in memory

With HOLD (1 or 0) the thread that wrote `!` waits there to be killed; the other one goes on. With the name of a phase
as AFTER it counts from the end of the first such phase of this process.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

HELD_SECONDS = 60
LIBRARIES = (
    "torch",
    "unbroken.models.encoder",
    "unbroken.models.lora",
    "unbroken.run.engine",
)  # what takes long to import

# module -> what in it is a phase: dotted name -> phase
PHASES: dict[str, dict[str, str]] = {
    "unbroken.tasks.embed.task": {"prepare": "read"},
    "unbroken.tasks.classify.task": {"prepare": "read"},
    "unbroken.tasks.adapt.task": {"prepare": "read", "load_trained": "load"},
    "unbroken.run.folder": {"RunFolder.create": "create"},
    "unbroken.models.encoder": {"Encoder.from_pretrained": "load"},
    "unbroken.models.tokenizing": {"Tokenizer.__call__": "tokenise"},
    "unbroken.models.chat": {"ChatFormat.encode": "tokenise"},
    "unbroken.step.gradients": {"cached_gradients": "forward", "accumulated": "forward", "backward": "backward"},
    "unbroken.step.update": {"update": "optimizer"},
    "unbroken.run.evaluation": {"Evaluations._keep": "evaluation"},
    "unbroken.tasks.embed.evaluation": {"Evaluation.measure": "evaluation"},
    "unbroken.tasks.classify.evaluation": {"Evaluation.measure": "evaluation"},
    "unbroken.tasks.adapt.evaluation": {"Evaluation.measure": "evaluation"},
    "unbroken.tasks.classify.batches": {"Features.make": "features"},
    "unbroken.tasks.classify.heads": {
        "HeadTraining.fit_head": "head",
        "HeadTraining.train_head": "head",
        "HeadTraining.train_both": "head",
        "HeadTraining.fitted": "fit",
        "HeadTraining._temperature": "calibrate",
    },
    "unbroken.run.state": {"State.restore": "restore"},
    "unbroken.store.journal": {"Journal.append": "journal"},
    "unbroken.store.files": {
        "create_file": "write",
        "sync_file": "fsync",
        "sync_folder": "fsync",
        "rename_new": "rename",
    },
    "unbroken.store.commit": {
        "Staging.take": "stage",
        "Snapshot.complete": "stage",
        "digest": "hash",
        "publish_model": "export",
    },
    "unbroken.store.checkpoints": {
        "Checkpoints.restore": "restore",
        "Checkpoints._carry_out": "commit",
        "Checkpoints._retire": "retire",
    },
}


@dataclass
class Teller:
    """Keeps where each thread is, and says so."""

    pipe: int
    aim: re.Pattern[str]
    edge: str
    count: int
    hold: bool
    after: str
    paths: dict[str, list[str]] = field(default_factory=lambda: {"main": [], "writer": []})

    def enter(self, phase: str) -> None:
        self.paths[thread()].append(phase)
        self._say("+")

    def leave(self) -> None:
        self._say("-")
        if self.paths[thread()].pop() == self.after:
            self.after = ""

    def leave_if_in(self, phase: str) -> None:
        """End a phase that began in another function, if it is the one in progress."""
        if self.paths[thread()][-1:] == [phase]:
            self.leave()

    def note(self, text: str) -> None:
        os.write(self.pipe, f"{thread()} = {text}\n".encode())

    def stand(self, step: int) -> None:
        os.write(self.pipe, f"{thread()} @ {step}\n".encode())

    def _say(self, edge: str) -> None:
        name = "/".join(self.paths[thread()])
        os.write(self.pipe, f"{thread()} {edge} {name}\n".encode())
        if edge == self.edge and not self.after and self.aim.fullmatch(name):
            self.count -= 1
            if self.count == 0:
                os.write(self.pipe, f"{thread()} ! {name}\n".encode())
                if self.hold:
                    time.sleep(HELD_SECONDS)


def thread() -> str:
    return "main" if threading.current_thread() is threading.main_thread() else "writer"


def wrap(module: ModuleType, name: str, phase: str, teller: Teller) -> None:
    """Replace a function, method or class method of `module` by itself with a message before and after."""
    *owners, last = name.split(".")
    owner: Any = functools.reduce(getattr, owners, module)
    found = vars(owner)[last]
    inner = found.__func__ if isinstance(found, classmethod) else found

    @functools.wraps(inner)
    def told(*arguments: Any, **named: Any) -> Any:
        teller.enter(phase)
        try:
            return inner(*arguments, **named)
        finally:
            teller.leave()

    setattr(owner, last, classmethod(told) if isinstance(found, classmethod) else told)


def tell_of_replay(module: ModuleType, teller: Teller) -> None:
    """A replay lasts from the reading of the journal to the last step it holds."""
    replay: Any = module.Replay
    begin, matches = replay.__init__, replay.matches

    def told_begin(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        if len(self):
            teller.enter("replay")

    def told_matches(self: Any, record: dict[str, Any]) -> bool:
        found: bool = matches(self, record)
        if record["n"] >= self.end:
            teller.leave_if_in("replay")
        return found

    replay.__init__, replay.matches = told_begin, told_matches


def tell_of_the_end(module: ModuleType, teller: Teller) -> None:
    """A run is finished once its journal says so; a later process finds that out from it."""
    folder: Any = module.RunFolder
    finished = folder.finished

    def told_finished(self: Any) -> Any:
        ended = finished(self)
        if ended is not None:
            teller.enter("finished")
        return ended

    folder.finished = told_finished


def tell_of_steps(module: ModuleType, teller: Teller) -> None:
    """How many steps are finished, and the boundary between two phases: a new optimizer over other parameters."""
    state: Any = module.State
    advance, restore, enter = state.advance, state.restore, state._enter

    def told_enter(self: Any, phase: int) -> None:
        crosses = phase != self.phase
        if crosses:
            if self.step:  # 0: being restored, which tells of it afterwards
                teller.stand(self.step)
            teller.enter("boundary")
        enter(self, phase)
        if crosses:
            teller.leave()

    def told_advance(self: Any) -> None:
        advance(self)
        teller.stand(self.step)

    def told_restore(self: Any, restored: Any) -> None:
        restore(self, restored)
        teller.stand(self.step)

    state._enter, state.advance, state.restore = told_enter, told_advance, told_restore


def tell_of_records(module: ModuleType, teller: Teller) -> None:
    """A step on record is progress; the record `finish` is the end."""
    journal: Any = module.Journal
    append = journal.append

    def told_append(self: Any, record: dict[str, Any]) -> None:
        append(self, record)
        if record["kind"] == "step":
            teller.note(f"step {record['n']}")
        elif record["kind"] == "finish":
            teller.enter("finished")

    journal.append = told_append


def end_of_imports(module: ModuleType, teller: Teller) -> None:
    """The command's own imports are over when the request is carried out."""
    carry_out: Callable[..., Any] = vars(module)["carry_out"]

    def told_carry_out(*arguments: Any, **named: Any) -> Any:
        teller.leave_if_in("import")
        return carry_out(*arguments, **named)

    vars(module)["carry_out"] = told_carry_out


SPECIAL = {
    "unbroken.run.replay": tell_of_replay,
    "unbroken.run.folder": tell_of_the_end,
    "unbroken.run.state": tell_of_steps,
    "unbroken.store.journal": tell_of_records,
    "unbroken.tasks.train": end_of_imports,
}


class Finder(importlib.machinery.PathFinder):
    """Imports as ever, and wraps the phases of a module before anyone can take a function out of it."""

    teller: Teller

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        spec = super().find_spec(fullname, path, target)
        watched = fullname in PHASES or fullname in SPECIAL or fullname in LIBRARIES
        if spec is None or spec.loader is None or not watched:
            return spec
        execute = spec.loader.exec_module

        def told_execute(module: ModuleType) -> None:
            if fullname in LIBRARIES:
                cls.teller.enter("import")
            execute(module)
            if fullname in LIBRARIES:
                cls.teller.leave()
            for name, phase in PHASES.get(fullname, {}).items():
                wrap(module, name, phase, cls.teller)
            if fullname in SPECIAL:  # outermost: the phases these begin outlast the function
                SPECIAL[fullname](module, cls.teller)

        spec.loader.exec_module = told_execute  # type: ignore[method-assign]
        return spec


def main() -> None:
    pipe, aim, edge, count, hold, after, dashes, *arguments = sys.argv[1:]
    assert dashes == "--"
    Finder.teller = Teller(int(pipe), re.compile(aim), edge, int(count), hold == "1", after)
    Finder.teller.enter("import")
    sys.meta_path.insert(0, Finder)
    from unbroken.cli.main import main as command

    sys.argv = ["unbroken", *arguments]
    command(arguments)


if __name__ == "__main__":
    main()
