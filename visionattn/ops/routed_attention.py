"""Attention of the regions of a map to a few routed regions each (BiFormer, arXiv 2303.08810)."""

from collections.abc import Callable

import torch

from ._autocast import autocast_dtype, wide, without_autocast
from ._dispatch import has_kernel, wants_torch
from ._modes import use_eager_kernel
from .attention import attention, loses_digits, softmax_attention
from .eager.routed_attention import RoutedAttention, attend_regions, local_values, pick_regions
from .projection import project_apart, split_heads
from .window_attention import WIDEST, merge_windows, partition_windows

__all__ = ["region_pairs", "route_regions", "routed_attention", "routed_self_attention"]

Pair = tuple[int, int]
# Where regions see so large a share of so many tokens at most, a mask for all pairs is quicker than copies of the keys.
_SHARE, _MOST = 8, 1024


def route_regions(
    qkv: torch.Tensor, region: Pair, topk: int, size: Pair | None = None, *, views: int = 1
) -> torch.Tensor:
    """The regions with the best mean key for each region's mean query, best first. `-> (B, regions, topk)`.

    It takes no gradient, and one table serves all heads.

    Args:
        qkv: Queries, keys and values of a map of whole regions, `(B, H, W, 3C)`, split [3, C].
        region: Height and width of a region.
        topk: How many regions each one sees.
        size: Height and width of the part of the map that the means are taken of; none is all of it.
        views: How many views of an object the map is made of, one below the other: with more than one, a region sees
            those of the other views only.
    """
    height, width = qkv.size(1), qkv.size(2)
    rows, columns = height // region[0], width // region[1]
    with torch.no_grad(), without_autocast(qkv):
        x = qkv[..., : qkv.size(3) // 3 * 2]
        x = x.unflatten(2, (columns, region[1])).unflatten(1, (rows, region[0]))
        # What fills a region up is zero: the sum is that of the rest. Both sides at once take ten times as long.
        sums = x.sum(4, dtype=wide(qkv)).sum(2)
        if size is None or size == (height, width):
            sums = sums / (region[0] * region[1])
        else:
            for axis, count, side, full in ((1, rows, region[0], size[0]), (2, columns, region[1], size[1])):
                held = (full - side * torch.arange(count, device=qkv.device)).clamp(1, side)
                sums = sums / held.view(-1, *([1] * (3 - axis)))
        return _best(sums.flatten(1, 2), topk, views)


def _best(sums: torch.Tensor, topk: int, views: int = 1) -> torch.Tensor:
    """The best regions of each by the sums of its queries and keys, `(B, regions, 2C) -> (B, regions, topk)`."""
    q, k = sums.chunk(2, dim=2)
    logits = q @ k.mT
    if views > 1:
        view = torch.arange(views, device=sums.device).repeat_interleave(sums.size(1) // views)
        logits = logits.masked_fill(view.unsqueeze(1) == view, -torch.inf)
    return logits.topk(topk, dim=2).indices


def _refuses(
    qkv: torch.Tensor, table: torch.Tensor, *, num_heads: int, dropout_p: float = 0.0, **settings: object
) -> str:
    if dropout_p > 0:
        return "attention weights are dropped"
    if qkv.size(3) > 3 * num_heads * WIDEST:
        return f"heads are wider than {WIDEST}"
    return ""


@has_kernel("block_sparse", _refuses)
def routed_attention(
    qkv: torch.Tensor,
    table: torch.Tensor,
    *,
    num_heads: int,
    region: Pair,
    scale: float,
    convolution: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Softmax attention of each region's queries to the keys of the regions of a table. `-> (B, H, W, C)`.

    Args:
        qkv: Queries, keys and values of a map of whole regions, `(B, H, W, 3C)`, split [3, heads, d].
        table: The regions that each region sees, `(B, regions, K)`, as `route_regions` gives them.
        num_heads: Number of heads.
        region: Height and width of a region, which divide H and W.
        scale: Factor of the scores.
        convolution: Weight and bias of a depthwise convolution of the values with odd sides, which is added.
        dropout_p: Probability of dropping an attention weight.
    """
    weight, bias = convolution or (None, None)
    if _prefer_mask(table.size(2), table.size(1), qkv):
        out = _masked(qkv, num_heads, table, region, scale, dropout_p)
        local = local_values(qkv, weight, bias)
        return out if local is None else out + local
    if dropout_p == 0 and use_eager_kernel(qkv) and not wants_torch():
        arguments = (qkv, weight, bias, num_heads, table, region, scale)
        if not (torch.is_grad_enabled() and qkv.requires_grad):
            return RoutedAttention.compute(*arguments)[0]
        q, k, _ = qkv.unflatten(3, (3, num_heads, -1)).unbind(3)
        if not loses_digits(q, k, None, scale):
            kept: torch.Tensor = RoutedAttention.apply(_formula, *arguments)[0]
            return kept
    return _formula(qkv, weight, bias, num_heads, table, region, scale, dropout_p)


def routed_self_attention(
    x: torch.Tensor,
    qkv: Callable[[torch.Tensor], torch.Tensor],
    *,
    num_heads: int,
    region: Pair,
    topk: int,
    scale: float,
    convolution: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """`routed_attention` of a map of whole regions, projected and routed here. `(B, H, W, C) -> (B, H, W, C')`.

    Without gradients the CPU cuts the map into regions before the projection, where tokens are narrowest.

    Args:
        x: The map.
        qkv: The projection of each token to its query, key and value, `(..., C) -> (..., 3 * C')`, split [3, heads, d].
        num_heads: Number of heads.
        region: Height and width of a region, which divide H and W.
        topk: How many regions each one sees.
        scale: Factor of the scores.
        convolution: As for `routed_attention`.
        dropout_p: Probability of dropping an attention weight.
    """
    size = (x.size(1), x.size(2))
    regions = size[0] // region[0] * (size[1] // region[1])
    quick = dropout_p == 0 and use_eager_kernel(x) and not torch.is_grad_enabled() and autocast_dtype(x) is None
    if quick and not _prefer_mask(topk, regions, x):
        parts = project_apart(qkv, partition_windows(x, region))
        sums = torch.cat([part.sum(1) for part in parts[:2]], 1).unflatten(0, (len(x), regions))
        weight, bias = convolution or (None, None)
        return attend_regions(parts, _best(sums, topk), weight, bias, num_heads, size, region, scale)
    projected = qkv(x)
    return routed_attention(
        projected,
        route_regions(projected, region, topk),
        num_heads=num_heads,
        region=region,
        scale=scale,
        convolution=convolution,
        dropout_p=dropout_p,
    )


def _prefer_mask(topk: int, regions: int, x: torch.Tensor) -> bool:
    return _SHARE * topk >= regions and x.size(1) * x.size(2) <= _MOST


def _formula(
    qkv: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    num_heads: int,
    table: torch.Tensor,
    region: Pair,
    scale: float,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    (q, k, v), _ = pick_regions(qkv, num_heads, table, region)
    out = softmax_attention(q, k, v, scale=scale, dropout_p=dropout_p).transpose(1, 2)
    if torch.compiler.is_exporting():
        # An exporter takes the operator apart more than once, and each time its result may lie otherwise in memory.
        out = out.clone(memory_format=torch.contiguous_format)
    out = merge_windows(out.flatten(2), (qkv.size(1), qkv.size(2)), region)
    local = local_values(qkv, weight, bias)
    return out if local is None else out + local


def _masked(
    qkv: torch.Tensor, num_heads: int, table: torch.Tensor, region: Pair, scale: float, dropout_p: float
) -> torch.Tensor:
    """Attention over all pairs of tokens, with a mask instead of gathered copies. `-> (B, H, W, C)`."""
    size = (qkv.size(1), qkv.size(2))
    mask = region_pairs(table, size, region).unsqueeze(1) if table.size(2) < table.size(1) else None
    q, k, v = split_heads(qkv.flatten(1, 2), num_heads)
    out = attention(q, k, v, mask=mask, scale=scale, dropout_p=dropout_p)
    return out.unflatten(1, size)


def region_pairs(table: torch.Tensor, size: Pair, region: Pair) -> torch.Tensor:
    """Which tokens of a map each one sees, `(B, N, N)`, by the regions that each region sees, `(B, regions, K)`.

    Args:
        table: As `route_regions` gives it.
        size: Height and width of the map.
        region: Height and width of a region.
    """
    batch, regions, _ = table.shape
    rows, columns = (torch.arange(side, device=table.device) for side in size)
    of_token = ((rows // region[0] * (size[1] // region[1])).unsqueeze(1) + columns // region[1]).flatten()
    seen = torch.zeros(batch, regions, regions, dtype=torch.bool, device=table.device).scatter(2, table, True)
    return seen.index_select(1, of_token).index_select(2, of_token)
