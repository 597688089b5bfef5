"""A classification report as people read it: in the terminal, and the same as a page of HTML or Markdown."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unbroken.base.errors import ConfigError
from unbroken.base.words import number_of
from unbroken.store.files import replace_file
from unbroken.tasks.classify.report import THE_RUN, Report
from unbroken.tasks.classify.scores import Interval

PLAIN_WIDTH = 110
SHOWN_SUSPECTS = 20
SHOWN_CLASSES = 40
LONGEST_TEXT = 200
BAR = 24  # characters of a whole bar
PAGES = (".html", ".md")
NAMES = {
    THE_RUN: "this run",
    "majority": "majority class",
    "tfidf_regression": "TF-IDF + regression",
    "untuned_nearest_neighbour": "untuned + nearest neighbour",
    "untuned_regression": "untuned + regression",
}


def console(stream: TextIO) -> Console:
    """Return a console on `stream`: colour and a width of its own only on a terminal; `?` for what it cannot encode."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    made = Console(file=stream, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


def write_page(report: Report, path: Path) -> None:
    """Write the report to `path` as what its name ends with, whole or not at all. Raises `ConfigError` otherwise."""
    sheet = Console(file=io.StringIO(), record=True, width=PLAIN_WIDTH, highlight=False, emoji=False)
    show(report, sheet)
    if path.suffix == ".html":
        content = sheet.export_html(inline_styles=True)
    else:
        content = f"```text\n{sheet.export_text()}```\n"
    replace_file(path, content.encode())


def require_page(path: Path) -> None:
    """Raise `ConfigError` unless a page can be written to `path`: found out before anything is measured."""
    if path.suffix not in PAGES:
        raise ConfigError(f"--output {path}: pages are {' or '.join(PAGES)}", next_step="name the file like that")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent}"
        raise ConfigError(f"--output {path} {what}", next_step="give the path of a file in a folder that exists")


def show(report: Report, screen: Console) -> None:
    """Print a report."""
    screen.print(plain(f"{report.run}: {len(report.labels):,} classes"), style="bold")
    screen.print(plain(f"trained on {number_of(report.examples, 'example')} of {report.train_data}"))
    if report.eval_data is not None:
        screen.print(plain(f"measured on {number_of(report.rows, 'text')} of {report.eval_data}"))
    for note in report.notes:
        screen.print(plain(f"note: {note}"), style="yellow")
    for part in (scores, classes, matrix, confusions, bins, curve, suspects):
        part(report, screen)
    if report.left_out:
        heading(screen, "Left out")
        for text in report.left_out:
            screen.print(plain(text))


def scores(report: Report, screen: Console) -> None:
    """Print the run beside the baselines."""
    if not report.scores:
        return
    heading(screen, "How good it is, beside baselines trained on the same examples")
    table = grid("", "accuracy", "95%", "macro-F1", "95%", "run ahead by", "95%", left=(0, 7))
    for name, score in report.scores.items():
        ahead = "" if score.ahead is None else f"{100 * score.ahead:+.1f} points"
        between = (
            ""
            if score.ahead_interval is None
            else "{:+.1f} to {:+.1f}".format(*(100 * end for end in score.ahead_interval))
        )
        cells = (
            NAMES[name],
            f"{score.accuracy:.4f}",
            interval(score.accuracy_interval),
            f"{score.f1_macro:.4f}",
            interval(score.f1_macro_interval),
            ahead,
            between,
        )
        table.add_row(*map(plain, cells), style="bold" if name == THE_RUN else "")
    screen.print(table)
    says = "Accuracy asks for all labels of a text. " if report.several else ""
    screen.print(
        f"{says}95%: where the figure of many more such texts would be. Where `run ahead by` may be on either side of "
        "0, these texts do not tell which is better.",
        style="dim",
    )
    own = report.scores[THE_RUN]
    others = [("micro-F1", own.f1_micro)] if report.several else []
    others.append(("log loss", report.measures["log_loss"]))
    screen.print("  ".join(f"{name} {value:.4f}" for name, value in others), style="dim")


def classes(report: Report, screen: Console) -> None:
    """Print the table of classes; of many, those with the lowest F1."""
    if not report.classes:
        return
    shown = list(report.classes)
    if len(shown) > SHOWN_CLASSES:
        worst = sorted(range(len(shown)), key=lambda place: shown[place].f1)[:SHOWN_CLASSES]
        shown = [report.classes[place] for place in sorted(worst, key=lambda place: report.classes[place].f1)]
        heading(screen, f"Classes: the {SHOWN_CLASSES} of {len(report.classes)} with the lowest F1 (--json has all)")
    else:
        heading(screen, "Classes")
    table = grid("class", "precision", "recall", "95%", "F1", "texts")
    for one in shown:
        cells = (
            str(one.name),
            f"{one.precision:.3f}",
            f"{one.recall:.3f}",
            interval(one.recall_interval),
            f"{one.f1:.3f}",
            f"{one.support:,}",
        )
        table.add_row(*map(plain, cells))
    screen.print(table)


def matrix(report: Report, screen: Console) -> None:
    """Print all confusions of a few classes as a matrix: true classes down, predicted ones across."""
    if report.matrix is None:
        return
    heading(screen, "Confusions: true classes down, predicted ones across")
    table = grid("", *map(str, range(1, len(report.labels) + 1)))
    for number, (name, row) in enumerate(zip(report.labels, report.matrix, strict=True)):
        cells = [Text(f"{count or '.'}", style=emphasis(number == at, count)) for at, count in enumerate(row)]
        table.add_row(plain(f"{number + 1:>2} {name}"), *cells)
    screen.print(table)


def emphasis(right: bool, count: int) -> str:
    """Return how a cell of the matrix looks."""
    return "bold" if right else "red" if count else "dim"


def confusions(report: Report, screen: Console) -> None:
    """Print the most frequent mistakes with a text each."""
    if not report.confusions:
        return
    heading(screen, "Largest confusions, each with the text that was surest")
    table = grid("true", "predicted", "count", "for example", left=(0, 1, 3))
    for one in report.confusions:
        table.add_row(plain(one.true), plain(one.predicted), f"{one.count:,}", plain(one.text))
    screen.print(table)


def bins(report: Report, screen: Console) -> None:
    """Print how confidence and accuracy go together."""
    if not report.bins:
        return
    total = sum(one.count for one in report.bins)
    sure = sum(one.confidence * one.count for one in report.bins) / total
    right = sum(one.accuracy * one.count for one in report.bins) / total
    heading(screen, "Can its probabilities be trusted?")
    table = grid("confidence", "labels" if report.several else "texts", "mean confidence", "right", "95%", left=(0,))
    for one in report.bins:
        cells = f"{one.count:,}", f"{one.confidence:.3f}", f"{one.accuracy:.3f}", interval(one.accuracy_interval)
        table.add_row(f"{one.low:.2f} to {one.high:.2f}", *cells)
    screen.print(table)
    way = "less sure than it is right" if sure < right else "surer than it is right"
    screen.print(
        f"Calibration error {report.measures['calibration_error']:.3f}; on the whole it is {way}: "
        f"mean confidence {sure:.3f}, right {right:.3f}.",
        style="dim",
    )


def curve(report: Report, screen: Console) -> None:
    """Print how accuracy grows with shots, and the run's own figure at the end."""
    if not report.curve:
        return
    heading(screen, "How accuracy grows with examples")
    table = grid("examples a class", "in all", "accuracy", "lowest to highest draw", "", left=(4,))
    for point in report.curve:
        between = f"{point.lowest:.4f} to {point.highest:.4f} of {point.draws}" if point.draws > 1 else ""
        table.add_row(
            f"{point.shots:,}", f"{point.examples:,}", f"{point.accuracy:.4f}", between, bar(point.accuracy, screen)
        )
    own, last = report.scores[THE_RUN].accuracy, report.curve[-1]
    table.add_row(NAMES[THE_RUN], f"{last.examples:,}", f"{own:.4f}", "", bar(own, screen), style="bold")
    screen.print(table)
    screen.print(
        "All but the last line are heads on the untuned model, which has seen none of the examples: the run's own "
        "encoder was trained on all of them, so no curve can be drawn with it.",
        style="dim",
    )


def suspects(report: Report, screen: Console) -> None:
    """Print the training texts most likely mislabelled."""
    if report.mislabelled is None:
        return
    found = report.mislabelled
    heading(screen, "Training texts most likely mislabelled")
    screen.print(
        f"Each of the {report.examples:,} was judged by a head on the untuned model that was fitted to the others. "
        f"{number_of(report.disagreeing, 'text')} would be labelled otherwise, {report.standing_out:,} of them as "
        "surely as texts of the suggested label (*). Likeliest first; look before you change a label.",
        style="dim",
    )
    if not found:
        return
    table = grid("row", "label", "suggested", "p(label)", "p(suggested)", "text", left=(1, 2, 5))
    for one in found[:SHOWN_SUSPECTS]:
        cells = (
            f"{one.row:,}",
            one.label,
            one.suggested + (" *" if one.stands_out else ""),
            f"{one.probability:.3f}",
            f"{one.suggested_probability:.3f}",
            one.text,
        )
        table.add_row(*map(plain, cells))
    screen.print(table)
    if len(found) > SHOWN_SUSPECTS:
        screen.print(f"--json lists {len(found):,}", style="dim")


def heading(screen: Console, text: str) -> None:
    """Print an empty line and the title of a part."""
    screen.print()
    screen.print(text, style="bold cyan")


def grid(*headings: str, left: Sequence[int] = (0,)) -> Table:
    """Return a table without lines; all columns but those `left` stand to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, name in enumerate(headings):
        table.add_column(name, justify="left" if place in left else "right", overflow="fold")
    return table


def interval(ends: Interval) -> str:
    """Return an interval of a share."""
    return f"{ends[0]:.3f}-{ends[1]:.3f}"


def bar(share: float, screen: Console) -> Text:
    """Return a share as a bar."""
    fancy = (screen.encoding or "").lower().startswith("utf")
    return Text(("█" if fancy else "#") * round(BAR * share), style="green")


def plain(text: str) -> Text:
    """Return what came from data as it may be printed: on one line, no control characters, no markup, not too long."""
    shown = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    return Text(shown if len(shown) <= LONGEST_TEXT else shown[: LONGEST_TEXT - 3] + "...")
