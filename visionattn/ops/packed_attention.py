"""Attention among selected tokens, packed into containers (SPA, arXiv 2410.23608)."""

from typing import NamedTuple

import torch

from ._modes import needs_formula
from .attention import softmax_attention

__all__ = ["Packing", "pack_tokens", "packed_attention"]


class Packing(NamedTuple):
    """The positions of packed tokens: consecutive containers of `length` slots.

    Attributes:
        token: The token in each slot, `(rows, slots)`; any in an empty one.
        slot: The slot of each token, `(rows, N)`; any if it is not kept.
        number: Tokens kept, `(rows, 1)`: those slots are full.
        length: Slots of a container.
    """

    token: torch.Tensor
    slot: torch.Tensor
    number: torch.Tensor
    length: int


def pack_tokens(kept: torch.Tensor, length: int) -> Packing:
    """Assigns slots to the kept tokens, in order. `(rows, N)`, bool.

    There are slots for all tokens where the graph must not depend on the data, and no more containers than are needed
    otherwise.

    Args:
        kept: Which tokens are kept.
        length: Slots of a container; all tokens go into one if there are no more.
    """
    rows, tokens = kept.shape
    length = min(length, tokens)
    rank = kept.cumsum(1)
    count = rank[:, -1:]
    most = tokens if needs_formula() or kept.is_meta else max(int(count.max()), 1)
    slots = -(-most // length) * length
    slot = rank - 1
    place = torch.where(kept, slot, slots)
    number = torch.arange(tokens, device=kept.device).expand(rows, -1)
    token = number.new_zeros(rows, slots + 1).scatter(1, place, number)[:, :slots]
    return Packing(token, slot.clamp_min(0).clamp_max(slots - 1), count, length)


def packed_attention(
    qkv: torch.Tensor,
    packing: Packing,
    *,
    image: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Softmax attention inside containers. `(rows, slots, 3, heads, d) -> (rows, slots, heads * d)`.

    What empty slots get has no meaning.

    Args:
        qkv: Queries, keys and values of the tokens in the slots.
        packing: As `pack_tokens` gives it.
        image: The image of the token in each slot, `(rows, slots)`: only those of one see each other. One if None.
        scale: Factor of the scores, `d ** -0.5` if None.
        dropout_p: Probability of dropping an attention weight.
    """
    rows, slots = packing.token.shape
    full = (torch.arange(slots, device=qkv.device) < packing.number).unflatten(1, (-1, packing.length)).flatten(0, 1)
    # Queries of empty slots must see something.
    mask = full[:, None, :] | ~full[:, :, None]
    if image is not None:
        image = image.unflatten(1, (-1, packing.length)).flatten(0, 1)
        mask = (full[:, None, :] & (image[:, None, :] == image[:, :, None])) | ~full[:, :, None]
    q, k, v = qkv.unflatten(1, (-1, packing.length)).flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)
    out = softmax_attention(q, k, v, mask=mask.unsqueeze(1), scale=scale, dropout_p=dropout_p).transpose(1, 2)
    if torch.compiler.is_exporting():
        # An exporter takes the operator apart more than once, and each time its result may lie otherwise in memory.
        out = out.clone(memory_format=torch.contiguous_format)
    return out.reshape(rows, slots, -1)
