"""Attention of the regions of a map to a few routed regions each (BiFormer, arXiv 2303.08810)."""

import torch

from ._autocast import wide, without_autocast
from ._dispatch import has_kernel
from ._modes import use_eager_kernel
from .attention import attention, loses_digits, softmax_attention
from .eager.routed_attention import RoutedAttention, local_values, pick_regions
from .window_attention import WIDEST, merge_windows

__all__ = ["route_regions", "routed_attention"]

Pair = tuple[int, int]
# Where regions see so large a share of so many tokens at most, a mask for all pairs is quicker than copies of the keys.
_SHARE, _MOST = 4, 1024


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
        q, k = sums.flatten(1, 2).chunk(2, dim=2)
        logits = q @ k.mT
        if views > 1:
            view = torch.arange(views, device=qkv.device).repeat_interleave(rows * columns // views)
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
    if _SHARE * table.size(2) >= table.size(1) and qkv.size(1) * qkv.size(2) <= _MOST:
        out = _masked(qkv, num_heads, table, region, scale, dropout_p)
        local = local_values(qkv, weight, bias)
        return out if local is None else out + local
    if dropout_p == 0 and use_eager_kernel(qkv):
        arguments = (qkv, weight, bias, num_heads, table, region, scale)
        if not (torch.is_grad_enabled() and qkv.requires_grad):
            return RoutedAttention.compute(*arguments)[0]
        q, k, _ = qkv.unflatten(3, (3, num_heads, -1)).unbind(3)
        if not loses_digits(q, k, None, scale):
            kept: torch.Tensor = RoutedAttention.apply(_formula, *arguments)[0]
            return kept
    return _formula(qkv, weight, bias, num_heads, table, region, scale, dropout_p)


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
    batch, height, width, _ = qkv.shape
    regions, mask = table.size(1), None
    if table.size(2) < regions:
        rows, columns = (torch.arange(side, device=qkv.device) for side in (height, width))
        of_token = (rows // region[0] * (width // region[1])).unsqueeze(1) + columns // region[1]
        of_token = of_token.flatten()
        seen = torch.zeros(batch, regions, regions, dtype=torch.bool, device=qkv.device).scatter(2, table, True)
        mask = seen.index_select(1, of_token).index_select(2, of_token).unsqueeze(1)
    q, k, v = qkv.flatten(1, 2).unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    out = attention(q, k, v, mask=mask, scale=scale, dropout_p=dropout_p)
    return out.unflatten(1, (height, width))
