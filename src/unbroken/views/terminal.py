"""A run in the terminal: one live line while it trains, a few lasting lines for what matters."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from unbroken.base.words import number_of
from unbroken.run.report import (
    Began,
    Boundary,
    Committed,
    Ended,
    Evaluated,
    Event,
    Mirrored,
    Notice,
    Replayed,
    Stepped,
)

REDRAW_SECONDS = 0.1
LOG_SECONDS = 10.0
SHOWN_METRICS = ("ndcg@10", "mrr@10", "accuracy@1", "spearman_cosine", "pearson_cosine", "cosine_accuracy")


class Terminal:
    """Shows the events of a run on `stream` (stderr). Without a terminal it logs a line every ten seconds.

    A stream that is closed under it never stops a run.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = clock
        self.live = stream.isatty()
        self.safe_step = 0
        self.mirrored_step: int | None = None
        self._drawn_at = -1e9
        self._line = ""
        self._began = Began(0, 0, 0, 1, 0)
        self._began_at = 0.0
        self._examples = 0
        self._marks: list[tuple[float, int]] = []

    def __call__(self, event: Event) -> None:
        """Show one event."""
        with suppress(OSError, ValueError):
            self._show(event)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far some preparation has come."""
        with suppress(OSError, ValueError):
            if done >= total:
                self._clear()
            else:
                self._draw(f"{what} {done:,} of {total:,}")

    def _show(self, event: Event) -> None:
        match event:
            case Began():
                self._begin(event)
            case Stepped():
                self._step(event)
            case Committed(step):
                self.safe_step = step
            case Mirrored(step):
                self.mirrored_step = step
            case Boundary(recorded, first_new):
                self._say(
                    f"last recorded step {recorded['n']}: loss {recorded['loss']:.6f}, "
                    f"learning rate {recorded['learning_rate']:.3e}  |  first step now {first_new['n']}: "
                    f"loss {first_new['loss']:.6f}, learning rate {first_new['learning_rate']:.3e}"
                )
            case Replayed(first, last, count):
                span = f"steps ({first} to {last})" if count > 1 else f"step ({first})"
                self._say(f"replayed {count} {span}: identical to the bit")
            case Evaluated(step, metrics):
                shown = {name: metrics[name] for name in SHOWN_METRICS if name in metrics}
                shown = shown or {name: value for name, value in metrics.items() if "/" not in name}
                self._say(f"evaluation after step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in shown.items()))
            case Notice(text):
                self._say(text)
            case Ended():
                self._end(event)

    def _begin(self, event: Began) -> None:
        self._began, self._began_at = event, self.clock()
        self.safe_step = event.step
        self._marks = [(self._began_at, 0)]
        if event.segment == 1:
            steps = (
                f"from step {event.step:,} to {event.last_step:,}," if event.step else f"{event.last_step:,} steps of"
            )
            self._say(f"training: {steps} {event.batch_size} examples" + (" each" if event.step else ""))
            return
        ahead = f"; {event.to_replay} steps after it are on record and will be replayed" if event.to_replay else ""
        place = f"restored after step {event.step:,}" if event.step else "no commit yet, begins again"
        self._say(f"segment {event.segment}: {place} of {event.last_step:,}{ahead}")

    def _step(self, event: Stepped) -> None:
        self._examples += event.num_examples
        now = self.clock()
        self._marks = [*self._marks[-50:], (now, self._examples)]
        pause = REDRAW_SECONDS if self.live else LOG_SECONDS
        if now - self._drawn_at < pause and event.step > self._began.step + 1:
            return
        (then, before), steps_left = self._marks[0], self._began.last_step - event.step
        rate = (self._examples - before) / max(now - then, 1e-9)
        seconds_left = steps_left * event.num_examples / max(rate, 1e-9)
        text = (
            f"step {event.step:,}/{self._began.last_step:,}  loss {event.loss:.4f}  {rate:.0f} samples/s  "
            f"ETA {clock_time(seconds_left)}  {self._safe()}"
        )
        if self.mirrored_step is not None:
            text += f", mirrored up to {self.mirrored_step:,}"
        self._draw(text)

    def _safe(self) -> str:
        return f"safe up to step {self.safe_step:,}" if self.safe_step else "no commit yet"

    def _end(self, event: Ended) -> None:
        self._clear()
        if not event.finished:
            self._say(
                f"stopped after step {event.step:,} ({event.reason}), committed; the same command goes on from there"
            )
            return
        self._say(f"finished: {event.step:,} steps, model in {event.model}")
        found = event.proof
        if found:
            counts = [number_of(found["segments"], "segment"), number_of(found["restores"], "restore")]
            self._say(f"proof: {', '.join(counts)}; {found['verdict']}")

    def _draw(self, text: str) -> None:
        """Replace the live line, or without a terminal write a log line."""
        self._drawn_at = self.clock()
        if not self.live:
            print(text, file=self.stream, flush=True)
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[2K{text}", end="", file=self.stream, flush=True)
        self._line = text

    def _clear(self) -> None:
        if self.live and self._line:
            print("\r\x1b[2K", end="", file=self.stream, flush=True)
            self._line = ""

    def _say(self, text: str) -> None:
        line = self._line
        self._clear()
        print(text, file=self.stream, flush=True)
        if line and self.live:
            print(line, end="", file=self.stream, flush=True)
            self._line = line


def clock_time(seconds: float) -> str:
    """Return a duration as people read it: 0:42, 12:05, 3:07:00."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
