"""Mega (arXiv 2209.10655) step by step: the moving average as a recurrence, attention window by window."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["attend", "gated_layer", "mega", "moving_average", "naive_of"]

LOOPS = True


def moving_average(x: torch.Tensor, average: Any) -> torch.Tensor:
    """`s_t = (1 - p a) s_{t-1} + p beta x_t` along the second axis of `(B, L, C)`, from each end that it has."""
    dim, length = x.size(-1), x.size(1)
    both = average.gamma.size(0) > dim
    p, a = average.delta.sigmoid().squeeze(-1), average.alpha.sigmoid().squeeze(-1)
    total = torch.zeros_like(x)
    longest = average.truncation or length
    for start, order in ((0, [*range(length)]), (dim, [*range(length - 1, -1, -1)]))[: 2 if both else 1]:
        rows = slice(start, start + dim)
        keep, add = 1 - p[rows] * a[rows], p[rows] * average.beta.squeeze(-1)[rows]
        out: dict[int, torch.Tensor] = {}
        state = x.new_zeros(len(x), *keep.shape)
        for done, t in enumerate(order):
            state = keep * state + add * x[:, t].unsqueeze(-1)
            if done >= longest:  # What came in that long ago is taken out.
                state = state - keep**longest * add * x[:, order[done - longest]].unsqueeze(-1)
            out[t] = (state * average.gamma[rows]).sum(-1) / average.gamma.size(1) ** 0.5
        total = total + torch.stack([out[t] for t in range(length)], 1)
    return total


def attend(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention of the tokens of one window, `(B, n, e)`."""
    scores = q @ k.mT
    if module.attn == "softmax":
        return torch.softmax(scores * q.size(-1) ** -0.5 + bias, -1) @ v
    scores = scores / k.size(1) + bias
    if module.attn == "relu2":
        return scores.relu().square() @ v
    return 0.5 * (1 + torch.erf((scores - 0.707107) / (0.282095 * 2**0.5))) @ v


def gated_layer(module: Any, x: torch.Tensor, normed: torch.Tensor, smooth: torch.Tensor, read: Any) -> torch.Tensor:
    """`x + u (h - x)` less x, with the projections of a `GatedSkeleton`; `read` is attention of q, k and v."""
    dim, zdim = x.size(-1), module.gamma.size(1)
    sizes = [dim] * bool(module.sizes[0]) + [zdim, module.v_proj.out_features, dim]
    *update, z, reset, candidate = module.mx_proj(smooth).split(sizes, -1)
    z, v = F.silu(z), F.silu(module.v_proj(normed))
    q, k = (z * module.gamma[i] + module.beta[i] for i in range(2))
    h = F.silu(candidate + module.h_proj(read(q, k, v) * F.silu(reset)))
    return x + update[0].sigmoid() * (h - x) - x if update else h


def mega(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MegaAttention`."""
    batch, height, width, dim = x.shape
    normed = module.norm(x) if module.prenorm else x
    if module.layout == "raster":
        tokens = normed.flatten(1, 2)
        smooth = F.silu(moving_average(tokens, module.move) + module.move.omega * tokens).view(x.shape)
        height, width = 1, height * width
    else:
        by_row = moving_average(normed.flatten(0, 1), module.ema_w).view(x.shape)
        by_column = moving_average(normed.transpose(1, 2).flatten(0, 1), module.ema_h)
        by_column = by_column.view(batch, width, height, dim).transpose(1, 2)
        smooth = F.silu(by_row + by_column + module.omega * normed)

    def read(*maps: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.reshape(batch, height, width, -1) for part in maps)
        out, side = torch.zeros_like(v), module.window or max(height, width)
        for top in range(0, height, side):
            for left in range(0, width, side):
                at = (slice(None), slice(top, top + side), slice(left, left + side))
                bias = _bias(module, *q[at].shape[1:3])
                window = [part[at].flatten(1, 2) for part in (q, k, v)]
                out[at] = attend(module, window[0], window[1], window[2], bias).view(v[at].shape)
        return out.view(maps[2].shape)

    out = gated_layer(module, x, normed, smooth, read)
    return out if module.prenorm else module.norm(x + out) - x


def _bias(module: Any, height: int, width: int) -> torch.Tensor:
    """The bias of each pair, from its offset."""
    if module.layout == "raster":
        return module.rel_pos_bias(width)
    table, m = module.rel_bias, module.rel_bias.size(0) // 2
    rows = [(y, x) for y in range(height) for x in range(width)]

    def at(i: tuple[int, int], j: tuple[int, int]) -> torch.Tensor:
        down, right = (max(-m, min(m, b - a)) for a, b in zip(i, j, strict=True))
        return table[m + down, m + right]

    return torch.stack([torch.stack([at(i, j) for j in rows]) for i in rows])


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `MegaAttention`."""
    return Literal(mega, module)
