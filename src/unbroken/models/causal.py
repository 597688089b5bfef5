"""A causal language model in training: texts of mixed lengths as one sequence, and the loss of their target tokens.

Shape suffixes: N texts, T tokens of all texts, R tokens that are predicted, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from unbroken.base.errors import ConfigError
from unbroken.models.causal_folder import CausalFolder, read_causal_folder
from unbroken.models.folder import INDEX_FILE, WEIGHTS_FILE, resolve
from unbroken.models.hugging_face import PADDING_ID, buckets, build_model, quicken, token_mask
from unbroken.models.linear import product_for
from unbroken.models.packing import Pack
from unbroken.models.quantized import Bits, load_quantized
from unbroken.models.tokenizing import NO_LIMIT
from unbroken.models.weights import Stored, match, owned, read_weights, weight_files
from unbroken.models.writing import render_config
from unbroken.step.causal import head_cross_entropy

# Families whose packed loss and gradients are compared with the padded ones in tests/pairs/test_causal.py.
PACKED_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# What old files hold and every model computes for itself.
COMPUTED_ENDINGS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias")


class CausalLM(nn.Module):
    """A Hugging Face causal language model, perhaps with PEFT's layers in it.

    `packed` says whether texts run as one sequence without padding, `reason` why not if not. `max_length` is the
    longest text in tokens. `neftune_alpha`, where set, adds noise to the embeddings in training.
    """

    def __init__(self, folder: CausalFolder, model: Any, *, packed: bool) -> None:
        super().__init__()
        self.folder = folder
        self.model = model
        self.packed = packed
        kind = folder.model_type
        self.reason = "" if packed else f"models of type {kind!r} run in padded buckets of similar length, not packed"
        self.max_length = int(getattr(model.config, "max_position_embeddings", None) or NO_LIMIT)
        self.neftune_alpha: float | None = None
        self._places: dict[str, tuple[str, str]] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        quantization: Bits | None = None,
    ) -> CausalLM:
        """Load a Hugging Face folder, or a model by its name on the hub, in eval mode; weights come as `dtype`.

        With `quantization` its matrices are held in few bits, and cannot be trained or written. Python files of the
        folder run only with `trust_remote_code`. Raises `ConfigError` in one line if anything is missing, damaged,
        unknown or left over.
        """
        folder = read_causal_folder(resolve(path))
        if folder.remote_code and not known(folder.model_type) and not trust_remote_code:
            raise ConfigError(
                f"{folder.root} brings Python code of its own, which would run with all your rights",
                next_step="read it, and set trust_remote_code: true if you trust it",
            )
        if quantization is not None:
            packed = folder.model_type in PACKED_FAMILIES
            return cls(
                folder, load_quantized(folder, quantization, torch.device(device), dtype, packed=packed), packed=packed
            )
        if folder.model_type in PACKED_FAMILIES:
            model, _ = build_model(folder.config, folder.root, AutoModelForCausalLM, PACKED_FAMILIES, dtype)
            lm = cls(folder, model, packed=True)
            lm._load_weights(dtype)
        else:
            lm = cls(folder, load_with_transformers(folder, dtype, trust_remote_code), packed=False)
            lm._places = {f"model.{name}": (WEIGHTS_FILE, name) for name in lm.model.state_dict()}
            for name in tied_names(lm.model):
                lm._places.pop(f"model.{name}", None)
        return lm.eval().to(device)

    def loss(self, ids_T: Tensor, lengths: NDArray[np.int64], targets_T: Tensor) -> Tensor:
        """Return the mean cross-entropy of the tokens marked in `targets_T`, each given those before it in its text.

        `ids_T` holds all texts one after the other, `lengths` [N] says where each ends. A text's first token is
        never predicted. Without a target the loss is 0.
        """
        pack = Pack.of(lengths, self.device)
        ids_T = ids_T.to(self.device)[pack.places].long()
        targets_T = targets_T.to(self.device)[pack.places] & (pack.positions > 0)
        if not self.packed:
            return self._loss_in_buckets(ids_T, targets_T, pack)
        hidden_TD = self._hidden(ids_T, pack)
        predicted_R = targets_T.nonzero().squeeze(1)
        if not len(predicted_R):
            return hidden_TD.sum() * 0.0
        return self._head_loss(hidden_TD.index_select(0, predicted_R - 1), ids_T[predicted_R])

    def logits(self, ids_T: Tensor, lengths: NDArray[np.int64]) -> Tensor:
        """Return the logits [T, V] after each token, in the order of the input; all of them in memory."""
        pack = Pack.of(lengths, self.device)
        ids_T = ids_T.to(self.device)[pack.places].long()
        if self.packed:
            packed_TV = self.model.get_output_embeddings()(self._hidden(ids_T, pack))
        else:
            packed_TV = torch.cat([logits for logits, _ in self._bucketed(ids_T, pack)])
        logits_TV: Tensor = packed_TV[torch.argsort(pack.places)]
        return logits_TV

    def _hidden(self, ids_T: Tensor, pack: Pack) -> Tensor:
        inputs = {name: values[None] for name, values in self._inputs(ids_T, pack).items()}
        output = self.model.base_model(**inputs, position_ids=pack.positions[None], pack=pack, use_cache=False)
        hidden_TD: Tensor = output.last_hidden_state.squeeze(0)
        return hidden_TD

    def _head_loss(self, rows_RD: Tensor, targets_R: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        saved = getattr(head, "modules_to_save", None)  # PEFT's wrapper around a head that is trained whole
        head = head if saved is None else saved[head.active_adapters[0]]
        if not isinstance(head, nn.Linear):  # an adapter of its own on the head: rarely asked for, and not chunked
            return F.cross_entropy(head(rows_RD).float(), targets_R)
        rows_RD = rows_RD.to(head.weight.dtype)
        return head_cross_entropy(rows_RD, head.weight, head.bias, targets_R, product_for(rows_RD, head.weight))

    def _inputs(self, ids_T: Tensor, pack: Pack) -> dict[str, Tensor]:
        """Return what the model is fed for packed ids: the ids, or in training with NEFTune embeddings with noise.

        NEFTune (Jain et al. 2023, arXiv 2310.05914): uniform noise of at most alpha / sqrt(L * D) for a text of L
        tokens, drawn from the device's default generator.
        """
        if not (self.training and self.neftune_alpha):
            return {"input_ids": ids_T}
        embeddings_TD = self.model.get_input_embeddings()(ids_T)
        noise_TD = torch.empty_like(embeddings_TD, requires_grad=False).uniform_(-1.0, 1.0)
        lengths_T = torch.cat([torch.full((n * length,), float(length)) for n, length in pack.runs])
        bounds_T = (self.neftune_alpha / (lengths_T * embeddings_TD.shape[1]).sqrt()).to(noise_TD)
        return {"inputs_embeds": embeddings_TD + noise_TD * bounds_T[:, None]}

    def _loss_in_buckets(self, ids_T: Tensor, targets_T: Tensor, pack: Pack) -> Tensor:
        losses = []
        for logits_tV, place in self._bucketed(ids_T, pack):
            predicted_r = targets_T[place].nonzero().squeeze(1)
            chosen = logits_tV[predicted_r - 1]
            exact = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
            losses.append(F.cross_entropy(exact, ids_T[place][predicted_r], reduction="sum"))
        return torch.stack(losses).sum() / targets_T.sum().clamp(min=1)

    def _bucketed(self, ids_T: Tensor, pack: Pack) -> Any:
        """Yield the logits of a bucket's tokens, and where these tokens lie in the pack."""
        inputs = self._inputs(ids_T, pack)
        start = 0
        for runs in buckets(pack):
            mask = torch.cat([token_mask(n, length, runs[-1][1], ids_T.device) for n, length in runs])
            place = slice(start, start := start + sum(n * length for n, length in runs))
            padded = {}
            for name, values in inputs.items():
                shape = (*mask.shape, *values.shape[1:])
                empty = values.new_full(shape, PADDING_ID if name == "input_ids" else 0.0)
                padded[name] = empty.index_put((mask,), values[place])
            yield self.model(**padded, attention_mask=mask.long(), use_cache=False).logits[mask], place

    def checkpoint_gradients(self) -> None:
        """Keep only each layer's input for the backward pass, and compute the layer again there.

        Not a bit changes: the second forward draws from generators put back to where the first found them.
        """
        if not getattr(self.model, "supports_gradient_checkpointing", False):
            raise ConfigError(
                f"models of type {self.folder.model_type!r} offer no gradient checkpointing",
                next_step="leave it off, and lower micro_batch_size instead",
            )
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def layout(self, name: str) -> tuple[str, str]:
        """Return where an entry of `state_dict()` belongs: (file relative to the model folder, key in it)."""
        return self._places[name]

    def documents(self) -> dict[str, bytes]:
        """Return every file of the model folder that is not weights, by relative path."""
        documents = dict(self.folder.documents)
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        documents["config.json"] = render_config(documents["config.json"], dtype)
        if not any(file != WEIGHTS_FILE for file, _ in self._places.values()):
            documents.pop(INDEX_FILE, None)
        return dict(sorted(documents.items()))

    def _load_weights(self, dtype: torch.dtype) -> None:
        root = self.folder.root
        stored = read_weights(root, self.folder.part)
        state = self.model.state_dict()
        twins = tied_names(self.model)
        found = match({name: tensor for name, tensor in state.items() if name not in twins}, stored, "", root)
        refuse_strangers(stored, found, twins, root)
        self._places = {f"model.{name}": (entry.file, entry.key) for name, entry in found.items()}
        del stored
        tensors = {name: found.pop(name).tensor.to(dtype) for name in list(found)}
        self.model.load_state_dict(tensors, strict=False, assign=True)
        self.model.tie_weights()
        left = [name for name, parameter in self.model.named_parameters() if parameter.is_meta]
        assert not left, f"{left[0]} was not loaded"


def load_with_transformers(folder: CausalFolder, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """Load a model of a family that packing is not tested for by transformers' own loader, tensors in fresh storage.

    Such families' files may name or cut tensors otherwise than the model does; the loader knows how.
    """
    weight_files(folder.root, folder.part)  # safetensors and nothing else: a pickle can run code
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder.root,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as failure:  # noqa: BLE001 - a folder's own code raises what it likes
        reason = str(failure).strip().splitlines() or [type(failure).__name__]
        raise ConfigError(f"{folder.root}: transformers cannot load this model: {reason[0]}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        for key in sorted(map(str, found[what])):
            raise ConfigError(
                f"{folder.root}: {what.removesuffix('s').replace('_', ' ')} {key!r} in the weights",
                next_step="copy the model folder again, whole, or name another model",
            )
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = owned(tensor.data)
    quicken(model)
    return model


def known(model_type: str) -> bool:
    """Return whether transformers has this family itself."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def tied_names(model: Any) -> dict[str, str]:
    """Return the entries of the state that are other entries under another name, and which."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return {}
    return dict(getattr(model, "_tied_weights_keys", None) or {})


def refuse_strangers(stored: list[Stored], found: Mapping[str, Stored], twins: Mapping[str, str], place: Path) -> None:
    """Raise `ConfigError` for a tensor no part of the model takes: the folder is not what its configuration says."""
    used = {(entry.file, entry.key) for entry in found.values()}
    for entry in stored:
        if (entry.file, entry.key) in used or entry.key.endswith(COMPUTED_ENDINGS):
            continue
        if entry.key not in twins:
            raise ConfigError(
                f"{place}: the weights hold {entry.key!r}, which the configuration has no place for",
                next_step="copy the model folder again, whole, or name another model",
            )
        if not torch.equal(entry.tensor, found[twins[entry.key]].tensor):
            raise ConfigError(
                f"{place}: by the configuration {entry.key!r} is {twins[entry.key]!r}, but the weights differ",
                next_step="set tie_word_embeddings to false in config.json if they are meant to",
            )
