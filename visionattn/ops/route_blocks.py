"""Selects the key blocks of each query by the product with a block's mean key (VMoBA, arXiv 2506.23858)."""

import torch

__all__ = ["route_blocks"]

# Added to the entries of a query's own block, which so come first.
_OWN = 1e9


def route_blocks(
    gate: torch.Tensor,
    own: torch.Tensor,
    *,
    select: str = "threshold",
    scope: str = "head_global",
    threshold: float = 0.25,
    topk: int = 3,
    legacy: bool = False,
) -> torch.Tensor:
    """Chooses blocks, a query's own always. `(B, heads, N, blocks) -> (B, heads, N, blocks)`, bool, no gradient.

    Args:
        gate: How well each query fits each block.
        own: The block of each query, bool, `(N, blocks)`.
        select: `topk`: the largest entries of the scope, `topk` for each query on average. `threshold`: the least
            number of the largest entries, scaled to 0 .. 1 in the scope, whose sum with the own ones is a share
            `threshold` of all; the best of the others is in any case among them.
        scope: What entries are compared within: `query_head` (the blocks of a query and head), `block` (the queries and
            heads of a block; not for `topk`), `head_global` (a head) or `overall` (all).
        threshold: A share from 0 to 1; 1 chooses all.
        topk: Number of blocks, the own one among them.
        legacy: Whether `head_global` and `overall` compare entries of all images of the batch, and a query sees all
            blocks where none sees another than its own.
    """
    with torch.no_grad():
        batch, heads, _, blocks = gate.shape
        own = own.expand(batch, heads, -1, -1)
        # Axes that a scope spans come last; the others stay apart.
        apart = {"query_head": (0, 1, 2), "block": (0, 3), "head_global": (0, 1), "overall": (0,)}[scope]
        if legacy and scope in ("head_global", "overall"):
            apart = apart[1:]
        spans = tuple(axis for axis in range(4) if axis not in apart)
        order = (*apart, *spans)
        shape = [gate.shape[axis] for axis in order]
        entries, mine = (x.permute(order).reshape(*shape[: len(apart)], -1) for x in (gate, own))
        if select == "topk":
            count = min(topk * (entries.size(-1) // blocks), entries.size(-1))
            best = (entries + _OWN * mine).topk(count, -1).indices
            chosen = torch.zeros_like(mine).scatter(-1, best, torch.ones_like(best, dtype=torch.bool)) | mine
        elif threshold == 1:  # rounding of the sums would leave some out
            chosen = torch.ones_like(mine)
        else:
            chosen = _threshold(entries, mine, threshold) | mine
        back = sorted(range(4), key=order.__getitem__)
        chosen = chosen.reshape(shape).permute(back)
        if legacy:
            chosen = chosen | (chosen == own).all()
        return chosen


def _threshold(entries: torch.Tensor, own: torch.Tensor, threshold: float) -> torch.Tensor:
    """The largest entries that are not own ones, up to the first whose cumulative share suffices."""
    low, high = entries.aminmax(dim=-1, keepdim=True)
    width = high - low
    share = (entries - low) / width.where(width > 1e-6, 1.0)
    total = share.sum(-1, keepdim=True) + 1e-6
    need = (threshold - share.where(own, 0).sum(-1, keepdim=True) / total).clamp_min(0)
    # The own ones lie below zero, at the end.
    ordered, order = share.masked_fill(own, -1).sort(-1, descending=True)
    before = (ordered.clamp_min(0) / total).cumsum(-1).roll(1, -1)
    before[..., 0] = -1
    kept = (before < need) & (ordered >= 0)
    return torch.zeros_like(own).scatter(-1, order, kept)
