"""Multi-window attention (arXiv 2306.00561) as in the official code: head by head, each cuts its windows and joins."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["multi_window_attention", "naive_of"]

Pair = tuple[int, int]


def _cut(x: torch.Tensor, window: Pair, shift: Pair) -> torch.Tensor:
    """The windows of a map that is moved up and left first, `(B, H, W, D) -> (B, U, n, D)`."""
    batch, height, width, dim = x.shape
    rows, columns = height // window[0], width // window[1]
    parts = x.roll((-shift[0], -shift[1]), (1, 2)).view(batch, rows, window[0], columns, window[1], dim)
    return parts.transpose(2, 3).reshape(batch, rows * columns, -1, dim)


def _join(x: torch.Tensor, size: Pair, window: Pair, shift: Pair) -> torch.Tensor:
    """The map of windows, `(B, U, n, D) -> (B, H, W, D)`."""
    rows, columns = size[0] // window[0], size[1] // window[1]
    parts = x.view(x.shape[0], rows, columns, *window, x.shape[3]).transpose(2, 3)
    return parts.reshape(x.shape[0], *size, x.shape[3]).roll(shift, (1, 2))


def _segments(grid: Pair, size: Pair, shift: Pair, device: torch.device) -> torch.Tensor:
    """Numbers of what may see each other inside a window, `(1, H', W', 1)`: not padding, nor what the roll joins."""
    axes = []
    for length, padded, by in zip(grid, size, shift, strict=True):
        place = torch.arange(padded, device=device)
        axes.append(torch.where(place < length, (place < by).long(), 2))
    return (axes[0].unsqueeze(1) * 3 + axes[1]).view(1, *size, 1)


def _bias(table: torch.Tensor, window: Pair) -> torch.Tensor:
    """The bias of each pair of a window, `(n, n)`."""
    place = torch.arange(window[0] * window[1], device=table.device)
    rows, columns = place // window[1], place % window[1]
    down = rows.unsqueeze(1) - rows + window[0] - 1
    across = columns.unsqueeze(1) - columns + window[1] - 1
    return table.flatten()[down * (2 * window[1] - 1) + across]


def multi_window_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MultiWindowAttention`."""
    batch, height, width, _ = x.shape
    grid = (height, width) if module.layout == "grid" else (1, height * width)
    qkv = module.qkv(x).view(batch, *grid, 3, module.num_heads, -1)
    scale = qkv.shape[-1] ** -0.5
    heads = []
    for number, side in enumerate(module.window_sizes):
        q, k, v = qkv[..., number, :].unbind(3)
        if not side:
            scores = q.flatten(1, 2) @ k.flatten(1, 2).mT * scale
            heads.append(scores.softmax(-1) @ v.flatten(1, 2))
            continue
        window = (side, side) if module.layout == "grid" else (1, side)
        shift = [by // 2 if module.shift else 0 for by in window]
        if module.layout == "grid":
            shift = [by if length > wide else 0 for by, wide, length in zip(shift, window, grid, strict=True)]
        moved = (shift[0], shift[1])
        size = (-(-grid[0] // window[0]) * window[0], -(-grid[1] // window[1]) * window[1])
        margins = (0, 0, 0, size[1] - grid[1], 0, size[0] - grid[0])
        q, k, v = (_cut(F.pad(part, margins), window, moved) for part in (q, k, v))
        scores = q @ k.mT * scale
        part = getattr(module, f"attn_heads_{number}", None)
        if part is not None:
            scores = scores + _bias(part.relative_position_bias_table, window)
        segment = _cut(_segments(grid, size, moved, x.device), window, moved)
        scores = scores.masked_fill(segment != segment.mT, float("-inf"))
        joined = _join(scores.softmax(-1) @ v, size, window, moved)
        heads.append(joined[:, : grid[0], : grid[1]].flatten(1, 2))
    return module.proj(torch.cat(heads, -1)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `MultiWindowAttention`."""
    return Literal(multi_window_attention, module)
