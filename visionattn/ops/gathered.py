"""Attention inside groups of tokens that are read where they lie: windows, clusters, regions that see regions."""

from dataclasses import dataclass

import torch

from ._dispatch import has_kernel
from .attention import attention
from .windows import WIDEST, merge_windows, padded_size, partition_windows

__all__ = ["Windows", "gathered_attention"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """The windows of a map, row by row, as groups of its tokens; slots beyond the map are empty.

    Args:
        size: Height and width of the map.
        window: Height and width of a window.
        shift: How far down and to the right the windows lie from where they would otherwise: the map is rolled, and
            tokens that only rolling brought together do not see each other. Less than `window`.
    """

    size: Pair
    window: Pair
    shift: Pair = (0, 0)

    def tokens(self, device: torch.device | None = None) -> torch.Tensor:
        """The token in each slot, and their number for an empty one. `(windows, n)`."""
        height, width = self.size
        number = torch.arange(1, height * width + 1, device=device).view(1, height, width, 1)
        number = partition_windows(number, self.window, self.shift).squeeze(-1) - 1
        return number.masked_fill(number < 0, height * width)

    def parts(self, device: torch.device | None = None) -> torch.Tensor:
        """Which part of its window each slot belongs to: those of one part see each other. `(windows, n)`."""
        height, width = padded_size(self.size, self.window)
        rows = torch.arange(height, device=device) < self.shift[0]
        columns = torch.arange(width, device=device) < self.shift[1]
        part = 2 * rows.unsqueeze(1) + 1 * columns
        return partition_windows(part.view(1, height, width, 1), self.window, self.shift).squeeze(-1)


def refuses_rows(qkv: torch.Tensor) -> str:
    """Why kernels cannot take these queries, keys and values, or ""."""
    if qkv.size(-1) > WIDEST:
        return f"heads are wider than {WIDEST}"
    if qkv.stride(-1) != 1:
        return "the numbers of a head do not lie side by side"
    return ""


def _refuses(qkv: torch.Tensor, groups: Windows | torch.Tensor, **settings: object) -> str:
    return refuses_rows(qkv)


@has_kernel("gathered", _refuses)
def gathered_attention(
    qkv: torch.Tensor,
    groups: Windows | torch.Tensor,
    *,
    routes: torch.Tensor | None = None,
    overlap: int = 0,
    bias: torch.Tensor | None = None,
    fill: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention of each group's queries to the keys of some groups. `(B, N, 3, heads, d) -> (B, N, heads, d)`.

    A query must see a key at least.

    Args:
        qkv: Queries, keys and values as one projection leaves them, of the tokens of a map row by row.
        groups: Which tokens belong together: windows, or the tokens of each group, `(B, heads, groups, n)` or with 1 in
            place of B or heads. Every token has one slot. Slots with numbers from N up are empty.
        routes: The groups that the queries of each group see, `(B, groups, K)`; without it, their own. Not for shifted
            windows.
        overlap: Groups 2j and 2j + 1 of a table are siblings: the first sees the first `overlap` slots of the second
            too, the second the last ones of the first before its own. At most n, and not with `routes`.
        bias: Added to the scores, `(heads, n, keys)`, keys in the order that they are seen in: slot by slot, group by
            group.
        fill: Key and value that every empty slot of a window has, `(2, heads, d)`; without it they are not seen.
        scale: Factor of the scores, `d ** -0.5` if None.

    Raises:
        ValueError: If an argument has another shape, or arguments do not go together.
    """
    check_arguments(qkv, groups, routes, overlap, bias, fill)
    table = groups.tokens(qkv.device)[None, None] if isinstance(groups, Windows) else groups
    held = table < qkv.size(1)
    q, k, v = _regroup(qkv, groups, fill).unbind(0)
    seen = held if fill is None else torch.ones_like(held)
    seen = seen.expand(q.shape[:-1]).unsqueeze(-1)
    k, v, seen = (_keys(x, routes, overlap) for x in (k, v, seen))
    mask = seen.mT
    if isinstance(groups, Windows) and any(groups.shift):
        part = groups.parts(qkv.device)
        mask = mask & (part.unsqueeze(-1) == part.unsqueeze(-2))
    # What the queries of empty slots see does not matter, but they must see something.
    mask = mask | ~held.unsqueeze(-1)
    if bias is not None:
        mask = torch.where(mask, bias.to(q.dtype).unsqueeze(1), float("-inf"))
    q, k, v, mask = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v, mask.expand(*q.shape[:-1], -1)))
    return _put_back(attention(q, k, v, mask=mask, scale=scale), qkv, groups)


def check_arguments(
    qkv: torch.Tensor,
    groups: Windows | torch.Tensor,
    routes: torch.Tensor | None,
    overlap: int,
    bias: torch.Tensor | None,
    fill: torch.Tensor | None,
) -> None:
    """Raises what `gathered_attention` says."""
    if qkv.ndim != 5 or qkv.size(2) != 3:
        raise ValueError(f"qkv must have shape (B, N, 3, heads, d), got {tuple(qkv.shape)}")
    batch, tokens, _, heads, dim = qkv.shape
    if isinstance(groups, Windows):
        height, width = groups.size
        if height * width != tokens:
            raise ValueError(f"groups are windows of a map of {height} x {width}, but qkv has {tokens} tokens")
        if not all(0 <= by < side for by, side in zip(groups.shift, groups.window, strict=True)):
            raise ValueError(f"shift must be at least 0 and less than the window, got {groups.shift}")
        slots, paired = groups.window[0] * groups.window[1], False
    else:
        if groups.ndim != 4 or groups.size(0) not in (1, batch) or groups.size(1) not in (1, heads):
            raise ValueError(f"groups must have shape ({batch}, {heads}, groups, n), got {tuple(groups.shape)}")
        slots, paired = groups.size(3), groups.size(2) % 2 == 0
    if routes is not None and (overlap or (isinstance(groups, Windows) and any(groups.shift))):
        raise ValueError("routes go neither with overlap nor with shifted windows")
    if overlap and (not paired or not 0 < overlap <= slots):
        raise ValueError(f"overlap must be at most {slots}, for an even number of groups in a table, got {overlap}")
    if fill is not None and (not isinstance(groups, Windows) or fill.shape != (2, heads, dim)):
        raise ValueError(f"fill must have shape (2, {heads}, {dim}), for windows, got {tuple(fill.shape)}")
    keys = slots + overlap if routes is None else slots * routes.size(2)
    if bias is not None and bias.shape != (heads, slots, keys):
        raise ValueError(f"bias must have shape ({heads}, {slots}, {keys}), got {tuple(bias.shape)}")


def _regroup(qkv: torch.Tensor, groups: Windows | torch.Tensor, fill: torch.Tensor | None) -> torch.Tensor:
    """Rows of queries, keys and values, slot by slot. `(B, N, 3, heads, d) -> (3, B, heads, groups, n, d)`."""
    batch, tokens, _, heads, dim = qkv.shape
    if isinstance(groups, Windows):
        rows = partition_windows(qkv.flatten(2).unflatten(1, groups.size), groups.window, groups.shift)
        rows = rows.unflatten(0, (batch, -1)).unflatten(-1, (3, heads, dim))
        if fill is not None:
            empty = groups.tokens(qkv.device) == tokens
            rows = torch.where(empty[..., None, None, None], torch.cat((torch.zeros_like(fill[:1]), fill)), rows)
        return rows.permute(3, 0, 4, 1, 2, 5)
    image = torch.arange(batch, device=qkv.device).view(-1, 1, 1, 1)
    head = torch.arange(heads, device=qkv.device).view(-1, 1, 1)
    rows = (image * tokens + groups.clamp_max(tokens - 1)) * heads + head
    parts = [qkv[:, :, part].reshape(-1, dim).index_select(0, rows.flatten()) for part in range(3)]
    return torch.stack(parts).view(3, *rows.shape, dim)


def _keys(x: torch.Tensor, routes: torch.Tensor | None, overlap: int) -> torch.Tensor:
    """What each group sees. `(B, heads, groups, n, d) -> (B, heads, groups, keys, d)`."""
    if overlap:
        first, second = x.unflatten(2, (-1, 2)).unbind(3)
        seen = (first, second[..., :overlap, :]), (first[..., first.size(-2) - overlap :, :], second)
        return torch.stack([torch.cat(pair, dim=-2) for pair in seen], dim=3).flatten(2, 3)
    if routes is None:
        return x
    batch, groups = x.size(0), x.size(2)
    regions = routes + groups * torch.arange(batch, device=x.device).view(-1, 1, 1)
    x = x.transpose(1, 2).flatten(0, 1).index_select(0, regions.flatten())
    return x.unflatten(0, routes.shape).permute(0, 3, 1, 2, 4, 5).flatten(3, 4)


def _put_back(out: torch.Tensor, qkv: torch.Tensor, groups: Windows | torch.Tensor) -> torch.Tensor:
    """`(B * groups, n, heads * d) -> (B, N, heads, d)`."""
    batch, tokens, _, heads, dim = qkv.shape
    if isinstance(groups, Windows):
        return merge_windows(out, groups.size, groups.window, groups.shift).flatten(1, 2).unflatten(-1, (heads, dim))
    slots = groups.size(2) * groups.size(3)
    groups = groups.expand(batch, heads, -1, -1).flatten(2)
    # An empty slot's number may be any from N up; all of them land beside the tokens.
    slot = torch.arange(slots, device=out.device).expand(batch, heads, -1)
    slot = slot.new_zeros(batch, heads, tokens + 1).scatter(2, groups.clamp_max(tokens), slot)[..., :tokens]
    out = out.unflatten(-1, (heads, dim)).unflatten(0, (batch, -1)).flatten(1, 2).transpose(1, 2)
    return out.gather(2, slot.unsqueeze(-1).expand(-1, -1, -1, dim)).transpose(1, 2)
