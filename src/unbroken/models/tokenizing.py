"""Texts to token ids, as sentence-transformers has them, by the tokenizers library alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from unbroken.base.errors import ConfigError
from unbroken.base.stopping import poll
from unbroken.models.folder import Folder, lower_cases, tokenizer_files
from unbroken.models.identity import tokenizer_digest_of
from unbroken.models.ragged import Ragged

# Files a tokenizer without tokenizer.json can be made from.
VOCABULARIES = ("vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model")
# More than any model takes: tokenizer configurations say 1e30 where they mean "no limit".
NO_LIMIT = 1 << 30
# The library cannot be interrupted: a second at most for long documents. Measured to be no slower than 4096.
TEXTS_AT_ONCE = 256


class Tokenizer:
    """Turns texts into token ids: special tokens added, truncated to `max_length` tokens, never padded.

    `digest` identifies everything the ids depend on except text, prompt and length.
    """

    def __init__(self, folder: Folder, max_length: int = NO_LIMIT) -> None:
        """Open the tokenizer of a model folder. Raises `ConfigError` if it has none, or a damaged one."""
        self.max_length = max_length
        self._files = tokenizer_files(folder)
        self._lower_case = lower_cases(folder)
        self._place = folder.root / folder.transformer.path
        self._model_config = folder.documents[folder.transformer.file("config.json")]
        self.digest = tokenizer_digest_of(self._files, self._lower_case)
        self._backend = self._open()
        added = self._backend.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._side = folder.json(folder.transformer.file("tokenizer_config.json")).get("truncation_side", "right")
        self._truncated_to: int | None = None

    def __call__(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> Ragged:
        """Return the ids of `prompt + text` for each text, int32."""
        self._truncate(max_length or self.max_length)
        rows = [prompt + text for text in texts] if prompt else list(texts)
        encodings = []
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            poll()
            encodings += self._backend.encode_batch_fast(rows[start : start + TEXTS_AT_ONCE])
        lengths = np.fromiter((len(encoding) for encoding in encodings), dtype=np.int64, count=len(encodings))
        tokens = chain.from_iterable(encoding.ids for encoding in encodings)
        ids = np.fromiter(tokens, dtype=np.int32, count=int(lengths.sum()))
        return Ragged.of(torch.from_numpy(ids), lengths, self.prompt_length(prompt))

    @property
    def backend(self) -> Any:
        """The tokenizers library's own object, this tokenizer's alone."""
        return self._backend

    def prompt_length(self, prompt: str) -> int:
        """Return how many tokens stand before the text: the prompt's, and special ones in front, none behind."""
        if not prompt:
            return 0
        encoding = self._backend.encode(prompt)
        closed = encoding.ids and (encoding.special_tokens_mask[-1] or encoding.ids[-1] in self._special)
        return len(encoding) - 1 if closed else len(encoding)

    def hugging_face(self) -> Any:
        """Return the transformers tokenizer of the same files, for those who need its methods (slow to import)."""
        from transformers import AutoTokenizer

        with TemporaryDirectory() as name:
            for file, content in {**self._files, "config.json": self._model_config}.items():
                (Path(name) / file).write_bytes(content)
            tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=self.max_length)
        if self._lower_case:
            lower_case(tokenizer.backend_tokenizer)
        return tokenizer

    def _open(self) -> Any:
        if not {"tokenizer.json", *VOCABULARIES} & set(self._files):
            raise ConfigError(
                f"{self._place} has no tokenizer: tokenizer.json is missing",
                next_step="copy the model folder again, whole, or name another model",
            )
        if "tokenizer.json" not in self._files:
            backend = self._convert()
        else:
            from tokenizers import Tokenizer as Backend

            try:
                backend = Backend.from_buffer(self._files["tokenizer.json"])
            except Exception as failure:  # noqa: BLE001 (the library raises bare Exception)
                raise ConfigError(
                    f"{self._place / 'tokenizer.json'} is damaged: {failure}",
                    next_step="copy the model folder again, whole, or name another model",
                ) from None
            if self._lower_case:
                lower_case(backend)
        backend.no_padding()
        backend.no_truncation()
        return backend

    def _convert(self) -> Any:
        """Build a tokenizer from older files (vocab.txt, sentencepiece) by way of transformers."""
        try:
            return self.hugging_face().backend_tokenizer
        except (ValueError, OSError, ImportError, AttributeError) as failure:
            raise ConfigError(f"{self._place} has no tokenizer.json, and none can be made: {failure}") from None

    def _truncate(self, max_length: int) -> None:
        if self._truncated_to == max_length:
            return
        if max_length >= NO_LIMIT:
            self._backend.no_truncation()
        else:
            self._backend.enable_truncation(max_length, direction=self._side)
        self._truncated_to = max_length


def lower_case(backend: Any) -> None:
    """Make a tokenizer lower-case every text first."""
    from tokenizers.normalizers import Lowercase, Sequence

    rest = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = Sequence([Lowercase(), *rest])
