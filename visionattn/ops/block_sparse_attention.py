"""Block-sparse attention: blocks of tokens (windows or listed) attend to themselves or to the blocks of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ._dispatch import has_kernel
from ._modes import transformed
from .attention import softmax_attention
from .window_attention import WIDEST, padded_size, partition_windows

__all__ = ["Windows", "block_sparse_attention"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """The windows of a map, row by row, as blocks of its tokens; slots beyond the map are empty.

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
        """The token in each slot, or the number of tokens for an empty slot. `(windows, n)`."""
        height, width = self.size
        number = torch.arange(1, height * width + 1, device=device).view(1, height, width, 1)
        number = partition_windows(number, self.window, self.shift).squeeze(-1) - 1
        return number.masked_fill(number < 0, height * width)

    def parts(self, device: torch.device | None = None) -> torch.Tensor:
        """The part of its window that each slot belongs to; slots attend within a part. `(windows, n)`."""
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


def _refuses(qkv: torch.Tensor, blocks: Windows | torch.Tensor, *, dropout_p: float = 0.0, **settings: object) -> str:
    return "attention weights are dropped" if dropout_p > 0 else refuses_rows(qkv)


@has_kernel("block_sparse", _refuses)
def block_sparse_attention(
    qkv: torch.Tensor,
    blocks: Windows | torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    overlap: int = 0,
    bias: torch.Tensor | None = None,
    pad_kv: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Softmax attention of each block's queries to the keys of some blocks. `(B, N, 3, heads, d) -> (B, N, heads, d)`.

    A query must see a key at least.

    Args:
        qkv: Queries, keys and values as one projection leaves them, of the tokens of a map row by row.
        blocks: Which tokens belong together: windows, or the tokens of each block, `(B, heads, blocks, n)` or with 1 in
            place of B or heads. Every token has one slot. Slots with numbers from N up are empty.
        block_table: The blocks that the queries of each block see, `(B, blocks, K)`; without it, their own. Not for
            shifted windows.
        overlap: Blocks 2j and 2j + 1 of tokens are siblings: the first sees the first `overlap` slots of the second
            too, the second the last ones of the first before its own. At most n, and not with `block_table`.
        bias: Added to the scores, `(heads, n, keys)`, keys in the order that they are seen in: slot by slot, block by
            block.
        pad_kv: Key and value that every empty slot of a window has, `(2, heads, d)`; without it they are not seen.
        scale: Factor of the scores, `d ** -0.5` if None.
        dropout_p: Probability of dropping an attention weight.

    Raises:
        ValueError: If an argument has another shape, or arguments do not go together.
    """
    check_arguments(qkv, blocks, block_table, overlap, bias, pad_kv)
    tokens = qkv.size(1)
    table = blocks.tokens(qkv.device)[None, None] if isinstance(blocks, Windows) else blocks
    seen = _seen(table, qkv.size(0), block_table, overlap)
    q, k, v = _gather(qkv, (table, seen, seen))
    if pad_kv is not None:
        padded = (seen >= tokens).unsqueeze(-1)
        k, v = (torch.where(padded, p[:, None, None].to(x.dtype), x) for x, p in zip((k, v), pad_kv, strict=True))
    mask = None
    if table.size(2) * table.size(3) > tokens:
        held = (table < tokens).unsqueeze(-1)
        if transformed():  # tangents may ask where tokens come from: nothing comes from an empty slot
            q = torch.where(held, q, 0)
            k = k if pad_kv is not None else torch.where((seen < tokens).unsqueeze(-1), k, 0)
        if pad_kv is None:
            # What the queries of empty slots see does not matter, but they must see something.
            mask = (seen < tokens).unsqueeze(-2) | ~held
    if isinstance(blocks, Windows) and any(blocks.shift):
        part = blocks.parts(qkv.device)[None, None]
        same = part.unsqueeze(-1) == part.unsqueeze(-2)
        mask = same if mask is None else mask & (same | ~held)
    if bias is not None:
        bias = bias.to(q.dtype)[:, None]
        mask = bias[None] if mask is None else torch.where(mask, bias, float("-inf"))
    if mask is not None:
        mask = mask.expand(*q.shape[:2], -1, -1, -1).flatten(0, 1)
    # Blocks take the place of heads.
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out = softmax_attention(q, k, v, mask=mask, scale=scale, dropout_p=dropout_p)
    return _put_back(out, qkv, table)


def check_arguments(
    qkv: torch.Tensor,
    blocks: Windows | torch.Tensor,
    block_table: torch.Tensor | None,
    overlap: int,
    bias: torch.Tensor | None,
    pad_kv: torch.Tensor | None,
) -> None:
    """Raises the errors that `block_sparse_attention` documents."""
    if qkv.ndim != 5 or qkv.size(2) != 3:
        raise ValueError(f"qkv must have shape (B, N, 3, heads, d), got {tuple(qkv.shape)}")
    batch, tokens, _, heads, dim = qkv.shape
    if isinstance(blocks, Windows):
        height, width = blocks.size
        if height * width != tokens:
            raise ValueError(f"blocks are windows of a map of {height} x {width}, but qkv has {tokens} tokens")
        if not all(0 <= by < side for by, side in zip(blocks.shift, blocks.window, strict=True)):
            raise ValueError(f"shift must be at least 0 and less than the window, got {blocks.shift}")
        slots, paired = blocks.window[0] * blocks.window[1], False
    else:
        if blocks.ndim != 4 or blocks.size(0) not in (1, batch) or blocks.size(1) not in (1, heads):
            raise ValueError(f"blocks must have shape ({batch}, {heads}, blocks, n), got {tuple(blocks.shape)}")
        slots, paired = blocks.size(3), blocks.size(2) % 2 == 0
    if block_table is not None and (overlap or (isinstance(blocks, Windows) and any(blocks.shift))):
        raise ValueError("block_table goes neither with overlap nor with shifted windows")
    if overlap and (not paired or not 0 < overlap <= slots):
        raise ValueError(f"overlap must be at most {slots}, for an even number of blocks of tokens, got {overlap}")
    if pad_kv is not None and (not isinstance(blocks, Windows) or pad_kv.shape != (2, heads, dim)):
        raise ValueError(f"pad_kv must have shape (2, {heads}, {dim}), for windows, got {tuple(pad_kv.shape)}")
    keys = slots + overlap if block_table is None else slots * block_table.size(2)
    if bias is not None and bias.shape != (heads, slots, keys):
        raise ValueError(f"bias must have shape ({heads}, {slots}, {keys}), got {tuple(bias.shape)}")


def _seen(table: torch.Tensor, batch: int, block_table: torch.Tensor | None, overlap: int) -> torch.Tensor:
    """The tokens whose keys each block attends to. `(B, heads, blocks, n) -> (B, heads, blocks, keys)`."""
    if overlap:
        length = table.size(3) + overlap
        both = table.unflatten(2, (-1, 2)).flatten(3)
        return torch.stack((both[..., :length], both[..., -length:]), dim=3).flatten(2, 3)
    if block_table is None:
        return table
    table = table.expand(batch, -1, -1, -1)
    chosen = block_table.flatten(1)[:, None, :, None].expand(-1, table.size(1), -1, table.size(3))
    return table.gather(2, chosen).unflatten(2, block_table.shape[1:]).flatten(3)


def _gather(qkv: torch.Tensor, tables: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gathers queries, keys and values of some tokens; arbitrary for empty slots. `-> (B, heads, blocks, n, d)`."""
    batch, tokens, _, heads, dim = qkv.shape
    image = torch.arange(batch, device=qkv.device).view(-1, 1, 1, 1)
    head = torch.arange(heads, device=qkv.device).view(-1, 1, 1)
    tables = [table.clamp_max(tokens - 1) for table in tables]
    rows = [((image * tokens + table) * 3 + part) * heads + head for part, table in enumerate(tables)]
    # At once: each gradient of a part would be as large as all.
    gathered = qkv.reshape(-1, dim).index_select(0, torch.cat([part.flatten() for part in rows]))
    parts = gathered.split([part.numel() for part in rows])
    return [part.view(*row.shape, dim) for part, row in zip(parts, rows, strict=True)]


def _put_back(out: torch.Tensor, qkv: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`(B * heads, blocks, n, d) -> (B, N, heads, d)`."""
    batch, tokens, _, heads, dim = qkv.shape
    # As PyTorch's fused forms leave it.
    out = out.transpose(1, 2)
    rows = torch.arange(out.numel() // dim, device=out.device).view(batch, heads, *out.shape[1:3]).transpose(2, 3)
    # An empty slot's number may be any from N up; all of them land beside the tokens.
    token = table.clamp_max(tokens).expand(batch, heads, -1, -1).flatten(2)
    row = rows.new_zeros(batch, heads, tokens + 1).scatter(2, token, rows.flatten(2))[..., :tokens]
    return out.reshape(-1, dim).index_select(0, row.transpose(1, 2).flatten()).view(batch, tokens, heads, dim)
