"""Use an adapted language model: open it from wherever it is, and have it answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unbroken.base.errors import ConfigError
from unbroken.base.fingerprint import canonical, digest
from unbroken.models.causal_folder import require_same_base
from unbroken.models.chat import ChatFormat
from unbroken.models.identity import model_digest
from unbroken.tasks.adapt.asking import Asking, place_of
from unbroken.tasks.adapt.conversation import Conversation
from unbroken.tasks.adapt.source import adapter_digest
from unbroken.tasks.base_model import reading

if TYPE_CHECKING:  # both bring torch
    from unbroken.models.causal import CausalLM
    from unbroken.models.lora import Adapter


@dataclass(frozen=True)
class Found:
    """A language model on disk: the folder of its weights, and the adapter to put on it if there is one."""

    folder: Path
    adapter: Path | None

    @classmethod
    def of(cls, model: str | os.PathLike[str]) -> Found:
        """Find a run's model, a checkpoint's, or any other; a GGUF file is converted, once. Raises `ConfigError`."""
        place = place_of(model)
        folder = place.folder
        if folder is None:
            from unbroken.models.gguf import converted

            assert place.gguf is not None, "a place has one of both"
            folder = converted(place.gguf)
        return cls(folder, place.adapter)

    @property
    def digest(self) -> str:
        """A digest of all weights and configurations."""
        with reading(str(self.folder)):
            parts = [model_digest(self.folder)]
            return digest(canonical([*parts, *([adapter_digest(self.adapter)] if self.adapter else [])]))

    def open(self, asking: Asking, device: str = "auto") -> Answering:
        """Load the model. Raises `ConfigError` in one line if it is damaged or does not fit together."""
        lm, adapter = self.load(asking, device)
        return Answering(lm, self.chat(asking), asking, adapter)

    def chat(self, asking: Asking) -> ChatFormat:
        """Return the template and the tokenizer the model is asked by. Raises `ConfigError` if they do not fit."""
        return ChatFormat.of(self.folder, asking.config.template)

    def load(self, asking: Asking, device: str = "auto") -> tuple[CausalLM, Adapter | None]:
        """Return the model, in eval mode, and the adapter in it."""
        from unbroken.models.causal import CausalLM
        from unbroken.models.lora import Adapter
        from unbroken.tasks.adapt.task import dtype_of
        from unbroken.tasks.device import resolve_device

        config = asking.config
        where = resolve_device(device)
        if self.adapter is not None:
            with reading(str(self.folder)):
                require_same_base(self.adapter, self.folder)
        lm = CausalLM.from_pretrained(
            self.folder, device=where, dtype=dtype_of(config, where), trust_remote_code=config.trust_remote_code
        )
        adapter = None if self.adapter is None else Adapter.from_pretrained(lm, self.adapter)
        return lm.to(where).eval(), adapter


@dataclass(frozen=True)
class Answering:
    """A language model with how it is asked: conversations in, texts out."""

    lm: CausalLM
    chat: ChatFormat
    asking: Asking
    adapter: Adapter | None = None

    def answers(
        self, conversations: Sequence[Conversation], advance: Callable[[int], object] = lambda count: None
    ) -> list[str]:
        """Return what the model says to each conversation. See `answers`."""
        return answers(self.lm, self.chat, conversations, self.asking.config.max_new_tokens, advance)


def answers(
    lm: CausalLM,
    chat: ChatFormat,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    advance: Callable[[int], object] = lambda count: None,
) -> list[str]:
    """Return what a model says to each conversation, in at most so many tokens.

    Of a conversation that leaves no room for that in the model's longest text, the end of the last message is left
    out. What is asked together decides the last bits; see `generate`. Raises `ConfigError` if no room is left at all.
    """
    from unbroken.models.generating import generate

    room = lm.max_length - max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens {max_new_tokens} leaves no room for a question: the model takes {lm.max_length} tokens",
            next_step="set it lower",
        )
    prompts = [chat.prompt(conversation, room) for conversation in conversations]
    said = generate(lm, prompts, stop_ids=chat.stop_ids, max_new_tokens=max_new_tokens, advance=advance)
    return [chat.decode(tokens) for tokens in said]
