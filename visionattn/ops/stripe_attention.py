"""Attention inside the stripes of a map, with a convolution of the values as position encoding (LePE)."""

from typing import Any

import torch

from ._dispatch import has_kernel
from .attention import attention
from .block_sparse_attention import refuses_rows
from .nhwc_conv import nhwc_conv
from .window_attention import merge_windows, partition_windows

__all__ = ["convolve_stripes", "stripe_attention", "stripe_sides"]

Pair = tuple[int, int]


def _refuses(
    qkv: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    num_heads: int,
    dropout_p: float = 0.0,
    **settings: object,
) -> str:
    return "attention weights are dropped" if dropout_p > 0 else refuses_rows(qkv.unflatten(-1, (num_heads, -1)))


@has_kernel("block_sparse", _refuses)
def stripe_attention(
    qkv: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    num_heads: int,
    stripe: tuple[int | None, int | None],
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Softmax attention plus a depthwise convolution of the values, both inside each stripe. `-> (B, H, W, C)`.

    Args:
        qkv: Queries, keys and values, `(B, H, W, 3, C)`.
        weight: Of the convolution, `(C, 1, K, K)`, K odd; it sees zeros beyond the stripe.
        bias: Of the convolution, `(C,)`.
        num_heads: Divides C.
        stripe: Height and width of a stripe, at most the map's; `None` is the whole side. The last stripe may be
            incomplete.
        scale: Of the dot products; `None` is one over the square root of a head's width.
        dropout_p: Share of the attention weights that is dropped.
    """
    sides = stripe_sides(qkv, stripe)
    settings: dict[str, Any] = {"num_heads": num_heads, "stripe": stripe, "scale": scale, "dropout_p": dropout_p}
    for axis, side in enumerate(sides, start=1):
        rest = qkv.size(axis) % side
        if rest:  # On its own an incomplete stripe needs neither padding nor a mask.
            parts = qkv.split([qkv.size(axis) - rest, rest], axis)
            return torch.cat(
                [stripe_attention(part, weight, bias, backend="torch", **settings) for part in parts], axis
            )

    grid = qkv.size(1) // sides[0], qkv.size(2) // sides[1]
    qkv = qkv.unflatten(2, (grid[1], sides[1])).unflatten(1, (grid[0], sides[0])).transpose(2, 3).flatten(0, 2)
    q, k, v = qkv.flatten(1, 2).unflatten(-1, (num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    out = attention(q, k, v, dropout_p=dropout_p, scale=scale).unflatten(1, sides)
    out = out + nhwc_conv(qkv[..., 2, :], weight, bias, padding=weight.size(-1) // 2, groups=weight.size(0))
    return out.unflatten(0, (-1, *grid)).transpose(2, 3).flatten(1, 2).flatten(2, 3)


def stripe_sides(qkv: torch.Tensor, stripe: tuple[int | None, int | None]) -> Pair:
    """Height and width of the stripes of a map `(B, H, W, 3, C)`."""
    height, width = (min(side or size, size) for side, size in zip(stripe, qkv.shape[1:3], strict=True))
    return height, width


def convolve_stripes(
    values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sides: Pair
) -> torch.Tensor:
    """The depthwise convolution inside each stripe, of a map `(B, H, W, C)`; the last stripe may be incomplete."""
    stripes = partition_windows(values, sides).unflatten(1, sides)
    out = nhwc_conv(stripes, weight, bias, padding=weight.size(-1) // 2, groups=weight.size(0))
    return merge_windows(out.flatten(1, 2), (values.size(1), values.size(2)), sides)
