"""What a model extracts from texts, and how good that is against their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

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
    """Scores a model by what it extracts from the first `num_rows` of a labelled source, from all if that is None."""

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
        questions = [rows.prompts(row) for row in range(self.count)]
        asked = [conversation for some in questions for _, conversation in some]
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self.on_progress("extracting", done, len(asked))

        replies = iter(answers(lm, self.chat, asked, self.max_new_tokens, advance))
        found = Scores(rows.config.kind, rows.schema.types)
        for text, labels, some in zip(rows.texts, rows.labelled, questions, strict=False):
            found.add(text, labels, extraction_of(text, rows, some, list(islice(replies, len(some)))))
        return found

    def __call__(self, lm: CausalLM) -> dict[str, float]:
        """Return the scores by name, f1 first."""
        return figures(self.scores(lm))

    @property
    def count(self) -> int:
        """The number of rows that are scored."""
        return self.rows.num_rows if self.num_rows is None else min(self.num_rows, self.rows.num_rows)


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
