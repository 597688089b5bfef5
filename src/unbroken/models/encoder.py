"""The encoder: texts in, one vector each out, for training and for use."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unbroken.base.errors import ConfigError
from unbroken.models.backbone import Backbone, build_backbone
from unbroken.models.folder import Folder, Part, Settings, read_folder, resolve
from unbroken.models.heads import Dense, build_head
from unbroken.models.inference import encode_texts
from unbroken.models.lookup import Lookup
from unbroken.models.packing import Pack
from unbroken.models.padding import ragged_of, repad
from unbroken.models.pooling import Pooling
from unbroken.models.ragged import Ragged
from unbroken.models.tokenizing import NO_LIMIT, Tokenizer
from unbroken.models.vocabulary import ActiveTable
from unbroken.models.weights import Stored, match, read_weights
from unbroken.models.writing import render_documents, save


class EncoderWarning(UserWarning):
    """Something about a model its user should know, said once when it is loaded."""


class Encoder(nn.Module):
    """A text encoder: transformer, pooling, then any of Dense and Normalize.

    `embed` is the training path, `encode` the path for use, `forward` takes padded batches as
    sentence-transformers does. Tensors named `carried.*` are those the weights file holds and the model does not
    use: kept unchanged, so that nothing is lost when the model is written.
    """

    def __init__(self, folder: Folder, backbone: Backbone, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.folder = folder
        self.settings: Settings = folder.settings
        self.backbone = backbone
        self.pooling = Pooling.from_config(folder.parts[1].config, str(folder.root))
        self.heads = nn.ModuleList(heads)
        self.carried = nn.Module()
        self._places: dict[str, tuple[str, str]] = {}
        self._tokenizer = Tokenizer(folder)
        self._own_length = NO_LIMIT
        self._hugging_face_tokenizer: Any = None

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, max_length: int | None = None, device: torch.device | str | None = None
    ) -> Encoder:
        """Load a sentence-transformers folder, a plain Hugging Face folder, or a model by its name on the hub.

        The weights come as float32, in eval mode. Raises `ConfigError` in one line if anything is missing, damaged
        or unknown. Warns (`EncoderWarning`) where a choice was made for the user; the same texts are in `notes`.
        """
        folder = read_folder(resolve(path))
        heads = [build_head(part) for part in folder.parts[2:]]
        encoder = cls(folder, build_backbone(folder.transformer.config, folder.root), heads)
        encoder._load_weights()
        encoder._own_length = usable_length(encoder, None)
        encoder._tokenizer.max_length = usable_length(encoder, max_length)
        for note in encoder.notes:
            warnings.warn(note, EncoderWarning, stacklevel=2)
        return encoder.eval().to(device)

    def embed(self, ragged: Ragged) -> Tensor:
        """Return the embeddings [N, D] of rows of token ids, in input order, with gradients."""
        return self._embed(ragged)[0]

    def _embed(self, ragged: Ragged) -> tuple[Tensor, Tensor, Pack]:
        pack = Pack.of(ragged.lengths, self.device)
        ids = ragged.ids.to(self.device)[pack.places].long()
        vectors = self.backbone(ids, pack)
        embeddings = self.pooling(vectors, pack, ragged.prompt_lengths)
        for head in self.heads:
            embeddings = head(embeddings)
        return embeddings, vectors, pack

    def forward(self, encoding: Mapping[str, Any]) -> dict[str, Any]:
        """Encode a padded batch: `input_ids` [N, L] and `attention_mask` [N, L], padded on any side.

        Returns what came in together with `sentence_embedding` [N, D] and `token_embeddings` [N, L, hidden] (zeros
        at padding). Positions are counted from each text's first token.
        """
        ragged, mask = ragged_of(encoding)
        embeddings, vectors, pack = self._embed(ragged)
        return {
            **encoding,
            "token_embeddings": repad(vectors, pack, mask.to(vectors.device)),
            "sentence_embedding": embeddings,
        }

    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        normalize_embeddings: bool = False,
        convert_to_numpy: bool = True,
        show_progress_bar: bool | None = None,
        truncate_dim: int | None = None,
    ) -> NDArray[np.float32] | Tensor:
        """Return the embeddings of `texts`: [N, D], or [D] for a single text.

        Each distinct text is encoded once; `batch_size` counts texts of usual length, long ones take more room.
        The prompt, given as text or by its name in `prompts`, is put before every text. Raises `ConfigError` for
        an unknown prompt name.
        """
        embeddings = encode_texts(
            self,
            [texts] if isinstance(texts, str) else texts,
            prompt=self.resolve_prompt(prompt_name, prompt),
            batch_size=batch_size,
            normalize=normalize_embeddings,
            truncate_dim=truncate_dim if truncate_dim is not None else self.settings.truncate_dim,
            show_progress=show_progress_bar,
        )
        if isinstance(texts, str):
            embeddings = embeddings[0]
        return embeddings.float().cpu().numpy() if convert_to_numpy else embeddings

    def tokenize(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> Ragged:
        """Return the token ids of `prompt + text` for each text, special tokens added, truncated, not padded."""
        return self._tokenizer(texts, prompt, max_length)

    def resolve_prompt(self, prompt_name: str | None = None, prompt: str | None = None) -> str:
        """Return the prompt meant: the text given, else the one named, else the default one, else none."""
        if prompt is not None:
            return prompt
        name = prompt_name if prompt_name is not None else self.settings.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ConfigError(f"no prompt named {name!r}", next_step=f"known: {', '.join(self.prompts) or 'none'}")
        return self.prompts[name]

    @property
    def fast_tokenizer(self) -> Tokenizer:
        """What `tokenize` uses; an arena is built with it."""
        return self._tokenizer

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; made when first asked for, never on the training path."""
        if self._hugging_face_tokenizer is None:
            self._hugging_face_tokenizer = self._tokenizer.hugging_face()
        return self._hugging_face_tokenizer

    @property
    def max_length(self) -> int:
        """The number of tokens a text is truncated to, special tokens and prompt included."""
        return self._tokenizer.max_length

    @property
    def dimension(self) -> int:
        """The width of an embedding."""
        widths = [head.out_features for head in self.heads if isinstance(head, Dense)]
        return widths[-1] if widths else self.backbone.width * len(self.pooling.modes)

    @property
    def vocabulary_size(self) -> int:
        """The number of rows of the table of token vectors."""
        model: Any = self.backbone.model
        return len(model.get_input_embeddings().weight)

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts by name; may be changed, and is written with the model."""
        return self.settings.prompts

    @property
    def packed(self) -> bool:
        """Whether texts run as one sequence without padding."""
        return self.backbone.packed

    @property
    def notes(self) -> tuple[str, ...]:
        """What was chosen or could not be done when the model was loaded, a sentence each."""
        return self.folder.notes + ((self.backbone.reason,) if self.backbone.reason else ())

    def reuse_table_gradients(self) -> None:
        """Keep the buffers of embedding tables' gradients from step to step; see `Lookup` for what must then hold."""
        for module in self.modules():
            if isinstance(module, Lookup):
                module.reuses_gradient = True

    def set_dropout(self, probability: float) -> None:
        """Drop with this probability in training, wherever the model drops anything."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
            elif isinstance(getattr(module, "attention_dropout", None), float):  # Hugging Face's, by configuration
                setattr(module, "attention_dropout", probability)  # noqa: B010 - not declared by torch's Module

    def write_back(self) -> bool:
        """Bring every table up to date of which only some rows are trained; return whether that changed a bit.

        For `Job.write_back`; see `vocabulary.use_active_rows`. Reading the model never needs it.
        """
        changed = [module.write_back() for module in self.modules() if isinstance(module, ActiveTable)]
        return any(changed)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's parameters."""
        return next(self.backbone.parameters()).dtype

    def layout(self, name: str) -> tuple[str, str]:
        """Return where an entry of `state_dict()` belongs: (file relative to the model folder, key in it).

        Not for what `is_extra`.
        """
        return self._places[name]

    def is_extra(self, name: str) -> bool:
        """Return whether an entry of `state_dict()` serves training alone and has no place in the model folder."""
        return name not in self._places

    def documents(self) -> dict[str, bytes]:
        """Return every file of the model folder that is not weights, by relative path."""
        changed = self.max_length != self._own_length
        return render_documents(self.folder, self.settings, self.max_length, changed)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that `SentenceTransformer(path)` and `Encoder.from_pretrained(path)` load.

        For use outside runs; a run's model is written by its store.
        """
        tensors = {name: tensor for name, tensor in self.state_dict().items() if not self.is_extra(name)}
        save(Path(path), self.documents(), tensors, self.layout)

    def _load_weights(self) -> None:
        self._load_part(self.folder.transformer, "backbone.model", self.backbone.prefix)
        for index, part in enumerate(self.folder.parts[2:]):
            if part.kind == "Dense":
                self._load_part(part, f"heads.{index}", "")

    def _load_part(self, part: Part, root: str, prefix: str) -> None:
        module = self.get_submodule(root)
        stored = read_weights(self.folder.root, part)
        found = match(module.state_dict(), stored, prefix, self.folder.root / part.path)
        module.load_state_dict({name: entry.tensor.float() for name, entry in found.items()}, assign=True)
        self._places |= {f"{root}.{name}": (entry.file, entry.key) for name, entry in found.items()}
        used = {(entry.file, entry.key) for entry in found.values()}
        self._carry(part, [entry for entry in stored if (entry.file, entry.key) not in used])

    def _carry(self, part: Part, unused: Iterable[Stored]) -> None:
        for entry in unused:
            words = ([part.path] if part.path else []) + entry.key.split(".")
            holder = self.carried
            for word in words[:-1]:
                if word not in dict(holder.named_children()):
                    holder.add_module(word, nn.Module())
                holder = holder.get_submodule(word)
            holder.register_buffer(words[-1], entry.tensor)
            self._places["carried." + ".".join(words)] = (entry.file, entry.key)


def usable_length(encoder: Encoder, asked: int | None) -> int:
    """Return how many tokens texts are truncated to: what was asked for, else as sentence-transformers does.

    Never more than the model has positions for; raises `ConfigError` if more than that was asked for.
    """
    folder, limit = encoder.folder, encoder.backbone.position_limit
    if asked is not None:
        if asked < 1 or (limit is not None and asked > limit):
            raise ConfigError(
                f"max_length {asked}: this model takes 1 to {limit or 'any number of'} tokens",
                next_step="give a max_length it takes, or leave it out",
            )
        return asked
    length = folder.json(folder.length_file).get("max_seq_length")
    if length is None:
        tokenizer = folder.json(folder.transformer.file("tokenizer_config.json"))
        length = min(tokenizer.get("model_max_length") or NO_LIMIT, encoder.backbone.max_positions or NO_LIMIT)
    return int(min(length, NO_LIMIT if limit is None else limit))
