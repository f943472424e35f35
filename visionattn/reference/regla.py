"""ReGLA (arXiv 2502.01578) token by token, as the recurrence of the paper says it."""

from math import e
from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["gated_recurrence", "naive_of", "regla"]

LOOPS = True


def gated_recurrence(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """`S_t = diag(decay_t) S_{t-1} + k_t v_t^T`, `o_t = q_t S_t`, one token after the other. `(..., N, e)`."""
    state = q.new_zeros(*q.shape[:-2], q.size(-1), v.size(-1))
    out = []
    for t in range(q.size(-2)):
        state = decay[..., t, :, None] * state + k[..., t, :, None] * v[..., t, None, :]
        out.append((q[..., t, None, :] @ state).squeeze(-2))
    return torch.stack(out, -2)


def regla(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.ReGLA`."""
    batch, height, width, dim = x.shape
    heads, size = module.num_heads, dim // module.num_heads

    def split(part: torch.Tensor) -> torch.Tensor:
        return part.reshape(batch, height * width, heads, size).transpose(1, 2)

    q, k, v = split(module.q(x)), split(module.k(x)), split(module.v(x))
    q = (q - q.amax(-1, keepdim=True)).exp() / (e * (size * (e**2 - 1)) ** 0.5)
    k = (k - k.amax((-2, -1), keepdim=True)).exp()
    decay = split(module.gate(x)).sigmoid()
    if module.refined:
        refine = split(module.refine(x)).sigmoid()
        decay = (1 - refine) * decay**2 + refine * (1 - (1 - decay) ** 2)
    rows = torch.arange(height * width, device=x.device)
    columns = rows.view(height, width).T.flatten()
    out = torch.zeros_like(v)
    for order in (rows, rows.flip(0), columns, columns.flip(0))[: module.directions]:
        seen = gated_recurrence(*(part[:, :, order] for part in (q, k, v, decay)))
        out = out + torch.zeros_like(v).index_copy(2, order, seen)
    out = out * (out.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * module.norm.weight
    return module.proj(out.transpose(1, 2).reshape(x.shape))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `ReGLA`."""
    return Literal(regla, module)
