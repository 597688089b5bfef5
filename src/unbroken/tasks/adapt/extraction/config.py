"""What a run that learns to extract can be told under `extraction:`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unbroken.base.config import Config, identity
from unbroken.tasks.adapt.extraction.instructions import MOST_PHRASINGS

Kind = Literal["ner", "re", "ee", "eet", "eea", "spo", "kg"]
Language = Literal["en", "zh"]
Style = Literal["json", "text"]
Format = Literal["auto", "spans", "deepke", "conll"]
SchemaValue = list[str] | dict[str, list[str] | list[list[str]]] | str

Absent = Literal["left_out", "listed"]

# DeepKE's recommendations (`split_num`); for spo, which it does not list, that of re.
TYPES_PER_PROMPT: dict[Kind, int] = {"ner": 6, "re": 4, "spo": 4, "ee": 4, "eet": 4, "eea": 4, "kg": 1}

# Where an answer holds only what occurs, a question may ask for many types: the schema is short beside the answers to
# several questions, and a row is read once.
MANY_TYPES = 50

with warnings.catch_warnings():
    # `schema` is the word users know. It hides a deprecated method of pydantic's that nothing here calls.
    warnings.filterwarnings("ignore", message='Field name "schema"', category=UserWarning)

    class ExtractionConfig(Config):
        """Labelled text as instructions: what is extracted, how it is asked for."""

        ELSEWHERE: ClassVar[Mapping[str, str]] = {
            "entity": "entities",
            "event": "events",
            "neg_schema": "negatives",
            "relation": "relations",
            "schema_path": "schema",
            "split_num": "types_per_prompt",
            "task": "kind",
        }

        kind: Kind = identity(
            description="entities, relations, events, event triggers, event arguments, typed triples, "
            "entities with attributes"
        )
        text: str = identity("text", min_length=1, description="column of texts")
        entities: str = identity("entities", min_length=1, description="column of entities (ner, kg)")
        relations: str = identity("relations", min_length=1, description="column of relations (re, spo)")
        events: str = identity("events", min_length=1, description="column of events (ee, eet, eea)")
        schema: SchemaValue | None = identity(  # type: ignore[assignment]
            None,
            description="list of types; type -> roles (ee, eea) or attributes (kg); relation -> pairs of types (spo); "
            "or the path of DeepKE's schema.json; default: what occurs in the training data, sorted",
        )
        names: dict[str, str] = identity({}, description="type -> phrase that stands for it in prompts and answers")
        types_per_prompt: Annotated[int, Field(gt=0)] | Literal["auto"] | None = identity(
            "auto",
            description="types asked for at once; null: all; auto: 50, or with absent: listed ner 6, kg 1, others 4",
        )
        absent: Absent = identity(
            "left_out", description="what an answer says of types that do not occur: left_out, or listed with nothing"
        )
        negatives: Annotated[float, Field(ge=0, le=1)] | Literal["all"] | None = identity(
            "all", description="share of the types absent from a row that are asked for too; null is all"
        )
        phrasings: Annotated[int, Field(gt=0, le=MOST_PHRASINGS)] | list[str] = identity(
            1, description="how many wordings of the instruction are used, or your own"
        )
        language: Language = identity("en", description="of the instruction")
        format: Format = identity("auto", description="of the labelled rows")
        prompt_style: Style = identity("json", description="json: instruction, schema and input as DeepKE puts them")

        @model_validator(mode="after")
        def _whole(self) -> Self:
            if isinstance(self.phrasings, list) and not all(one.strip() for one in self.phrasings or [""]):
                raise ValueError("phrasings: an instruction is empty; write at least one, and none without words")
            if self.format == "conll" and self.kind != "ner":
                raise ValueError(f"format: conll holds entities; kind '{self.kind}' needs rows; use jsonl")
            return self

        @property
        def column(self) -> str:
            """The column of labels that this kind reads."""
            return {"ner": self.entities, "kg": self.entities, "re": self.relations, "spo": self.relations}.get(
                self.kind, self.events
            )

        @property
        def at_once(self) -> int | None:
            """How many types a prompt asks for, None for all."""
            if self.types_per_prompt != "auto":
                return self.types_per_prompt
            return TYPES_PER_PROMPT[self.kind] if self.absent == "listed" else MANY_TYPES

        @property
        def share_of_absent(self) -> float:
            """The share of absent types that are asked for."""
            return 1.0 if self.negatives in (None, "all") else float(self.negatives)
