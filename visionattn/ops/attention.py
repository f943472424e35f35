"""Softmax attention, the one way every mixer calls it."""

import torch
from torch.nn import functional as F

from ._eager import use_eager_kernel

__all__ = ["attention"]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Weighted means of the values, heads side by side. `(B, heads, N, d), 2 x (B, heads, M, d) -> (B, N, heads * d)`.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: Added to the scores, or False where a key is not seen; broadcasts to `(B, heads, N, M)`.
        scale: Of the scores; none is `d ** -0.5`.
        dropout_p: Probability of dropping a weight.
    """
    if mask is None or not mask.requires_grad or not use_eager_kernel(q):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale)
    else:
        # A bias that learns keeps the operator from its fast CPU kernel, and what it does then is slower than this.
        scores = (q * (q.size(-1) ** -0.5 if scale is None else scale)) @ k.mT + mask
        out = F.dropout(scores.softmax(-1), dropout_p, training=dropout_p > 0) @ v
    out = out.transpose(1, 2)
    if torch.compiler.is_exporting():
        # An exporter takes the operator apart more than once, and each time its result may lie otherwise in memory.
        out = out.clone(memory_format=torch.contiguous_format)
    return out.flatten(2)
