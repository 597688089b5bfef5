"""What a model extracts from texts, and how good that is against their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from unbroken.tasks.adapt.encoding import spread
from unbroken.tasks.adapt.extraction.replies import Extraction, extracted
from unbroken.tasks.adapt.extraction.rows import ExtractionRows
from unbroken.tasks.adapt.extraction.scores import Scores
from unbroken.tasks.adapt.use import answers

if TYPE_CHECKING:  # brings torch
    from unbroken.models.causal import CausalLM
    from unbroken.models.chat import ChatFormat

Progress = Callable[[str, int, int], object]
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Extracting:
    """Scores a model by what it extracts from `num_rows` rows of a labelled source, from all if that is None."""

    rows: ExtractionRows
    chat: ChatFormat
    max_new_tokens: int
    num_rows: int | None = None
    on_progress: Progress = lambda what, done, total: None

    def scores(self, lm: CausalLM) -> Scores:
        """Have the model answer every question about these rows, all types asked for; return how good that is.

        The model and all random generators are left as they were.
        """
        rows = self.rows
        chosen = spread(rows.num_rows, self.num_rows)
        questions = [rows.prompts(row) for row in chosen]
        asked = [conversation for some in questions for _, conversation in some]
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self.on_progress("extracting", done, len(asked))

        replies = iter(answers(lm, self.chat, asked, self.max_new_tokens, advance))
        found = Scores(rows.config.kind, rows.schema.types)
        for row, some in zip(chosen, questions, strict=True):
            text = rows.texts[row]
            found.add(text, rows.labelled[row], extraction_of(text, rows, some, list(islice(replies, len(some)))))
        return found

    def __call__(self, lm: CausalLM) -> dict[str, float]:
        """Return the scores by name, f1 first."""
        return figures(self.scores(lm))


def figures(scores: Scores) -> dict[str, float]:
    """Return the scores by name, with the share of answers that could not be read."""
    found = scores.metrics()
    total = found["answers"]
    return found | {UNREADABLE: found[f"answers/{UNREADABLE}"] / total if total else 0.0}


def extraction_of(
    text: str, rows: ExtractionRows, questions: Sequence[tuple[tuple[str, ...], object]], said: Sequence[str]
) -> Extraction:
    """Return what the answers to the questions about a text say."""
    return extracted(text, rows.schema, [(types, reply) for (types, _), reply in zip(questions, said, strict=True)])
