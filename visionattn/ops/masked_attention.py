"""Softmax attention with a block mask: each query block attends to some key blocks; other pairs are skipped.

The dense form with a mask of all pairs says what it means, and is what compilers get. On the CPU pairs that are left
out are skipped where that is quicker: tall blocks of queries gather the keys that they see; single queries
are gathered by the blocks of keys that they see instead, since each would need a copy of its keys.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ._autocast import wide, without_autocast
from ._dispatch import wants_kernels
from ._modes import needs_formula
from .attention import attention, softmax_attention
from .flex_masks import flex_masked_attention

__all__ = ["Blocks", "masked_attention", "pair_mask", "token_rows"]

# Where keys are copied for at most a half of the pairs, or queries for a quarter, and there are so many tokens, that is
# quicker than a mask of all pairs.
_KEYS_SHARE, _QUERIES_SHARE, _FEWEST = 2, 4, 512
# Queries that share a row of the map at least, for keys to be copied for them.
_TALL = 16
# At most one in so many blocks of queries may see more than that; they are given a mask.
_FEW = 4
# Without a backward pass, copies and scores of pairs are made piece by piece, each at most so many times the queries.
_AT_ONCE = 2


@dataclass(frozen=True)
class Blocks:
    """The blocks of tokens, extra tokens not included.

    Args:
        of_token: The block of each token, `(N,)`.
        tokens: The tokens of each block, `(blocks, n)`; numbers from N up stand for nothing.
    """

    of_token: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def rows(cls, tokens: int, length: int, device: torch.device | None = None) -> "Blocks":
        """Blocks of consecutive tokens; the last may be shorter."""
        slots = torch.arange(-(-tokens // length) * length, device=device)
        return cls(slots[:tokens] // length, slots.view(-1, length))

    @classmethod
    def tiles(cls, grid: tuple[int, int], tile: tuple[int, int], device: torch.device | None = None) -> "Blocks":
        """Tiles of a map, row by row; those at the right and the bottom may be smaller."""
        rows, columns = (-(-side // part) for side, part in zip(grid, tile, strict=True))
        y, x = (torch.arange(count * part, device=device) for count, part in ((rows, tile[0]), (columns, tile[1])))
        number = y[:, None] * grid[1] + x
        number = number.masked_fill((y[:, None] >= grid[0]) | (x >= grid[1]), grid[0] * grid[1])
        number = number.view(rows, tile[0], columns, tile[1]).transpose(1, 2).reshape(rows * columns, -1)
        y, x = y[: grid[0]], x[: grid[1]]
        return cls((y[:, None] // tile[0] * columns + x // tile[1]).flatten(), number)


def masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    *,
    queries: Blocks | None = None,
    keys: Blocks | None = None,
    prefix: int = 0,
    empty: str = "raise",
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Attention to the values of the visible blocks. `3 x (B, heads, N, d) -> (B, N, heads * d)`.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        seen: Which blocks of keys each block of queries sees, bool, `(B, heads, query blocks, key blocks)`, or with 1
            in place of B or heads.
        queries: The blocks of queries; none: each query is one.
        keys: The blocks of keys; none: each key is one.
        prefix: Number of extra tokens in front, in no block: they see everything, and everything sees them.
        empty: What becomes of a query that sees nothing: `raise` an error, or `zero` as its result. Within compiled
            code and on other devices than the CPU rows are not looked at, and such a query gives NaN with `raise`.
        bias: Added to the scores; broadcasts to `(B, heads, N, N)`.
        scale: Of the scores; none is `d ** -0.5`.
        dropout_p: Probability of dropping a weight.

    Raises:
        ValueError: If the map has another type or shape, a block sees nothing, or `empty` is neither of the two.
    """
    _check(q, seen, queries, keys, prefix, empty)
    alone = empty == "raise" or prefix > 0
    plain = bias is None and dropout_p == 0 and alone and q.device.type == "cpu"
    if plain and keys is not None and not needs_formula() and q.size(2) >= _FEWEST:
        if queries is not None and queries.tokens.size(1) >= _TALL:
            many = _KEYS_SHARE * seen.sum(-1).amax((0, 1)) > seen.size(-1)
            if _FEW * int(many.sum()) <= len(many):
                return _gather_keys(q, k, v, seen, queries, keys, prefix, scale, many)
        elif queries is None:
            most = int(seen.sum(-2).amax())
            if _QUERIES_SHARE * most <= seen.size(-2):
                return _gather_queries(q, k, v, seen, keys, prefix, scale, most)
    if q.is_cuda and wants_kernels() and bias is None and dropout_p == 0 and alone and not needs_formula():
        return flex_masked_attention(q, k, v, seen, queries=queries, keys=keys, prefix=prefix, scale=scale)
    mask = pair_mask(seen, queries, keys, prefix)
    if not alone:
        held = mask.any(-1, keepdim=True)
        mask = mask | ~held
    scores = mask if bias is None else torch.where(mask, bias.to(q.dtype), float("-inf"))
    out = attention(q, k, v, mask=scores, scale=scale, dropout_p=dropout_p)
    if alone:
        return out
    return (out.unflatten(2, (q.size(1), -1)) * held.transpose(1, 2)).flatten(2)


def pair_mask(
    seen: torch.Tensor, queries: Blocks | None = None, keys: Blocks | None = None, prefix: int = 0
) -> torch.Tensor:
    """The keys visible to each query, `(B, heads, N, N)`, from a block mask. Arguments as for `masked_attention`."""
    if queries is not None:
        seen = seen.index_select(-2, queries.of_token)
    if keys is not None:
        seen = seen.index_select(-1, keys.of_token)
    return F.pad(seen, (prefix, 0, prefix, 0), value=True) if prefix else seen


def _check(
    q: torch.Tensor, seen: torch.Tensor, queries: Blocks | None, keys: Blocks | None, prefix: int, empty: str
) -> None:
    if empty not in ("raise", "zero"):
        raise ValueError(f"empty must be raise or zero, got {empty!r}")
    tokens = q.size(2) - prefix
    rows, columns = (tokens if blocks is None else blocks.tokens.size(0) for blocks in (queries, keys))
    sizes = ((1, q.size(0)), (1, q.size(1)), (rows,), (columns,))
    if seen.dtype != torch.bool or seen.ndim != 4 or any(n not in s for n, s in zip(seen.shape, sizes, strict=True)):
        shape = f"({q.size(0)}, {q.size(1)}, {rows}, {columns})"
        raise ValueError(f"seen must be bool of shape {shape}, got {seen.dtype} of {tuple(seen.shape)}")
    if empty == "raise" and not prefix and q.device.type == "cpu" and not needs_formula():
        empty_rows = (~seen.any(-1)).nonzero()
        if len(empty_rows):
            image, head, row = empty_rows[0].tolist()
            raise ValueError(
                f"seen leaves {len(empty_rows)} rows empty, the first is row {row} of head {head} of image "
                f"{image}; each must see a block, or pass empty='zero'"
            )


def _slots(blocks: Blocks, prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The token in each slot (arbitrary if empty), and which slots are filled. `2 x (blocks, n)`."""
    held = blocks.tokens < blocks.of_token.size(0)
    return blocks.tokens.where(held, 0) + prefix, held


def _first(chosen: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices of the True entries of each row, padded with others, and which indices are True entries."""
    order = chosen.to(torch.uint8).sort(stable=True, dim=-1, descending=True)
    return order.indices[..., :most], order.values[..., :most].bool()


def token_rows(x: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Tokens by their numbers, `(B, heads, N, d), (B, heads, ..., n) -> (B, heads, ..., n, d)`."""
    batch, heads, tokens, dim = x.shape
    start = torch.arange(batch * heads, device=x.device).view(batch, heads, *([1] * (number.ndim - 2))) * tokens
    return x.reshape(-1, dim).index_select(0, (start + number).flatten()).view(*(start + number).shape, dim)


def _gather_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    queries: Blocks,
    keys: Blocks,
    prefix: int,
    scale: float | None,
    many: torch.Tensor,
) -> torch.Tensor:
    """Gathers the keys and values visible to each query block, but for the blocks that see `many`."""
    seen = seen.expand(q.size(0), q.size(1), -1, -1)
    slot, held = _slots(keys, prefix)
    row, _ = _slots(queries, prefix)
    few, many = (~many).nonzero().flatten(), many.nonzero().flatten()
    most = int(seen[:, :, few].sum(-1).amax())
    outs = []
    for some in few.split(_pieces(len(few), most * slot.size(1), q)):
        block, chosen = _first(seen[:, :, some], most)
        number, visible = slot[block].flatten(-2), (held[block] & chosen.unsqueeze(-1)).flatten(-2)
        if prefix:
            extra = torch.arange(prefix, device=q.device).expand(*number.shape[:-1], -1)
            number, visible = torch.cat([extra, number], -1), F.pad(visible, (prefix, 0), value=True)
        q_rows = token_rows(q, row[some].expand(q.size(0), q.size(1), -1, -1))
        parts = (x.flatten(0, 1) for x in (q_rows, token_rows(k, number), token_rows(v, number)))
        out = softmax_attention(*parts, mask=visible.flatten(0, 1).unsqueeze(-2), scale=scale)
        outs.append(out.unflatten(0, q.shape[:2]).flatten(2, 3))
    if len(many):
        mask = F.pad(seen[:, :, many].index_select(-1, keys.of_token), (prefix, 0), value=True)
        q_rows = token_rows(q, row[many].flatten().expand(q.size(0), q.size(1), -1))
        mask = mask.repeat_interleave(row.size(1), 2)
        outs.append(softmax_attention(q_rows, k, v, mask=mask, scale=scale))
    place = torch.empty_like(queries.of_token).new_zeros(queries.of_token.size(0) + 1)
    tokens = queries.tokens[torch.cat([few, many])]
    place[tokens.clamp_max(queries.of_token.size(0)).flatten()] = torch.arange(row.numel(), device=q.device)
    out = torch.cat(outs, 2).index_select(2, place[:-1])
    if prefix:
        out = torch.cat([softmax_attention(q[:, :, :prefix], k, v, scale=scale), out], 2)
    return out.transpose(1, 2).flatten(2)


def _gather_queries(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    keys: Blocks,
    prefix: int,
    scale: float | None,
    most: int,
) -> torch.Tensor:
    """Gathers the queries that attend to each key block, and accumulates their results."""
    batch, heads, tokens, dim = q.shape
    query, chosen = _first(seen.expand(batch, heads, -1, -1).mT, most)  # (B, heads, blocks, most)
    query = query + prefix
    slot, held = _slots(keys, prefix)
    factor = dim**-0.5 if scale is None else scale
    start = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1) * tokens
    # A part of the keys of some blocks at a time.
    length = _pieces(slot.size(1), most // dim, q)
    count = _pieces(slot.size(0), most * length // dim, q)
    with without_autocast(q):
        # Weights are taken relative to the largest score of their query so far, which changes no result.
        best = torch.full((batch * heads * tokens,), float("-inf"), dtype=wide(q), device=q.device)
        total = best.new_zeros(batch * heads * tokens, dim + 1)
        if prefix:
            front = (q * factor).to(best) @ k[:, :, :prefix].to(best).mT
            best = front.detach().amax(-1).flatten()
            weights = (front - best.view(batch, heads, tokens, 1)).exp()
            total = torch.cat([weights @ v[:, :, :prefix].to(best), weights.sum(-1, keepdim=True)], -1).flatten(0, 2)
        for some in torch.arange(slot.size(0), device=q.device).split(count):
            row = (start + query[:, :, some]).flatten()
            picked = token_rows(q, query[:, :, some]).to(best) * factor
            for columns, there in zip(slot[some].split(length, 1), held[some].split(length, 1), strict=True):
                columns = columns.expand(batch, heads, -1, -1)
                scores = picked @ token_rows(k, columns).to(best).mT
                scores = scores.masked_fill(~(chosen[:, :, some].unsqueeze(-1) & there.unsqueeze(-2)), float("-inf"))
                with torch.no_grad():
                    before = best
                    best = best.scatter_reduce(0, row, scores.amax(-1).flatten(), "amax")
                    level = best.clamp_min(torch.finfo(best.dtype).min)
                    fade = (before - level).exp().unsqueeze(-1)
                weights = (scores - level[row].view(*scores.shape[:-1], 1)).exp()
                parts = torch.cat([weights @ token_rows(v, columns).to(best), weights.sum(-1, keepdim=True)], -1)
                total = (total * fade).index_add(0, row, parts.reshape(-1, dim + 1))
        total = total.view(batch, heads, tokens, dim + 1)[:, :, prefix:]
        out = (total[..., :-1] / total[..., -1:]).to(q.dtype)
    if prefix:
        out = torch.cat([softmax_attention(q[:, :, :prefix], k, v, scale=scale), out], 2)
    return out.transpose(1, 2).flatten(2)


def _pieces(count: int, rows: int, q: torch.Tensor) -> int:
    """How many of `count` parts, each of `rows` rows of all heads, are taken at once; all for a backward pass."""
    if torch.is_grad_enabled() and q.requires_grad:
        return max(count, 1)
    return max(1, min(count, _AT_ONCE * q.size(2) // max(rows, 1)))
