"""The linear memory of Titans (arXiv 2501.00663), one token after the other."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["memory_recurrence", "naive_of", "titans"]

LOOPS = True


def memory_recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    step: torch.Tensor,
    momentum: torch.Tensor,
    keep: torch.Tensor,
    memory: torch.Tensor,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is read at each token and the error there, `(..., N, e)`; step, momentum and keep are `(..., N)`."""
    memory = memory.expand(*v.shape[:-2], *memory.shape[-2:])
    surprise, start, out, errors = torch.zeros_like(memory), memory, [], []
    for t in range(q.size(-2)):
        if t % chunk == 0:
            start = memory
        key = k[..., t, None, :]
        error = key @ start - v[..., t, None, :]
        gradient = 2 / q.size(-1) * key.mT @ error
        surprise = momentum[..., t, None, None] * surprise - step[..., t, None, None] * gradient
        memory = keep[..., t, None, None] * memory + surprise
        out.append((q[..., t, None, :] @ memory).squeeze(-2))
        errors.append(error.squeeze(-2))
    return torch.stack(out, -2), torch.stack(errors, -2)


def titans(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.TitansMemory`."""
    heads, tokens = module.num_heads, x.flatten(1, 2)
    q, k, v = (
        F.silu(part(tokens)).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (module.q, module.k, module.v)
    )
    q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    step = module.max_step * module.step(tokens).sigmoid().mT
    momentum, keep = module.momentum(tokens).sigmoid().mT, 1 - module.decay(tokens).sigmoid().mT
    rows = torch.arange(tokens.size(1), device=x.device)
    columns = rows.view(x.shape[1:3]).T.flatten()
    out = torch.zeros_like(v)
    for order in (rows, rows.flip(0), columns, columns.flip(0))[: module.directions]:
        query, key, value, rate, faded, kept = (part[:, :, order] for part in (q, k, v, step, momentum, keep))
        seen, _ = memory_recurrence(query, key, value, rate, faded, kept, module.memory, module.chunk)
        out = out + torch.zeros_like(v).index_copy(2, order, seen)
    out = out * (out.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * module.norm.weight
    return module.proj(out.transpose(1, 2).reshape(x.shape))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `TitansMemory`."""
    return Literal(titans, module)
