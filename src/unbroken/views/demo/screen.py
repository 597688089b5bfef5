"""What the demo looks like: a timeline for each process while it runs, then the comparison as tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unbroken.views.demo.arm import Arm, Kill, Sight
from unbroken.views.demo.comparison import Comparison, Pair, bits
from unbroken.views.demo.learning import Learning
from unbroken.views.demo.stage import BATCH_SIZE, NUM_STEPS, SAVE_STEPS

REDRAW_SECONDS = 0.1
PLAIN_WIDTH = 100
SHOWN_STEPS = 8
SHOWN_METRICS = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "accuracy@1": "right meaning ranked first",
    "accuracy@10": "right meaning among the first ten",
}


@dataclass(frozen=True)
class Glyphs:
    """One character per step."""

    step: str
    commit: str
    replay: str
    kill: str
    equal: str


FANCY = Glyphs("━", "●", "↻", "✗", "=")
ASCII = Glyphs("-", "o", "~", "X", "=")


def console(stream: object, *, width: int | None = None) -> Console:
    """Return a console on `stream`: colour and a width of its own only on a terminal."""
    made = Console(file=stream, highlight=False, soft_wrap=False, width=width)  # type: ignore[arg-type]
    if width is None and not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


class Screen:
    """Shows the demo: what happens on `progress` (stderr), what came of it on `results` (stdout)."""

    def __init__(self, progress: Console, results: Console) -> None:
        self.progress = progress
        self.results = results
        fancy = all((screen.encoding or "").lower().startswith("utf") for screen in (progress, results))
        self.glyphs = FANCY if fancy else ASCII

    def opening(self, config: Path) -> None:
        """Say what is going to happen."""
        say = self.progress.print
        say("\n[bold]The same training twice: one run is left alone, one is killed again and again.[/bold]")
        say("Do they end as the same model, to the last bit?\n", style="bold")
        say("  model   all-MiniLM-L6-v2; every weight is trained")
        say("  data    WordNet: 2,560 words and their meanings, and 200 others to test on")
        say(f"  run     {config}: {NUM_STEPS} steps of {BATCH_SIZE} pairs, a commit every {SAVE_STEPS}")

    def heading(self, number: int, text: str, arm: Arm) -> None:
        """Begin the part about one arm."""
        self.progress.print(f"\n[bold]{number}. {text}[/bold]")
        self.progress.print(f"  $ {arm.shown_command}", style="cyan", soft_wrap=True)

    @contextmanager
    def watching(self) -> Iterator[Timelines]:
        """Show the processes of an arm as they run; without a terminal each gets its line when it has ended."""
        if not self.progress.is_terminal:
            yield Timelines(self.progress, self.glyphs)
            return
        with Live(console=self.progress, auto_refresh=False, vertical_overflow="visible") as live:
            yield Timelines(self.progress, self.glyphs, live)

    def legend(self) -> None:
        """Explain the timelines."""
        g = self.glyphs
        self.progress.print(
            f"  {g.step} step  {g.commit} committed  {g.replay} computed again, compared with its record  "
            f"{g.kill} SIGKILL",
            style="dim",
        )

    def comparison(self, found: Comparison, kills: list[Kill]) -> None:
        """Show the two runs side by side, and the verdict."""
        say = self.results.print
        say("\n[bold]3. The two side by side[/bold]\n")
        say(step_table(found, kills, self.glyphs))
        for name, (alone, killed) in found.sums.items():
            say(f"\n  {name}, SHA-256 ({'the same' if alone == killed else 'DIFFERENT'})", style="bold")
            say(f"  alone   {alone or 'missing'}", soft_wrap=True)
            say(f"  killed  {killed or 'missing'}", soft_wrap=True)
        say()
        times = f"killed {len(kills)} time{'s' * (len(kills) != 1)}"
        if not found.identical:
            say(f"  DIFFERENT, {times}: {'; '.join(found.differences)}", style="bold red")
            return
        say(Text.assemble("  ", (f" IDENTICAL TO THE BIT, {times} ", "bold white on green")))
        say(f"  weights, optimizer state, evaluations, and the records of all {len(found.steps)} steps:")
        say("  examples, loss, gradient norm, learning rate")
        again = found.replayed_steps
        if again:
            say(f"  steps recorded but not committed at a kill: {again}, computed again, identical")
        else:
            say("  at each kill every recorded step was committed: none had to be computed again")

    def learning(self, found: Comparison, learned: Learning) -> None:
        """Show what the training was good for."""
        evaluated = found.metrics[1]
        first, last = evaluated[min(evaluated)], evaluated[max(evaluated)]
        say = self.results.print
        say("\n[bold]4. What the model learned[/bold]   given a word, find its meaning among 200\n")
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        for title in ("  ", "before", "after"):
            table.add_column(title, justify="left" if title == "  " else "right")
        for key, name in SHOWN_METRICS.items():
            table.add_row(f"  {name}", f"{first[key]:.3f}", Text(f"{last[key]:.3f}", style="bold"))
        say(table)
        say(
            f"\n  {learned.found} words found their meaning that did not before, {learned.lost} lost it. "
            f"{len(learned.examples)} of the {learned.found}:"
        )
        for example in learned.examples:
            say(f"    [bold]{example.term}[/bold]")
            say(Text(f"      before  {example.before}", style="red"))
            say(Text(f"      after   {example.after}", style="green"))

    def closing(self, config: Path, killed: Path, seconds: float, size: int) -> None:
        """Say what to do next."""
        say = self.results.print
        say(f"\n[bold]Next[/bold]   (this took {seconds:.0f} s; {config.parent} takes {size / 1e9:.1f} GB)\n")
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
        table.add_column(no_wrap=True, style="cyan")
        table.add_column()
        table.add_row(f"  unbroken show {killed}", "the run that was killed")
        table.add_row(f"  cp {config} mine.yaml", "then set your data, columns, output_dir")
        table.add_row("  unbroken check mine.yaml", "before a run: data, memory, disk, time")
        table.add_row("  unbroken train mine.yaml", "kill it at will: the same command goes on")
        say(table)
        say()

    def stopped(self, arm: Arm | None) -> None:
        """Say how things stand after Ctrl-C."""
        self.progress.print("\nstopped; no process is left running", style="bold")
        if arm is not None:
            self.progress.print(f"the run can go on: {arm.shown_command}", soft_wrap=True)
        self.progress.print("`unbroken demo` begins anew", highlight=False)


class Timelines:
    """The processes of an arm, a line each, the last one alive."""

    def __init__(self, screen: Console, glyphs: Glyphs, live: Live | None = None) -> None:
        self.screen = screen
        self.glyphs = glyphs
        self.live = live
        self.lines: dict[int, Text] = {}
        self._drawn_at = -1e9

    def show(self, sight: Sight) -> None:
        """Show how far a process has come."""
        now = time.monotonic()
        if self.live is not None and now - self._drawn_at >= REDRAW_SECONDS:
            self._drawn_at = now
            self._draw(self.live, sight, alive=True)

    def ended(self, sight: Sight) -> None:
        """Show how a process ended; its line stays."""
        if self.live is not None:
            self._draw(self.live, sight, alive=False)
        else:
            self.screen.print(timeline(sight, self.glyphs, alive=False))

    def _draw(self, live: Live, sight: Sight, *, alive: bool) -> None:
        line = timeline(sight, self.glyphs, alive=alive)
        if line == self.lines.get(sight.number):
            return
        self.lines[sight.number] = line
        live.update(Text("\n").join(self.lines.values()), refresh=True)


def timeline(sight: Sight, glyphs: Glyphs, *, alive: bool) -> Text:
    """Return one process as a line: a column for each step of the run, then how it stands."""
    line = Text(f"  process {sight.number} ")
    began = sight.began_after or 0
    again = range(began + 1, began + sight.to_replay + 1)
    for step in range(1, NUM_STEPS + 1):
        if step in sight.steps:
            committed = step in sight.commits
            line.append(glyphs.commit if committed else glyphs.step, "green" if committed else "")
        elif step in again:
            line.append(glyphs.replay, "cyan" if sight.replayed else "dim")
        elif sight.kill is not None and step == max([began, *sight.steps, *again]) + 1:
            line.append(glyphs.kill, "bold red")
        else:
            line.append(" ")
    line.append(glyphs.kill if sight.kill is not None and NUM_STEPS in sight.steps else " ", "bold red")
    return line.append(" ").append(Text("; ").join(remarks(sight, alive=alive)))


def remarks(sight: Sight, *, alive: bool) -> Iterator[Text]:
    """Yield what there is to say about a process, part by part."""
    if sight.replayed:
        yield Text(f"replayed {sight.replayed}, identical", "cyan")
    elif sight.number > 1 and sight.began_after is not None and not (alive and sight.to_replay):
        yield Text(f"from step {sight.began_after}" if sight.began_after else "from the start")
    if sight.kill is not None:
        yield Text(f"SIGKILL {sight.kill.moment}", "bold red")
    elif sight.finished:
        yield Text(f"finished in {sight.seconds:.0f} s", "green")
    elif alive and sight.began_after is None:
        yield Text(f"starting, {sight.seconds:.0f} s", "dim")
    elif alive and sight.loss is None:
        what = (
            "evaluating" if sight.last_step == 0 else f"replaying {sight.to_replay}" if sight.to_replay else "going on"
        )
        yield Text(f"{what}, {sight.seconds:.0f} s", "dim")
    elif alive:
        loss = f"loss {sight.loss:.4f}" if isinstance(sight.loss, float) else f"loss {sight.loss}"
        yield Text(f"step {sight.last_step}/{NUM_STEPS}, {loss}, {sight.seconds:.0f} s", "dim")


def chosen_steps(steps: tuple[Pair, ...], kills: list[Kill]) -> dict[int, str]:
    """Return which steps to show, with a remark each: the first, those around each kill, any that differ, the last."""
    shown = {steps[0].number: "", steps[-1].number: ""} if steps else {}
    for pair in [pair for pair in steps if not pair.same][:2]:
        shown[pair.number] = "differs"
    there = {pair.number for pair in steps}
    for number, kill in enumerate(kills[: (SHOWN_STEPS - 2) // 2], 1):
        for step, remark in ((kill.step, f"before kill {number}"), (kill.step + 1, f"after kill {number}")):
            if step in there:
                shown[step] = ", ".join(part for part in (shown.get(step, ""), remark) if part)
    return dict(sorted(shown.items()))


def step_table(found: Comparison, kills: list[Kill], glyphs: Glyphs) -> Table:
    """Return a few steps of both runs, side by side."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("\n  step", justify="right")
    table.add_column("learning\nrate", justify="right")
    table.add_column("loss\nalone", justify="right")
    table.add_column("\nkilled", justify="right")
    table.add_column("gradient\nalone", justify="left")
    table.add_column("norm, bits\nkilled", justify="left")
    table.add_column("\n")
    table.add_column("\n", style="dim")
    shown = chosen_steps(found.steps, kills)
    for pair in found.steps:
        if pair.number not in shown:
            continue
        alone, killed = pair.alone or {}, pair.killed or {}
        mark = Text(glyphs.equal, "bold green") if pair.same else Text("differs", "bold red")
        rate = (alone or killed)["learning_rate"]
        losses = (_number(record.get("loss")) for record in (alone, killed))
        norms = (_norm(record.get("grad_norm")) for record in (alone, killed))
        table.add_row(str(pair.number), f"{rate:.2e}", *losses, *norms, mark, shown[pair.number])
    return table


def _number(value: float | str | None) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value or "no record")


def _norm(value: float | str | None) -> str:
    if value is None:
        return "no record"
    return bits(value)
