"""Attention inside clusters of tokens that a table names."""

from typing import Any

import torch
from torch.nn import functional as F

from ._eager import traced

__all__ = ["cluster_attention"]


def cluster_attention(
    qkv: torch.Tensor,
    order: torch.Tensor,
    *,
    overlap: int = 0,
    scale: float | None = None,
    dropout_p: float = 0.0,
    pair_images: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of each cluster's queries to its keys and to a few of its sibling's.

    `(B, N, 3, heads, d), (B, heads, clusters, size) -> (B, N, heads, d)`, and the values as they came in, of the same
    shape but in memory of their own: what else is made of them then does not keep all of `qkv`.

    Clusters 2j and 2j + 1 are siblings: the first sees the first `overlap` tokens of the second, the second the last
    `overlap` of the first. A single cluster has no sibling. Rows are gathered once and put back once; keys that two
    clusters see are not copied.

    Args:
        qkv: Queries, keys and values as one projection leaves them.
        order: The tokens of each cluster, as `balanced_bisection` gives them; numbers from N up mark empty slots.
        overlap: Keys of the sibling that a cluster sees, at most all.
        scale: Factor of the logits, `d**-0.5` if None.
        dropout_p: Dropout of the attention weights.
        pair_images: Let the single clusters of images 2j and 2j + 1 be siblings; B must be even.
    """
    batch, tokens, _, heads, dim = qkv.shape
    clusters, size = order.shape[2:]
    siblings = 2 if pair_images or clusters > 1 else 1
    length = size + min(overlap, size) * (siblings - 1)
    order = order.flatten(2)
    to_slots, to_tokens = _tables(order, tokens, pair_images)
    # The same for the rows of queries, keys and values: (B, N, 3, heads) of them before, 3 times the slots after.
    part = torch.arange(3, device=order.device).view(3, 1)
    rows = (to_slots // heads * (3 * heads) + to_slots % heads + heads * part).flatten()
    slots = (to_tokens.unsqueeze(2) + order.numel() * part).flatten()

    gather, put_back = (_gather, _put_back) if traced() else (_Gather.apply, _PutBack.apply)
    q, k, v, values = gather(qkv, rows, slots, siblings, size, length)
    if clusters * size == tokens:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=scale)
    else:
        filled = (order < tokens).view(-1, siblings, size, 1)
        mask = _windows(filled, length).mT
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale)
        # Queries of empty slots may not send gradients to the keys.
        out = out * filled
    out = put_back(out.reshape(-1, dim), to_tokens.flatten(), to_slots)
    return out.view(batch, tokens, heads, dim), values


def _tables(order: torch.Tensor, tokens: int, pair_images: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The row of `(B, N, heads)` that belongs in each slot, and the slot of each row.

    Slots are counted as the siblings need them: those of an image and head side by side or, where images are paired,
    those of a pair and head. What empty slots get does not matter.
    """
    batch, heads, slots = order.shape
    image = torch.arange(batch, device=order.device).view(-1, 1, 1)
    head = torch.arange(heads, device=order.device).view(-1, 1)
    to_slots = (image * tokens + order.clamp_max(tokens - 1)) * heads + head
    number = torch.arange(order.numel(), device=order.device)
    if pair_images:
        to_slots = to_slots.unflatten(0, (-1, 2)).transpose(1, 2)
        number = number.view(-1, heads, 2, slots).transpose(1, 2)
    to_tokens = torch.empty_like(order).scatter(2, order, number.reshape(order.shape))
    return to_slots.flatten(), to_tokens[..., :tokens].transpose(1, 2)


def _windows(x: torch.Tensor, length: int) -> torch.Tensor:
    """What each cluster of a group sees: the first rows of the group or the last. `(G, siblings, size, d)`."""
    if x.size(1) == 1:
        return x
    x = x.flatten(1, 2)
    return torch.stack((x[:, :length], x[:, -length:]), dim=1)


def _gather(
    qkv: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, siblings: int, size: int, length: int
) -> tuple[torch.Tensor, ...]:
    dim = qkv.size(-1)
    q, k, v = qkv.reshape(-1, dim).index_select(0, rows).view(3, -1, siblings, size, dim).unbind(0)
    return q, _windows(k, length), _windows(v, length), qkv[:, :, 2].contiguous()


def _put_back(out: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return out.index_select(0, slots)


class _Gather(torch.autograd.Function):
    """Queries, what each cluster sees of keys and values, as views of one another's memory, and a copy of the values.

    Backwards everything is written into one tensor and brought back by the inverse table; PyTorch would add row by row
    into zeros, for each of the parts.
    """

    @staticmethod
    def forward(
        qkv: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, siblings: int, size: int, length: int
    ) -> tuple[torch.Tensor, ...]:
        dim = qkv.size(-1)
        gathered = qkv.reshape(-1, dim).index_select(0, rows).view(3, -1, siblings, size, dim)
        group, rest = siblings * size, siblings * size - length
        seen = gathered.as_strided(
            (3, gathered.size(1), siblings, length, dim), (gathered.stride(0), group * dim, rest * dim, dim, 1)
        )
        return gathered[0], seen[1], seen[2], qkv[:, :, 2].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, *seen, values = grads
        (slots,) = ctx.saved_tensors
        dim, length = q.size(-1), seen[0].size(2)
        gathered = q.new_empty(3, q.size(0), q.size(1) * q.size(2), dim)
        rest = gathered.size(2) - length
        gathered[0] = q.flatten(1, 2)
        for part, grad in enumerate(seen, 1):
            to, first, last = gathered[part], grad[:, 0], grad[:, -1]
            to[:, :length], to[:, length:] = first, last[:, length - rest :]
            if grad.size(1) == 2:
                to[:, rest:length] += last[:, : length - rest]
        qkv = gathered.view(-1, dim).index_select(0, slots).view(ctx.shape)
        qkv[:, :, 2] += values
        return qkv, None, None, None, None, None


class _PutBack(torch.autograd.Function):
    """Rows by index, with the inverse table for the way back."""

    @staticmethod
    def forward(out: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return out.index_select(0, slots)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad.index_select(0, *ctx.saved_tensors), None, None
