"""Softmax attention as every mixer calls it."""

from contextlib import nullcontext

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._autocast import autocast_dtype, wide
from ._modes import is_exporting, traced, transformed

__all__ = ["attention", "loses_digits", "softmax_attention"]


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
    out = softmax_attention(q, k, v, mask=mask, scale=scale, dropout_p=dropout_p).transpose(1, 2)
    if is_exporting():
        # An exporter takes the operator apart more than once, and each time its result may lie otherwise in memory.
        out = out.clone(memory_format=torch.contiguous_format)
    return out.flatten(2)


def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """PyTorch's attention, avoiding inaccurate forms. Arguments as for `attention`. `-> (B, heads, N, d)`."""
    dtype = q.dtype
    if loses_digits(q, k, mask, scale):
        q, k, v = (part.double() for part in (q, k, v))
        mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    # The fused forms have no rule for forward-mode differentiation.
    with sdpa_kernel(SDPBackend.MATH) if transformed() else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale)
    return out.to(dtype) if q.dtype != dtype else out


def loses_digits(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float | None) -> bool:
    """Whether PyTorch's fused CPU form would lose precision in gradients: it keeps only the log of each sum of weights.

    A weight that is made again from that has the logarithm's absolute error, which grows with the scores.
    """
    if traced() or transformed() or q.device.type != "cpu" or q.dtype == torch.float64 or not q.numel():
        return False
    if autocast_dtype(q) not in (None, q.dtype):  # half precision comes of it
        return False
    if not torch.is_grad_enabled() or not (q.requires_grad or k.requires_grad):
        return False
    if mask is not None and mask.requires_grad:  # no fused form
        return False
    most = 1e-3 / torch.finfo(wide(q)).eps
    factor = q.size(-1) ** -0.5 if scale is None else scale
    # The largest entries say enough nearly always, and nothing has to be written for them.
    if _largest(q) * _largest(k) * q.size(-1) * abs(factor) <= most:
        return False
    longest = (part.detach().float().square().sum(-1).amax() for part in (q, k))
    return bool(torch.stack(list(longest)).prod().sqrt() * factor > most)


def _largest(heads: torch.Tensor) -> float:
    """The largest magnitude; heads that lie side by side in tokens are read in that order, or they would be copied."""
    low, high = (heads if heads.is_contiguous() else heads.transpose(-3, -2)).detach().aminmax()
    return max(-float(low), float(high))
