"""Answers of a causal language model: for each prompt the most likely next token, again and again.

Prompts that begin alike (the same instruction, the same schema) are run together, and what they begin with once: the
keys and values of a batch's common beginning are computed for one prompt and repeated for the others. A text that has
ended leaves its batch.

Shape suffixes: N prompts of a batch, P tokens they all begin with, L tokens of the longest rest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria

from unbroken.base.stopping import poll
from unbroken.models.causal import CausalLM
from unbroken.models.inference import evaluating

Ids = NDArray[np.int32]
# Of SmolLM2-135M on one core a step takes 30 ms for one text and 2 ms for each other one; from here on that is most.
PROMPTS_AT_ONCE = 32
# Tokens of a batch, answers included: what is kept of them is tens of kilobytes each.
TOKENS_AT_ONCE = 8192
# A prompt joins those before it if they have this share of it in common with all of them.
COMMON_SHARE = 0.75
# Keys and values are copied when a text leaves: not for each one.
LEAVING_SHARE = 0.25
ATTENTION = "sdpa"


def generate(
    lm: CausalLM,
    prompts: Sequence[Ids],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Ids]:
    """Return what the model says after each prompt: at most `max_new_tokens`, the token that ended it left out.

    Greedy, drawing nothing at random; the model and the random generators are afterwards as they were. The same
    prompts give the same bits; in other company a prompt's logits differ by rounding, so that its answer differs
    where two tokens are as likely to the last digits. Nothing is said beyond the model's longest text. `advance` is
    told how many prompts are done, and a stop is heard between tokens.
    """
    answers: list[Ids] = [np.empty(0, np.int32)] * len(prompts)
    if not prompts or max_new_tokens < 1:
        advance(len(prompts))
        return answers
    decode = _decode if lm.packed else _decode_elsewhere
    equal_lengths = lm.packed and is_sliding(lm)
    with torch.inference_mode(), evaluating(lm), _attention(lm):
        for batch in batches(prompts, max_new_tokens, equal_lengths):
            limits = np.minimum([lm.max_length - len(prompts[i]) for i in batch.members], max_new_tokens).clip(0)
            found = decode(lm, [prompts[i] for i in batch.members], batch.common, frozenset(stop_ids), limits)
            for i, answer in zip(batch.members, found, strict=True):
                answers[i] = answer
            advance(len(batch.members))
    return answers


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are run together, by their numbers, and how many tokens all of them begin with."""

    members: list[int]
    common: int


def batches(prompts: Sequence[Ids], max_new_tokens: int, equal_lengths: bool = False) -> Iterator[PromptBatch]:
    """Yield the batches of some prompts, a function of these alone; of each some tokens are left after what is common.

    With `equal_lengths` there are only prompts of one length in a batch, so that none is padded.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].tolist())
    for group in _alike([prompts[i] for i in order]):
        members = sorted(order[group], key=lambda i: (len(prompts[i]), i))
        start = 0
        while start < len(members):
            stop = start + 1
            while stop < min(len(members), start + PROMPTS_AT_ONCE):
                length = len(prompts[members[stop]])
                if (stop + 1 - start) * (length + max_new_tokens) > TOKENS_AT_ONCE:
                    break
                if equal_lengths and length != len(prompts[members[start]]):
                    break
                stop += 1
            chosen = members[start:stop]
            extremes = sorted(prompts[i].tolist() for i in chosen)
            shared = 0 if len(chosen) == 1 else _common(np.array(extremes[0]), np.array(extremes[-1]))
            yield PromptBatch(chosen, min(shared, len(prompts[chosen[0]]) - 1))
            start = stop


def _alike(ordered: Sequence[Ids]) -> Iterator[slice]:
    """Yield the stretches of prompts, in the order of their tokens, that begin alike."""
    start, shared = 0, 0
    for place, prompt in enumerate(ordered):
        if place > start:
            shared = min(shared, _common(ordered[place - 1], prompt))
            if shared < COMMON_SHARE * len(prompt):
                yield slice(start, place)
                start, shared = place, len(prompt)
        else:
            shared = len(prompt)
    yield slice(start, len(ordered))


def _common(one: NDArray[Any], other: NDArray[Any]) -> int:
    """Return how many tokens two prompts begin with alike."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if different.size else length


def is_sliding(lm: CausalLM) -> bool:
    """Return whether some layer sees only the last so many places: padding would take up some of them."""
    return any(layer.is_sliding for layer in DynamicCache(config=lm.model.config).layers)


def _decode(
    lm: CausalLM, prompts: Sequence[Ids], common: int, stop_ids: frozenset[int], limits: NDArray[np.int64]
) -> list[Ids]:
    """Return the answers to a batch: common beginning, the prompts' rests padded on the left, then token by token."""
    device, model = lm.device, lm.model
    cache = DynamicCache(config=model.config)
    if common:
        beginning = torch.from_numpy(prompts[0][:common].astype(np.int64))[None].to(device)
        model(input_ids=beginning, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
        poll()
    ids_NL, mask_NL = padded([prompt[common:] for prompt in prompts], device)
    positions_NL = (common + mask_NL.cumsum(1) - 1).clamp(min=0)
    mask = torch.cat([mask_NL.new_ones(len(prompts), common), mask_NL], 1)
    said: list[list[int]] = [[] for _ in prompts]
    alive = [i for i, limit in enumerate(limits) if limit > 0]  # texts that go on
    held = list(range(len(prompts)))  # texts the cache has rows of
    while alive:
        logits_NV = model(
            input_ids=ids_NL,
            attention_mask=mask,
            position_ids=positions_NL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        poll()
        next_N = logits_NV.argmax(-1)
        chosen = dict(zip(held, next_N.tolist(), strict=True))
        for i in alive:
            if chosen[i] not in stop_ids:
                said[i].append(chosen[i])
        alive = [i for i in alive if chosen[i] not in stop_ids and len(said[i]) < limits[i]]
        positions_NL = positions_NL[:, -1:] + 1
        if alive and len(alive) <= (1 - LEAVING_SHARE) * len(held):
            kept = torch.tensor([held.index(i) for i in alive], device=device)
            cache.batch_select_indices(kept)
            next_N, mask, positions_NL, held = next_N[kept], mask[kept], positions_NL[kept], alive
        ids_NL = next_N[:, None]
        mask = torch.cat([mask, mask.new_ones(len(held), 1)], 1)
    return [np.array(tokens, dtype=np.int32) for tokens in said]


def padded(texts: Sequence[Ids], device: torch.device, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids [N, L], padded on the left, and which of them are tokens: 1, or 0 for padding."""
    width = max(map(len, texts))
    ids, mask = np.full((len(texts), width), fill, np.int64), np.zeros((len(texts), width), np.int64)
    for row, text in enumerate(texts):
        ids[row, width - len(text) :] = text
        mask[row, width - len(text) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _decode_elsewhere(
    lm: CausalLM, prompts: Sequence[Ids], common: int, stop_ids: frozenset[int], limits: NDArray[np.int64]
) -> list[Ids]:
    """As `_decode`, by Hugging Face's own `generate`, which knows families with another memory than keys and values."""
    ids_NL, mask_NL = padded(prompts, lm.device)
    if not limits.max():
        return [np.empty(0, np.int32)] * len(prompts)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=int(limits.max()),
        eos_token_id=sorted(stop_ids),
        pad_token_id=min(stop_ids, default=0),
        use_cache=True,
    )
    whole = lm.model.generate(
        input_ids=ids_NL, attention_mask=mask_NL, generation_config=settings, stopping_criteria=[_Heard()]
    )
    said = whole[:, ids_NL.shape[1] :].cpu().numpy().astype(np.int32)
    return [_until(row, stop_ids)[:limit] for row, limit in zip(said, limits, strict=True)]


def _until(row: Ids, stop_ids: frozenset[int]) -> Ids:
    """Return the tokens before the first of `stop_ids`."""
    ends = np.flatnonzero(np.isin(row, sorted(stop_ids)))
    return row[: ends[0]] if ends.size else row


class _Heard(StoppingCriteria):  # type: ignore[misc]
    """Ends nothing by itself: it is asked between two tokens, when a stop is to be heard."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return that no text has ended. Raises `StopNow` as `poll` does."""
        poll()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def _attention(lm: CausalLM) -> Iterator[None]:
    """Have the model attend from and to padded texts inside, and in its own way after."""
    before = lm.model.config._attn_implementation
    if lm.packed:
        lm.model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        if lm.packed:
            lm.model.set_attn_implementation(before)
