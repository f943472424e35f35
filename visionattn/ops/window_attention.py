"""Attention inside the windows of a map: `(B, H, W, C)`, any H, W, any window, shifted or not.

Cutting a map into windows costs a copy, and so does laying them back. The one is made before the projection to queries,
keys and values, where tokens are narrowest, the other after the last projection, so that nothing is kept for it.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ._dispatch import has_kernel
from .attention import attention
from .projection import split_heads

__all__ = ["merge_windows", "padded_size", "partition_windows", "relative_position_bias", "window_attention"]

Pair = tuple[int, int]


# Wider heads than this do not fit the registers of a GPU's processor, beside the scores.
WIDEST = 128


# What is done to each token of a map; None: nothing.
Layer = Callable[[torch.Tensor], torch.Tensor] | None


def _refuses(
    x: torch.Tensor, qkv: Layer, proj: Layer, *, num_heads: int, dropout_p: float = 0.0, **settings: object
) -> str:
    if dropout_p > 0:
        return "attention weights are dropped"
    if x.size(-1) > WIDEST * num_heads * (3 if qkv is None else 1):
        return f"heads are wider than {WIDEST}"
    return ""


@has_kernel("block_sparse", _refuses)
def window_attention(
    x: torch.Tensor,
    qkv: Layer,
    proj: Layer,
    *,
    num_heads: int,
    window: Pair,
    shift: Pair = (0, 0),
    bias: torch.Tensor | None = None,
    mask_padding: bool = False,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Softmax attention in each window, at a scale of `head_dim ** -0.5`. `(B, H, W, C) -> (B, H, W, C'')`.

    The map is padded with zeros at the right and the bottom to whole windows, before the projection: what it pads has
    the bias of the projection as query, key and value.

    Args:
        x: The map.
        qkv: The projection of each token to its query, key and value, `(..., C) -> (..., 3 * C')`, split [3, heads, d].
            None: the map holds them already.
        proj: The projection of each result, `(..., C') -> (..., C'')`. None: none.
        num_heads: Number of heads.
        window: Height and width of a window.
        shift: How far down and to the right the windows lie from where they would otherwise: the map is rolled, and
            tokens that only rolling brought together do not see each other. Less than `window`.
        bias: Added to the scores, `(heads, n, n)` with n the positions of a window, row by row.
        mask_padding: Whether tokens of the map leave the padded ones out.
        dropout_p: Probability of dropping an attention weight.
    """
    size = (x.size(1), x.size(2))
    windows = partition_windows(x, window, shift)
    q, k, v = split_heads(windows if qkv is None else qkv(windows), num_heads)
    visible = _visible(size, window, shift, mask_padding, x.device)
    mask = None
    if visible is not None:
        mask = visible.unsqueeze(1)
        if bias is not None:
            mask = torch.where(mask, bias.to(q.dtype), float("-inf"))
        mask = mask.expand(x.size(0), *mask.shape).flatten(0, 1)
    elif bias is not None:
        mask = bias.to(q.dtype).unsqueeze(0)
    out = attention(q, k, v, mask=mask, dropout_p=dropout_p)
    return merge_windows(out if proj is None else proj(out), size, window, shift)


def partition_windows(x: torch.Tensor, window: Pair, shift: Pair = (0, 0)) -> torch.Tensor:
    """The windows of a map padded with zeros at the right and the bottom. `(B, H, W, C) -> (B * windows, n, C)`.

    Args:
        x: The map.
        window: Height and width of a window; n is their product.
        shift: The map is rolled up and to the left by this, after padding.
    """
    rows, columns = _count((x.size(1), x.size(2)), window)
    down, right = rows * window[0] - x.size(1), columns * window[1] - x.size(2)
    if down or right:
        x = F.pad(x, (0, 0, 0, right, 0, down))
    if any(shift):
        x = x.roll((-shift[0], -shift[1]), (1, 2))
    x = x.view(x.size(0), rows, window[0], columns, window[1], x.size(3)).transpose(2, 3)
    return x.flatten(0, 2).flatten(1, 2)


def merge_windows(x: torch.Tensor, size: Pair, window: Pair, shift: Pair = (0, 0)) -> torch.Tensor:
    """The map that `partition_windows` cut. `(B * windows, n, C) -> (B, H, W, C)`.

    Args:
        x: The windows.
        size: H and W.
        window: Height and width of a window.
        shift: As the map was rolled.
    """
    rows, columns = _count(size, window)
    x = x.unflatten(1, window).unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
    if any(shift):
        x = x.roll(shift, (1, 2))
    return x[:, : size[0], : size[1]]


def relative_position_bias(table: torch.Tensor, window: Pair, nominal: Pair) -> torch.Tensor:
    """The bias of each pair of positions of a window, `(heads, n, n)`, by the offset from key to query.

    Args:
        table: A bias for each distance in a window of the nominal size, `((2 * h - 1) * (2 * w - 1), heads)`, from the
            most negative distance on.
        window: Height and width of the window, at most the nominal ones: smaller windows read the middle of the table.
        nominal: Height h and width w of the window that the table is for.
    """
    (height, width), (h, w) = window, nominal
    grid = table.view(2 * h - 1, 2 * w - 1, -1)[h - height : h + height - 1, w - width : w + width - 1]
    # Along reversed keys the distances of one query are one patch of the table: no table of indices is needed.
    pairs = grid.unfold(0, height, 1).unfold(1, width, 1).flip(-2, -1)
    return pairs.permute(2, 0, 1, 3, 4).reshape(-1, height * width, height * width)


def padded_size(size: Pair, window: Pair) -> Pair:
    """Height and width padded to whole windows."""
    rows, columns = _count(size, window)
    return rows * window[0], columns * window[1]


def _count(size: Pair, window: Pair) -> Pair:
    return -(-size[0] // window[0]), -(-size[1] // window[1])


def _visible(size: Pair, window: Pair, shift: Pair, mask_padding: bool, device: torch.device) -> torch.Tensor | None:
    """The keys visible to each query, `(windows, n, n)`, or `(windows, 1, n)` if equal for all queries; None: all."""
    padded = mask_padding and any(length % side for length, side in zip(size, window, strict=True))
    if not padded and not any(shift):
        return None
    wrapped, beyond = [], []
    for length, side, count, by in zip(size, window, _count(size, window), shift, strict=True):
        position = torch.arange(count * side, device=device).view(count, side)
        wrapped.append(position >= count * side - by)
        beyond.append((position + by) % (count * side) >= length)
    outside = _by_window(beyond[0], beyond[1], torch.logical_or)
    if not any(shift):
        return ~outside.unsqueeze(1)
    part = _by_window(2 * wrapped[0], 1 * wrapped[1], torch.add)
    if padded:
        # Padded tokens see each other, so that no query is left without a key.
        part = part.masked_fill(outside, 4)
    return part.unsqueeze(2) == part.unsqueeze(1)


def _by_window(
    rows: torch.Tensor, columns: torch.Tensor, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """`(window rows, height), (window columns, width) -> (windows, n)`."""
    return join(rows[:, None, :, None], columns[None, :, None, :]).flatten(2).flatten(0, 1)
