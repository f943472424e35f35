"""Attention inside clusters of tokens that a table names."""

from typing import Any

import torch
from torch.nn import functional as F

from ._dispatch import has_kernel
from ._eager import HandWritten, traced
from .gathered import refuses_rows

__all__ = ["cluster_attention", "convolved"]

Conv = tuple[torch.Tensor, torch.Tensor, tuple[int, int]]


def _refuses(qkv: torch.Tensor, order: torch.Tensor, *, dropout_p: float = 0.0, **settings: object) -> str:
    return "attention weights are dropped" if dropout_p > 0 else refuses_rows(qkv)


@has_kernel("gathered", _refuses)
def cluster_attention(
    qkv: torch.Tensor,
    order: torch.Tensor,
    *,
    overlap: int = 0,
    scale: float | None = None,
    dropout_p: float = 0.0,
    pair_images: bool = False,
    conv: Conv | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of each cluster's queries to its keys and to a few of its sibling's.

    `(B, N, 3, heads, d), (B, heads, clusters, size) -> (B, N, heads, d)`, and of the same shape the values as they came
    in or what `conv` makes of them. They lie in memory of their own: whatever reads them does not keep all of `qkv`.

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
        conv: Weight `(heads * d, 1, k, k)`, k odd, and bias `(heads * d,)` of a depthwise convolution of the values,
            and height and width of the map that they are. Nothing more is kept for its backward pass.
    """
    batch, tokens, _, heads, dim = qkv.shape
    clusters, size = order.shape[2:]
    siblings = 2 if pair_images or clusters > 1 else 1
    length = size + min(overlap, size) * (siblings - 1)
    order = order.flatten(2)
    rows, to_slots, to_tokens = _tables(order, tokens, pair_images)

    gather, put_back, convolve = _PLAIN if traced() else (_Gather.apply, _PutBack.apply, _Convolve.apply)
    q, k, v, values = gather(qkv, rows, to_tokens, siblings, size, length)
    if conv is not None:
        values = convolve(values, *conv, v, to_tokens, size)
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


def _tables(order: torch.Tensor, tokens: int, pair_images: bool) -> tuple[torch.Tensor, ...]:
    """The rows of `(B, N, 3, heads)` and the one of `(B, N, heads)` that belong in each slot, and the latter's slot.

    Slots are counted as the siblings need them: those of an image and head side by side or, where images are paired,
    those of a pair and head. What empty slots get does not matter.
    """
    batch, heads, slots = order.shape
    first = torch.arange(0, batch * tokens, tokens, device=order.device).view(-1, 1, 1)
    head = torch.arange(heads, device=order.device).view(-1, 1)
    token = first + order.clamp_max(tokens - 1)
    to_slots = token * heads + head
    number = torch.arange(order.numel(), device=order.device)
    if pair_images:
        token, to_slots = (t.unflatten(0, (-1, 2)).transpose(1, 2) for t in (token, to_slots))
        number = number.view(-1, heads, 2, slots).transpose(1, 2)
    part = torch.arange(0, 3 * heads, heads, device=order.device).view((3,) + (1,) * token.dim())
    rows = torch.add(to_slots, token, alpha=2 * heads) + part
    to_tokens = torch.empty_like(order).scatter(2, order, number.reshape(order.shape))
    return rows.flatten(), to_slots.flatten(), to_tokens[..., :tokens].transpose(1, 2)


def _windows(x: torch.Tensor, length: int) -> torch.Tensor:
    """What each cluster of a group sees: the first rows of the group or the last. `(G, siblings, size, d)`."""
    if x.size(1) == 1:
        return x
    x = x.flatten(1, 2)
    return torch.stack((x[:, :length], x[:, -length:]), dim=1)


def _gather(
    qkv: torch.Tensor, rows: torch.Tensor, to_tokens: torch.Tensor, siblings: int, size: int, length: int
) -> tuple[torch.Tensor, ...]:
    dim = qkv.size(-1)
    q, k, v = qkv.reshape(-1, dim).index_select(0, rows).view(3, -1, siblings, size, dim).unbind(0)
    return q, _windows(k, length), _windows(v, length), qkv[:, :, 2].contiguous()


def _put_back(out: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return out.index_select(0, slots)


def convolved(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The depthwise convolution of values that stand on a grid. `(B, N, heads, d) -> (B, N, heads, d)`."""
    x = values.flatten(2).unflatten(1, grid).permute(0, 3, 1, 2)
    x = F.conv2d(x, weight, bias, padding=weight.size(-1) // 2, groups=len(weight))
    return x.permute(0, 2, 3, 1).reshape(values.shape)


def _convolve(
    values: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    grid: tuple[int, int],
    seen: torch.Tensor,
    to_tokens: torch.Tensor,
    size: int,
) -> torch.Tensor:
    return convolved(values, weight, bias, grid)


_PLAIN = (_gather, _put_back, _convolve)


class _Gather(HandWritten):
    """Queries, what each cluster sees of keys and values, as views of one another's memory, and a copy of the values.

    Backwards everything is written into one tensor and brought back by the inverse table; PyTorch would add row by row
    into zeros, for each of the parts.
    """

    @staticmethod
    def forward(
        qkv: torch.Tensor, rows: torch.Tensor, to_tokens: torch.Tensor, siblings: int, size: int, length: int
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

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, *seen, values = grads
        (to_tokens,) = ctx.saved_tensors
        dim, length = q.size(-1), seen[0].size(2)
        gathered = q.new_empty(3, q.size(0), q.size(1) * q.size(2), dim)
        rest = gathered.size(2) - length
        gathered[0].view(q.shape).copy_(q)
        for part, grad in enumerate(seen, 1):
            to, first, last = gathered[part], grad[:, 0], grad[:, -1]
            to[:, :length], to[:, length:] = first, last[:, length - rest :]
            if grad.size(1) == 2:
                to[:, rest:length] += last[:, : length - rest]
        part = torch.arange(0, gathered.numel() // dim, gathered[0].numel() // dim, device=q.device).view(3, 1)
        slots = to_tokens.unsqueeze(2) + part
        qkv = gathered.view(-1, dim).index_select(0, slots.flatten()).view(*slots.shape, dim)
        qkv[:, :, 2] += values
        return qkv, None, None, None, None, None


class _PutBack(HandWritten):
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


class _Convolve(HandWritten):
    """Finds the values again, for the way back, where the attention keeps them."""

    @staticmethod
    def forward(
        values: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        grid: tuple[int, int],
        seen: torch.Tensor,
        to_tokens: torch.Tensor,
        size: int,
    ) -> torch.Tensor:
        return _convolve(values, weight, bias, grid, seen, to_tokens, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[1], *inputs[4:6])
        ctx.grid, ctx.size = inputs[3], inputs[6]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, seen, to_tokens = ctx.saved_tensors
        # What the first window of a group sees, and what the last one sees beyond it.
        rest = seen.size(1) * ctx.size - seen.size(2)
        values = torch.cat((seen[:, 0], seen[:, -1, seen.size(2) - rest :]), dim=1)
        values = values.view(-1, seen.size(3)).index_select(0, to_tokens.flatten())
        x, grad_x = (t.reshape(len(grad), *ctx.grid, -1).permute(0, 3, 1, 2) for t in (values, grad))
        groups, pad = len(weight), weight.size(-1) // 2
        shape = ([groups], [1, 1], [pad, pad], [1, 1], False, [0, 0], groups)
        grads = torch.ops.aten.convolution_backward(grad_x, x, weight, *shape, ctx.needs_input_grad[:3])
        return grads[0].permute(0, 2, 3, 1).reshape(grad.shape), grads[1], grads[2], None, None, None, None
