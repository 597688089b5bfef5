"""Training only the rows of an embedding table that the data use.

A row no text uses has a gradient and moments of zero, and without weight decay AdamW leaves it as it is, bit for bit.
So the rows in use can be trained as a table of their own: the gradient's norm, clipping, the update and the
optimizer's state then cost what the data need, not what the tokenizer could say. In exact arithmetic nothing else
changes. In float32 neither does a bit at widths of 32, 384 and 768 (measured): leaving out whole rows of zeros moves
no number to another lane of the processor's vectors. At widths that are no multiple of them it does, so that the norm
is summed in another order and the kernel's scalar tail falls on other numbers: a step may differ in its last bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unbroken.base.errors import ConfigError
from unbroken.base.stopping import poll
from unbroken.models.lookup import Lookup

if TYPE_CHECKING:
    from unbroken.models.arena import Arena
    from unbroken.models.encoder import Encoder

BLOCK_TOKENS = 1 << 20


class ActiveTable(nn.Module):
    """An embedding table [V, D] of which U rows are trained, in the place of the module that held it.

    `active.weight` [U, D] is what is trained: row i stands for token `ids[i]`. `weight` [V, D] is the whole table
    under its old name, frozen; its rows in use are those of the last `write_back`, and nothing else writes into it.
    So a commit may go on copying it while the next passes run: steps, evaluations and `state_dict()` find the trained
    rows where they are.
    """

    ids: Tensor
    rows: Tensor

    def __init__(self, table: nn.Embedding, ids: NDArray[np.int64]) -> None:
        """Take over `table`, which is frozen; `ids` are ascending, each once."""
        super().__init__()
        self.weight = table.weight.requires_grad_(False)
        device = self.weight.device
        places = torch.from_numpy(ids)
        rows = torch.full((len(self.weight),), -1)
        rows[places] = torch.arange(len(ids))
        # Both follow from the data: no checkpoint holds them.
        self.register_buffer("ids", places.to(device), persistent=False)
        self.register_buffer("rows", rows.to(device), persistent=False)
        padding = -1 if table.padding_idx is None else int(rows[table.padding_idx])
        self.active = Lookup(
            len(ids), table.embedding_dim, None if padding < 0 else padding, self.weight.detach()[self.ids]
        )
        self.active.reuses_gradient = getattr(table, "reuses_gradient", False)
        self.train(table.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the given tokens, as trained so far: [...] -> [..., D].

        Raises `ConfigError` for a token in training whose row is not trained: it would silently stay as it is.
        """
        rows = self.rows.index_select(0, input.reshape(-1)).view(input.shape)
        used = rows >= 0
        if used.all():
            trained: Tensor = self.active(rows)
            return trained
        if self.training and torch.is_grad_enabled():
            raise ConfigError(
                f"token {int(input[~used][0])} is trained on, but the row of its embedding is not",
                why="only the rows that were found in the data are",
                next_step="name the tokens of all texts that are trained on",
            )
        return torch.where(used.unsqueeze(-1), self.active(rows.clamp(min=0)), F.embedding(input, self.weight.detach()))

    @torch.no_grad()
    def write_back(self) -> bool:
        """Make `weight` the table as trained so far; return whether that changed a bit of it.

        Only between steps, when no commit is copying: after an update, which waits for that. Until the next update
        it changes nothing, and therefore writes nothing.
        """
        if torch.equal(self.weight[self.ids].view(torch.uint8), self.active.weight.view(torch.uint8)):
            return False
        self.weight.index_copy_(0, self.ids, self.active.weight)
        return True

    def whole(self) -> Tensor:
        """Return a copy of the table as trained so far: [V, D]."""
        return self.weight.detach().index_copy(0, self.ids, self.active.weight.detach())

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:  # the live tensors were not asked for, but the values of now
            destination[f"{prefix}weight"] = self.whole()


def use_active_rows(encoder: Encoder, used: NDArray[np.int64]) -> ActiveTable:
    """Replace the encoder's table of token vectors by one of which only the rows `used` are trained; return it.

    Before an optimizer is made: what it trains is then `active.weight` and no longer `weight`. Equal to training the
    whole table only without weight decay, which would move the other rows too. Beyond `used`, a row that stands for
    the padding of a batch is trained where the encoder looks one up.

    Raises `ConfigError` if the table is no plain one, is frozen, or is also used elsewhere in the encoder (tied to
    an output, say), and for ids that are not in it. A tie to modules outside of the encoder cannot be seen here.
    """
    name, table = _input_table(encoder)
    padding = encoder.backbone.padding_id
    ids = np.unique(np.append(used, [] if padding is None else [padding]).astype(np.int64))
    if not len(ids) or ids[0] < 0 or ids[-1] >= len(table.weight):
        raise ConfigError(
            f"tokens {ids[0]} to {ids[-1]} are used, the table has rows 0 to {len(table.weight) - 1}"
            if len(ids)
            else "no token is used",
            next_step="take the ids from the texts that are trained on, by this model's own tokenizer",
        )
    active = ActiveTable(table, ids)
    parent, _, last = name.rpartition(".")
    setattr(encoder.get_submodule(parent), last, active)
    return active


def _input_table(encoder: Encoder) -> tuple[str, nn.Embedding]:
    """Return the module that looks tokens up, and its name in the encoder, if it may be replaced."""
    model: Any = encoder.backbone.model
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        table = None
    if type(table) not in (nn.Embedding, Lookup):
        raise _refusal(encoder, f"its tokens are looked up by a {type(table).__name__}, not by a plain table")
    if table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        raise _refusal(encoder, "its table has max_norm, scale_grad_by_freq or sparse set")
    if not table.weight.requires_grad:
        raise _refusal(encoder, "its table is frozen")
    address = table.weight.data_ptr()
    places = [place for place, held in encoder.named_parameters(remove_duplicate=False) if held.data_ptr() == address]
    if len(places) > 1:
        raise _refusal(encoder, f"its table is used in several places ({', '.join(places)})")
    return places[0].removesuffix(".weight"), table


def _refusal(encoder: Encoder, reason: str) -> ConfigError:
    return ConfigError(
        f"{encoder.folder.root}: the embedding rows in use cannot be trained alone: {reason}",
        next_step="train the whole table",
    )


def used_ids(arenas: Iterable[Arena], num_rows: int) -> NDArray[np.int64]:
    """Return the tokens that occur in `arenas`, ascending, each once; read block by block, in memory of O(num_rows).

    Raises `ConfigError` for a token that a table of `num_rows` rows does not have.
    """
    used = np.zeros(num_rows, dtype=np.bool_)
    for arena in arenas:
        for start in range(0, len(arena.ids), BLOCK_TOKENS):
            poll()
            block = arena.ids[start : start + BLOCK_TOKENS]
            if block.max() >= num_rows:
                raise ConfigError(
                    f"the tokenizer gives token {block.max()}, the model's table has rows 0 to {num_rows - 1}",
                    why="tokenizer and model do not belong together",
                    next_step="copy the model folder again, whole, or name another model",
                )
            used[block] = True
    return np.flatnonzero(used)
