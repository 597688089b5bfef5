"""Run the demo and keep what it showed as an image for the README: `python docs/make_capture.py docs/demo.svg`.

Nothing in the image is written by hand: it is the output of one real run, and needs the MiniLM wheel.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

from unbroken.views.demo.play import play
from unbroken.views.demo.screen import Screen

WIDTH = 88
MOST_BYTES = 60_000
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def svg_format() -> str:
    """Return rich's layout without the fonts it would have the reader's browser fetch."""
    text = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return re.sub(r"font-family: (?:Fira Code, monospace|arial);", f"font-family: {FONTS};", text)


def main() -> None:
    """Run the demo in a folder of its own and write the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--seed", type=int, help="draws the instants of the kills")
    options = parser.parse_args()
    image = options.image.resolve()
    console = Console(file=sys.stdout, record=True, width=WIDTH, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        console.print("$ unbroken demo", style="bold")
        outcome = play(Path("runs/demo"), 2, options.seed, Screen(console, console))
        os.chdir(image.parent)
    if not outcome.comparison.identical:
        sys.exit("the two runs differ: no image was made")
    svg = console.export_svg(title="unbroken demo", theme=DIMMED_MONOKAI, code_format=svg_format(), unique_id="demo")
    svg = re.sub(r"<text[^>]*>\s*</text>", "", svg)
    svg = "\n".join(line.strip() for line in svg.splitlines() if line.strip()) + "\n"
    if len(svg.encode()) > MOST_BYTES or re.search(r"url\((?!#)|@import|<image", svg):
        sys.exit(f"the image has {len(svg.encode())} bytes (at most {MOST_BYTES}), or fetches something")
    image.write_text(svg, encoding="utf-8")
    print(f"{image}: {len(svg.encode()):,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
