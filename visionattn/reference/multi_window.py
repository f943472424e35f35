"""Multi-window attention (arXiv 2306.00561), head by head: each pair of tokens is asked whether it shares a window."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["multi_window_attention", "naive_of"]

LOOPS = True


def _visible(head: Any, grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Any:
    """Added to the scores of each pair of tokens; `head` gives the bias of a distance, or is none."""
    height, width = grid
    places = [(y, x) for y in range(height) for x in range(width)]

    def room(place: tuple[int, int]) -> tuple[Any, ...]:
        """The window that a token is in after the map is rolled, and whether it was rolled over the border."""
        result = []
        for at, side, by, length in zip(place, window, shift, grid, strict=True):
            padded = -(-length // side) * side
            result.append(((at - by) % padded // side, at < by))
        return tuple(result)

    rows = []
    for query in places:
        row = []
        for key in places:
            if room(query) != room(key):
                row.append(torch.tensor(float("-inf")))
            else:
                row.append(torch.zeros(()) if head is None else head(query[0] - key[0], query[1] - key[1]))
        rows.append(torch.stack([value.double() for value in row]))
    return torch.stack(rows)


def multi_window_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MultiWindowAttention`."""
    batch, height, width, _ = x.shape
    grid = (height, width) if module.layout == "grid" else (1, height * width)
    q, k, v = (p.unflatten(-1, (module.num_heads, -1)) for p in module.qkv(x.flatten(1, 2)).chunk(3, -1))
    heads = []
    for number, size in enumerate(module.window_sizes):
        scores = q[:, :, number] @ k[:, :, number].mT * q.shape[-1] ** -0.5
        if size:
            window = (size, size) if module.layout == "grid" else (1, size)
            shift = [side // 2 if module.shift else 0 for side in window]
            if module.layout == "grid":
                shift = [by if length > side else 0 for by, side, length in zip(shift, window, grid, strict=True)]
            part = getattr(module, f"attn_heads_{number}", None)
            bias = None
            if part is not None:
                table = part.relative_position_bias_table.view(2 * window[0] - 1, 2 * window[1] - 1)

                def bias(dy: int, dx: int, table: Any = table, window: Any = window) -> torch.Tensor:
                    return table[dy + window[0] - 1, dx + window[1] - 1]

            scores = scores + _visible(bias, grid, window, (shift[0], shift[1])).to(scores)
        heads.append(scores.softmax(-1) @ v[:, :, number])
    return module.proj(torch.cat(heads, -1)).view(batch, height, width, -1)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `MultiWindowAttention`."""
    return Literal(multi_window_attention, module)
