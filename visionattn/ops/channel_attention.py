"""Attention between the channels of each head, where a channel's vector is the whole map.

The scores of two channels are a sum over all tokens, so they are made of the tokens' second moments alone: with many
tokens it is cheaper to take the moments once, to do everything else on matrices of C x C, and to end with one linear
layer of its own for each image, than to project the tokens to queries, keys and values.
"""

from typing import Any

import torch
from torch.nn import functional as F

from ._autocast import autocast_dtype, wide, without_autocast
from ._modes import needs_formula
from .eager.projected_channel_attention import ProjectedChannelAttention, image_layers, through_layers
from .eager.wide_product import WideProduct
from .projection import split_heads

__all__ = ["channel_attention", "prefer_moments", "projected_channel_attention"]

Roles = tuple[int, int, int]


def channel_attention(
    qkv: torch.Tensor, *, num_heads: int, scale: float, roles: Roles = (0, 1, 2), dropout_p: float = 0.0
) -> torch.Tensor:
    """Mixes the channels of each head by softmax over their scores. `(B, N, 3 * C) -> (B, N, C)`.

    The scores and their softmax are float32 at least.

    Args:
        qkv: Three projections of each token, [3, heads, d].
        num_heads: Number of heads.
        scale: Factor of the scores.
        roles: Which of the three stands for the rows of the scores, which for their columns, over which the softmax
            runs, and which is mixed.
        dropout_p: Probability of dropping an attention weight.
    """
    parts = split_heads(qkv, num_heads)
    rows, columns, values = (parts[role] for role in roles)
    with without_autocast(qkv):
        scores = _scores(rows, columns)
        weights = F.dropout((scores * scale).softmax(-1), dropout_p, training=dropout_p > 0)
    out = values @ weights.to(qkv.dtype).mT
    return out.transpose(1, 2).flatten(2)


def _scores(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`rows' columns`, in float32 at least."""
    if rows.dtype == wide(rows) or needs_formula() or not torch.is_grad_enabled():
        return _wide_product(rows, columns)
    # Kept for the backward pass in half precision.
    scores: torch.Tensor = WideProduct.apply(_wide_product, rows.contiguous(), columns.contiguous())
    return scores


def _wide_product(*parts: torch.Tensor) -> torch.Tensor:
    # Heads that lie one after another need no copies inside the product, not even transposed.
    dense: dict[str, Any] = {"dtype": wide(parts[0]), "memory_format": torch.contiguous_format}
    rows, columns = (part.to(**dense).contiguous() for part in parts)
    return rows.mT @ columns


def projected_channel_attention(
    x: torch.Tensor,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor | None,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor | None,
    *,
    num_heads: int,
    scale: float,
    roles: Roles = (0, 1, 2),
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """`channel_attention` between two linear layers, `proj(channel_attention(qkv(x)))`, by the moments of the tokens.

    The same in exact arithmetic and faster where `prefer_moments`; for the backward pass it keeps x and three matrices.
    Everything but the products with the tokens is float32 at least. `(B, N, C) -> (B, N, C)`.

    Args:
        x: The tokens.
        qkv_weight: `(3 * C, C)`, the rows split [3, heads, d].
        qkv_bias: `(3 * C,)`.
        proj_weight: `(C, C)`.
        proj_bias: `(C,)`.
        num_heads: Number of heads.
        scale: Factor of the scores.
        roles: As in `channel_attention`.
        dropout_p: Probability of dropping an attention weight.
    """
    # Under autocast the tokens are in its precision, as for any linear layer.
    x = x.to(autocast_dtype(x) or x.dtype)
    kept = None
    if dropout_p > 0:
        side = x.size(2) // num_heads
        kept = F.dropout(x.new_ones(len(x), num_heads, side, side, dtype=wide(x)), dropout_p)
    inputs = (x, qkv_weight, qkv_bias, proj_weight, proj_bias, kept, num_heads, scale, roles)
    with without_autocast(x):
        if needs_formula() or not torch.is_grad_enabled():
            return _projected(*inputs)
        out: torch.Tensor = ProjectedChannelAttention.apply(_projected, *inputs)[0]
        return out


def _projected(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return through_layers(x, image_layers(x, *arguments)[0].to(x.dtype))


def prefer_moments(tokens: int, dim: int) -> bool:
    """Whether `projected_channel_attention` is the faster form, according to measurements on a CPU.

    It takes 2 N C^2 + 2 C^3 products where the plain form takes 4 N C^2: a gain beyond N = C, but small matrices one by
    one are slower than one large product. At N = 1.5 C it is 1.2 times as fast, 1.4 times with the backward pass.
    """
    return 2 * tokens >= 3 * dim
